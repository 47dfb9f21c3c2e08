"""PEFT adapters put into a module in place."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn


def adapted(module: nn.Module, folder: Path) -> None:
    """Give the module the adapter of a folder, if there is one.

    It is not merged: it may change weights by less than 16 bit can hold.
    """
    if not folder.is_dir():
        return
    with warnings.catch_warnings():  # PEFT reads an attribute by a name that transformers has given up
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # Layers run in the precision of the module, if that has 16 bit as their file has.
        wide = next(module.parameters()).dtype == torch.float32
        PeftModel.from_pretrained(module, folder, autocast_adapter_dtype=wide)
