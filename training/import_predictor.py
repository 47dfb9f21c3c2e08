"""Stage import-predictor: the paper's authors' predictor checkpoints as ours.

Theirs are Lightning files whose sLSTM ran on the xlstm package's CUDA backend, which lays out its
recurrent kernel and bias differently from the vanilla backend.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint import save_predictor
from m3agiqa.errors import InputError
from m3agiqa.predictor import Predictor, PredictorConfig
from m3agiqa.weights import sha256

PREFIXES = {
    "model.W.": "projection.",
    "model.xlstm_pooler.xlstm_stack.": "extractor.layers.",
    "model.fc.": "regression.",
}
IGNORED = ("causal_mask",)  # a constant of the quadratic mLSTM, which ours does without
PREDICTOR_FILE = "predictor.json"


def import_predictor(file: Path, aspect: Aspect, out: Path, head: Path | None = None) -> Predictor:
    """Convert a checkpoint and write it to `out` in 32 bit, with a JSON that says what it is.

    With `head` (safetensors with the backbone's output matrix [vocab, d]) W_proj is fused to read hidden
    states; otherwise it stays in vocabulary space. Raises InputError for anything that does not fit.
    """
    predictor = convert(_state_dict(file), file)
    if head is not None:
        predictor = predictor.fuse(_head(head, predictor.config.input_size))
    out.mkdir(parents=True, exist_ok=True)
    save_predictor(predictor, out, aspect, torch.float32)
    facts = {
        "aspect": aspect,
        "predictor": asdict(predictor.config),
        "source": file.name,
        "source_sha256": sha256(file),
    }
    (out / PREDICTOR_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return predictor


def convert(state: dict[str, Tensor], name: object = "The checkpoint") -> Predictor:
    """A predictor with the weights of a Lightning state dict of the authors' model."""
    weights = {}
    for key, value in state.items():
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        if prefix and not key.endswith(IGNORED):
            weights[PREFIXES[prefix] + key.removeprefix(prefix)] = value.float()
    try:
        predictor = Predictor(_shape(weights))
        heads = predictor.config.heads
        for key in [key for key in weights if key.endswith("slstm_cell._recurrent_kernel_")]:
            _to_vanilla(weights, key, heads)
        predictor.load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{name} is not a predictor of the paper's authors: {error}") from error
    return predictor.eval().requires_grad_(False)


def _shape(weights: dict[str, Tensor]) -> PredictorConfig:
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


def _state_dict(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"Cannot read {file}: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} holds more than weights, or is no checkpoint; nothing of it was run. ({error})"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{file} is damaged or no checkpoint: {error}") from error
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} has no state_dict; a Lightning checkpoint is expected.")
    return state


def _head(path: Path, vocabulary: int) -> Tensor:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"Cannot read {path} as safetensors: {error}") from error
    fitting = [value for value in tensors.values() if value.dim() == 2 and len(value) == vocabulary]
    if len(fitting) != 1:
        raise InputError(
            f"{path} must hold one matrix with {vocabulary:,} rows (the output head); it has {len(fitting)}."
        )
    return fitting[0].float()
