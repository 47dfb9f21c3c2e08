"""Stage import-predictor: the paper's authors' predictor checkpoints as ours."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.predictor_weights import save_predictor
from m3agiqa.errors import InputError
from m3agiqa.files import sha256
from m3agiqa.json_lines import write_json
from m3agiqa.predictor.lightning_import import CONTEXT_LENGTH, read_predictor
from m3agiqa.predictor.model import Predictor

PREDICTOR_FILE = "predictor.json"


def import_predictor(
    file: Path,
    aspect: Aspect,
    out: Path,
    head: Path | None = None,
    context_length: int = CONTEXT_LENGTH,
) -> Predictor:
    """Convert a checkpoint and write it to `out` in 32 bit, with a JSON that says what it is.

    With `head` (safetensors with the backbone's output matrix [vocab, d]) W_proj is fused to read hidden
    states; otherwise it stays in vocabulary space. `context_length` as in read_predictor. Raises InputError
    for anything that does not fit.
    """
    predictor = read_predictor(file, context_length)
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
    write_json(out / PREDICTOR_FILE, facts)
    return predictor


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
    return fitting[0]
