"""What every table of a recipe shares, and where a component is found by its name; free of torch."""
