"""Dataset plugins: a module each, found by file name."""
