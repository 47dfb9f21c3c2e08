"""PEFT adapters put into a module in place."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig, load_peft_weights
from torch import nn

from m3agiqa.backbones.adapters import attach
from m3agiqa.errors import WeightsError


def adapted(module: nn.Module, folder: Path) -> None:
    """Give the module the adapter of a folder, if there is one. Raises WeightsError for another model's."""
    if not folder.is_dir():
        return
    # Layers run in the precision of the module, if that has 16 bit as their file has.
    wide = next(module.parameters()).dtype == torch.float32
    weights = load_peft_weights(str(folder), "cpu")
    strange = attach(module, PeftConfig.from_pretrained(str(folder)), weights, wide)
    if strange:
        raise WeightsError(f"The adapter {folder} is for another model: {strange[0]} has no counterpart.")
