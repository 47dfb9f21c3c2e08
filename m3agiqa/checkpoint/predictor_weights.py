"""The predictors' weights in a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.card import predictor_file
from m3agiqa.errors import WeightsError, reason
from m3agiqa.predictor.config import PredictorConfig
from m3agiqa.predictor.model import Predictor


def save_predictor(
    predictor: Predictor, folder: Path, aspect: Aspect, dtype: torch.dtype = torch.float16
) -> None:
    """Write an aspect's predictor."""
    weights = {name: value.to(dtype).contiguous() for name, value in predictor.state_dict().items()}
    save_file(weights, folder / predictor_file(aspect))


def load_predictor(folder: Path, aspect: Aspect, config: PredictorConfig, number: int = 0) -> Predictor:
    """Read an aspect's predictor, in 32 bit and ready for inference; `number` as in predictor_file."""
    predictor = Predictor(config)
    path = folder / predictor_file(aspect, number)
    try:
        weights = {name: value.to(torch.float32) for name, value in load_file(path).items()}
        predictor.load_state_dict(weights)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise WeightsError(f"{path} does not hold this predictor's weights: {reason(error)}.") from error
    return predictor.eval().requires_grad_(False)
