"""Tasks: loss, metrics and decoding of what a network returns."""
