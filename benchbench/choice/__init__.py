"""The best of several settings: which cannot be told from it, and which starts are still needed. Pure."""
