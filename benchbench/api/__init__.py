"""What Python users get: stored runs as objects with tables, pictures, comparisons and pages. `benchbench` shows it."""
