"""Inference: one case, and a batch of cases."""
