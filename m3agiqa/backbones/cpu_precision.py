"""The precision that this processor computes fast in.

Many processors of laptops and small servers have no instructions for bfloat16: there, a product takes ten to
thirty times as long as in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def has_fast_bfloat16() -> bool:
    """Whether oneDNN multiplies in bfloat16 on this processor. A private function of torch (seen in 2.13)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fast_dtype() -> torch.dtype:
    """bfloat16 where that is quick, else float32, which takes twice the memory."""
    return torch.bfloat16 if has_fast_bfloat16() else torch.float32


def fast_autocast() -> AbstractContextManager[object]:
    """Autocast to bfloat16 on the CPU where that is quick."""
    return torch.autocast("cpu", torch.bfloat16) if has_fast_bfloat16() else nullcontext()
