"""Checkpoints: their files and card, how a name finds one, and the registry of newly trained ones."""
