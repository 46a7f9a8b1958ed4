"""Variants as a product of settings, and the settings that a variant's name tells."""
