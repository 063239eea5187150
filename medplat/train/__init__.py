"""Training with Lightning: one loop for every task and every model plugin.

Lightning is imported here and nowhere else, and from the one name `lightning.pytorch`. Nothing here
knows MLflow or the export of results: `commands/train.py` hands in what logs and what restores.
"""
