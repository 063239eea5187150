"""Workflow files: what may stand in them, reading, writing."""
