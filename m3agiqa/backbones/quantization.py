"""Fewer bits for the linear layers of a language model, by bitsandbytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from m3agiqa.backbones.placement import Quantization

BLOCK = 64
"""Weights of 4 bit that share a scale of 8 bit; NESTED of these share one of 32 bit."""
NESTED = 256
TABLES = 4 * (16 + 256 + 1)
"""Bytes that each layer of 4 bit has for what its codes stand for."""
PACKED = 32
"""Rows that the CPU's instructions for 4 bit take at once."""


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


def tensor_bytes(
    model: nn.Module, dtype: torch.dtype, bits: Quantization | None, kept: Sequence[str]
) -> dict[str, int]:
    """Bytes of each tensor of a model, which may be on the meta device, once it is loaded in this way."""
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if type(module) is nn.Linear and not any(f"{name}.".startswith(f"{each}.") for each in kept)
    }
    sizes = {name: buffer.numel() * buffer.element_size() for name, buffer in model.named_buffers()}
    for name, weight in model.named_parameters():
        if bits and name in linear:
            sizes[name] = _quantized_bytes(*weight.shape, bits)
        else:
            sizes[name] = weight.numel() * dtype.itemsize
    return sizes


def _quantized_bytes(rows: int, columns: int, bits: Quantization) -> int:
    count = rows * columns
    if bits == "8bit":
        return count + 4 * rows  # a scale for each row
    blocks = math.ceil(count / BLOCK)
    return math.ceil(count / 2) + blocks + 4 * math.ceil(blocks / NESTED) + TABLES


def settle(model: nn.Module) -> None:
    """Have quantized layers do now what they would do when first used, in tensors that copies may share."""
    for layer in model.modules():
        kind = type(layer).__name__
        if kind == "Linear8bitLt":
            layer.init_8bit_state()
        elif kind == "Linear4bit" and layer.weight.device.type == "cpu":
            # Layers of other sizes would fail in the CPU's own format; without it they are slower.
            if layer.out_features % PACKED or layer.in_features % BLOCK:
                layer.support_avx512bf16_for_cpu = False
            layer(torch.zeros(1, layer.in_features, dtype=layer.compute_dtype))
