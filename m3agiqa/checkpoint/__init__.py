"""Checkpoints: their files and card, how a name finds one, and the registry of newly trained ones."""

from m3agiqa.checkpoint.card import (
    Card,
    find_checkpoint,
    load_predictor,
    read_card,
    save_predictor,
    write_card,
)

__all__ = ["Card", "find_checkpoint", "load_predictor", "read_card", "save_predictor", "write_card"]
