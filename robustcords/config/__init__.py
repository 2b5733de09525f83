"""The schema that all tables of a recipe share and the registry of components; free of torch."""
