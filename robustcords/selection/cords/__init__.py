"""CORDS' own strategies."""
