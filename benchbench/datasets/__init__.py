"""What people have and servers get: lengths from distributions, and prompts from files. Reads files, else pure."""
