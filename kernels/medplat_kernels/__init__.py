"""Scan and attention operators with CPU and GPU paths. Imports nothing of medplat."""
