"""How hard each example is attacked."""
