"""How far a percentile may be from what was measured."""
