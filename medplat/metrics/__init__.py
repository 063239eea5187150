"""Clinical statistics."""
