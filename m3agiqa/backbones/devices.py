"""Devices and quantized layers, as a Placement asks for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from m3agiqa.backbones.placement import Placement, Quantization
from m3agiqa.errors import InputError, WeightsError

CPU_BLOCK = (32, 64)
"""Rows and columns that the CPU's instructions for 4 bit take at once."""


def check_placement(placement: Placement) -> None:
    """Raises InputError for a device or precision that is not there.

    WeightsError where bitsandbytes is missing.
    """
    main_device(placement.device)
    if placement.quantize not in (None, *get_args(Quantization)):
        raise InputError(f"Weights cannot be quantized to {placement.quantize!r}. Give 4bit or 8bit.")
    if placement.quantize and not is_bitsandbytes_available():
        raise WeightsError(
            f"Weights in {placement.quantize} need bitsandbytes, which is not installed, or too old. "
            "Run: pip install --upgrade bitsandbytes"
        )


def main_device(asked: str | None) -> torch.device:
    """The device that is meant by Placement.device; for "auto" the one that is filled first.

    Raises InputError for one that is unknown or not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked is None:
        return torch.device("cuda", torch.cuda.current_device()) if count else torch.device("cpu")
    if asked == "auto":
        return torch.device("cuda", 0) if count else torch.device("cpu")
    named = re.fullmatch(r"cpu|cuda(?::(\d+))?", str(asked))
    if not named:
        raise InputError(
            f"There is no device {asked!r}. Give cpu, cuda, cuda:N (N is a GPU's number) or auto."
        )
    if asked == "cpu":
        return torch.device("cpu")
    if not count:
        raise InputError(
            f"PyTorch finds no GPU on this machine, so {asked} cannot be used. Leave the device out, or "
            "give cpu."
        )
    number = int(named[1] or 0)
    if number >= count:
        there = "only cuda:0" if count == 1 else f"only cuda:0 to cuda:{count - 1}"
        raise InputError(f"There is no {asked} on this machine, {there}.")
    return torch.device("cuda", number)


def quantization_config(bits: Quantization, dtype: torch.dtype, kept: Sequence[str]) -> BitsAndBytesConfig:
    """How transformers loads all linear layers but those in the modules `kept`; they compute in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=bits == "4bit",
        load_in_8bit=bits == "8bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(kept),
    )


def settle(model: nn.Module) -> None:
    """Have quantized layers do now what they would do when first used, in tensors that copies may share."""
    layer: Any
    for layer in model.modules():
        kind = type(layer).__name__
        if kind == "Linear8bitLt":
            layer.init_8bit_state()
        elif kind == "Linear4bit" and layer.weight.device.type == "cpu":
            # Layers of other sizes would fail in the CPU's own format; without it they are slower.
            if layer.out_features % CPU_BLOCK[0] or layer.in_features % CPU_BLOCK[1]:
                layer.support_avx512bf16_for_cpu = False
            layer(torch.zeros(1, layer.in_features, dtype=layer.compute_dtype))
