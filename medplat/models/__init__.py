"""Model plugins: one file, one architecture. Imported by name only, through the registry."""
