"""Predictors as the paper's authors published them: Lightning checkpoints of their own model.

Their sLSTM ran on the xlstm package's CUDA backend, which lays out its recurrent kernel and bias differently
from the vanilla backend.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from m3agiqa.errors import InputError, reason
from m3agiqa.predictor.config import PredictorConfig
from m3agiqa.predictor.model import Predictor

CONTEXT_LENGTH = 512
"""What their code cuts conversations to, image included, in most of its settings."""
KEY_PREFIXES = {
    "model.W.": "projection.",
    "model.xlstm_pooler.xlstm_stack.": "extractor.layers.",
    "model.fc.": "regression.",
}
CAUSAL_MASK = "causal_mask"
"""A constant [length, length] of the quadratic mLSTM, which older versions of the xlstm package saved."""


def read_predictor(file: Path, context_length: int = CONTEXT_LENGTH) -> Predictor:
    """The predictor over the vocabulary that a checkpoint holds, in 32 bit and ready for inference.

    `context_length` is what it was trained with, where the file does not say. Raises InputError for a file
    that is anything else, or that holds more than weights.
    """
    state = _state_dict(file)
    weights = {}
    for key, value in state.items():
        prefix = next((prefix for prefix in KEY_PREFIXES if key.startswith(prefix)), None)
        if prefix and key.endswith(CAUSAL_MASK):
            context_length = value.shape[-1]
        elif prefix:
            weights[KEY_PREFIXES[prefix] + key.removeprefix(prefix)] = value.float()
    try:
        predictor = Predictor(_shape(weights, context_length))
        heads = predictor.config.heads
        for key in [key for key in weights if key.endswith("slstm_cell._recurrent_kernel_")]:
            _to_vanilla(weights, key, heads)
        predictor.load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{file} is not a predictor of the paper's authors: {reason(error)}.") from error
    return predictor.eval().requires_grad_(False)


def _state_dict(file: Path) -> dict[str, Tensor]:
    """The model's tensors, from which those of the optimizer are told apart without reading them."""
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise InputError(f"Cannot read {file}: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} holds more than weights, or is no checkpoint; nothing of it was run."
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{file} is damaged or no checkpoint: {reason(error)}.") from error
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} has no state_dict; a Lightning checkpoint is expected.")
    return state


def _shape(weights: dict[str, Tensor], context_length: int) -> PredictorConfig:
    dim, vocabulary = weights["projection.weight"].shape
    layers = [key.removeprefix("extractor.layers.blocks.") for key in weights if ".layers.blocks." in key]
    blocks = {int(key.split(".")[0]) for key in layers}
    slstm = {int(key.split(".")[0]) for key in layers if ".slstm_cell." in key}
    kernels = [value for key, value in weights.items() if key.endswith("slstm_cell._recurrent_kernel_")]
    return PredictorConfig(
        vocabulary,
        projection="vocab",
        dim=dim,
        blocks=len(blocks),
        slstm_at=tuple(sorted(slstm)),
        heads=len(kernels[0]) if kernels else PredictorConfig.heads,
        conv_kernel=_first(weights, "conv1d.conv.weight").shape[-1],
        qkv_block=_first(weights, "q_proj.weight").shape[-1],
        regression_dim=weights["regression.0.weight"].shape[0],
        context_length=context_length,
    )


def _first(weights: dict[str, Tensor], ending: str) -> Tensor:
    for key, value in weights.items():
        if key.endswith(ending):
            return value
    raise KeyError(f"no …{ending}")


def _to_vanilla(weights: dict[str, Tensor], key: str, heads: int) -> None:
    """Kernel [heads, H, gates * H] -> [heads, gates * H, H]; bias (heads, gates, H) -> (gates, heads, H)."""
    kernel, bias_key = weights[key], key.replace("_recurrent_kernel_", "_bias_")
    width = min(kernel.shape[1:])
    if kernel.shape[1] == width:  # else it ran on the vanilla backend already
        weights[key] = kernel.transpose(1, 2).contiguous()
        weights[bias_key] = weights[bias_key].view(heads, -1, width).transpose(0, 1).reshape(-1)
