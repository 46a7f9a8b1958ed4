"""The way in: a sweep from a few options of the command line, and the sweeps that are shipped to begin with."""
