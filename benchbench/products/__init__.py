"""Variants as a product of settings, and the language that selects cells, by settings too."""
