"""Shape of a predictor, as checkpoints keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Extractor = Literal["xlstm", "lstm", "gru", "transformer", "mamba2", "none"]
Projection = Literal["hidden", "vocab", "none"]
Pooling = Literal["mean", "max", "last", "first+last"]


@dataclass(frozen=True)
class PredictorConfig:
    """Shape of a predictor; the defaults are the paper's, except the input size."""

    input_size: int
    """Width of the input: the backbone's hidden size, or its vocabulary for projection="vocab"."""
    projection: Projection = "hidden"
    """What W_proj reads. "vocab": logits, as in the paper. "hidden": hidden states (paper, "w/o lm_head");
    for a frozen head both are the same function class, and `Predictor.fuse` turns a vocab predictor into a
    hidden one exactly. "none": the extractor is as wide as the hidden states, which are only scaled."""
    extractor: Extractor = "xlstm"
    """What reads the sequence; "none" pools the projected states as they are."""
    pooling: Pooling = "mean"
    """How the sequence becomes one vector; "first+last" is the mean of these two positions."""
    dim: int = 512
    """Width of W_proj's output and of the extractor."""
    blocks: int = 4
    """Layers of the extractor."""
    slstm_at: tuple[int, ...] = (1,)
    """Blocks of the xLSTM that are sLSTM; the others are mLSTM."""
    heads: int = 4
    conv_kernel: int = 4
    qkv_block: int = 4
    feedforward_factor: float = 1.3
    regression_dim: int = 128
    """Width between the two layers of the regression head."""
    dropout: float = 0.0
    context_length: int = 1024
    """Longest sequence that is read; of a longer one only the beginning is."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slstm_at", tuple(self.slstm_at))  # JSON has lists only
