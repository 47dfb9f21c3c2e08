"""The predictor: from the MLLM's hidden states to a mean opinion score (paper, Eq. 6-9)."""

from m3agiqa.predictor.config import PredictorConfig
from m3agiqa.predictor.model import Predictor

__all__ = ["Predictor", "PredictorConfig"]
