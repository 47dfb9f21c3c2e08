"""Where a backbone's weights go, and in how many bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantization = Literal["4bit", "8bit"]


@dataclass(frozen=True)
class Placement:
    """How a backbone is loaded for inference; the defaults suit a machine with room for all of it."""

    device: str | None = None
    """"cpu", "cuda" or "cuda:N"; "auto" spreads the layers over all GPUs and then the CPU's memory; None:
    the GPU if there is one."""
    quantize: Quantization | None = None
    """Precision of the language model's layers; what sees, and the output head, keep 16 bit. None: as
    published."""


AS_PUBLISHED = Placement()
