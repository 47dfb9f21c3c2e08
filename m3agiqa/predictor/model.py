"""The predictor: from the MLLM's hidden states to a mean opinion score (paper, Eq. 6-9)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from m3agiqa.predictor.config import Pooling, PredictorConfig
from m3agiqa.predictor.extractors import build_extractor

HEAD_ROWS_AT_ONCE = 4096
"""So many rows of an output head are brought to 32 bit at a time."""
MAX_BATCH = 64  # conversations whose MOS is predicted at once


class Prediction(NamedTuple):
    """Of one conversation."""

    mos: float
    """Raw, not clamped to a scale."""
    pooled: Tensor
    """What the regression head has read, [width]."""


class Predictor(nn.Module):
    """W_proj -> extractor (xLSTM) -> pooling over the sequence -> Linear, ReLU, Linear -> MOS."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        if config.projection == "none":
            width = config.input_size
            self.projection: Scale | nn.Linear = Scale(width)
        else:
            width = config.dim
            self.projection = nn.Linear(config.input_size, width)
        self.extractor = build_extractor(config, width)
        self.dropout = nn.Dropout(config.dropout)
        self.regression = nn.Sequential(
            nn.Linear(width, config.regression_dim), nn.ReLU(), nn.Linear(config.regression_dim, 1)
        )

    def forward(self, states: Tensor, lengths: Tensor, head: Tensor | None = None) -> Tensor:
        """states [B, L, input_size], right-padded; lengths [B] -> raw MOS [B], not clamped to a scale.

        With the frozen head [vocab, d] a predictor over the vocabulary takes hidden states [B, L, d]:
        W_proj (W_head h) = (W_proj W_head) h, so that no logit is ever made, and W_proj's gradient is
        the one that logits would give it.
        """
        mos: Tensor = self.regression(self.dropout(self.pooled(states, lengths, head))).squeeze(-1)
        return mos

    def pooled(self, states: Tensor, lengths: Tensor, head: Tensor | None = None) -> Tensor:
        """What the regression head reads, [B, width], of the same arguments."""
        states = states[:, : self.config.context_length].to(self.projection.weight.dtype)
        lengths = lengths.clamp_max(self.config.context_length)
        if head is None:
            projected = self.projection(states)
        else:
            projected = F.linear(states, self.projection.weight @ head, self.projection.bias)
        return pool(self.extractor(projected, lengths), lengths, self.config.pooling)

    def predict(self, states: Tensor) -> float:
        """Raw MOS of one conversation's states [L, input_size]."""
        return self.predict_all([states])[0].mos

    @torch.inference_mode()
    def predict_all(self, conversations: Sequence[Tensor], head: Tensor | None = None) -> list[Prediction]:
        """Of each conversation's states [L, input_size], several at once; in evaluation mode.

        `head`: see `forward`.
        """
        device, predictions = self.projection.weight.device, list[Prediction]()
        for start in range(0, len(conversations), MAX_BATCH):
            batch = list(conversations[start : start + MAX_BATCH])
            lengths = torch.tensor([len(states) for states in batch], device=device)
            pooled = self.pooled(pad_sequence(batch, batch_first=True).to(device), lengths, head)
            mos = self.regression(pooled).squeeze(-1).tolist()
            predictions += map(Prediction, mos, pooled)
        return predictions

    def with_linear_change(self, gain: float, level: float, weight: Tensor | None = None) -> Predictor:
        """The predictor whose MOS is gain * (this one's) + level + weight [width] · (what its head reads).

        Two hidden units more in the head hold the last term exactly, as x = ReLU(x) - ReLU(-x).
        """
        weights, config = self.state_dict(), self.config
        weights["regression.2.weight"] = gain * weights["regression.2.weight"]
        weights["regression.2.bias"] = gain * weights["regression.2.bias"] + level
        if weight is not None:
            config = replace(config, regression_dim=config.regression_dim + 2)
            more = {"0.weight": torch.stack([weight, -weight]), "0.bias": torch.zeros(2)}
            for name, rows in more.items():
                weights[f"regression.{name}"] = torch.cat([weights[f"regression.{name}"], rows])
            signs = torch.tensor([[1.0, -1.0]])
            weights["regression.2.weight"] = torch.cat([weights["regression.2.weight"], signs], dim=1)
        changed = Predictor(config)
        changed.load_state_dict(weights)
        return changed.train(self.training)

    def fuse(self, head: Tensor | Iterable[Tensor]) -> Predictor:
        """The same function on hidden states: W_proj (W_head h) = (W_proj W_head) h.

        head [vocab, d] is the frozen output matrix that this predictor's logits came from, or blocks of its
        rows in order: a block at a time is brought to 32 bit.
        """
        if self.config.projection != "vocab":
            raise ValueError("only a predictor over the vocabulary can be fused with an output head")
        weights = self.state_dict()
        over_vocabulary, size = weights["projection.weight"], self.config.input_size
        rows, product = 0, None
        for block in torch.split(head, HEAD_ROWS_AT_ONCE) if isinstance(head, Tensor) else head:
            rows += len(block)
            if rows > size:
                break
            part = over_vocabulary[:, rows - len(block) : rows] @ block.to(over_vocabulary.dtype)
            product = part if product is None else product.add_(part)
        if rows != size or product is None:
            raise ValueError(f"the head does not have the {size:,} rows whose logits are read")
        fused = Predictor(replace(self.config, projection="hidden", input_size=product.shape[1]))
        fused.load_state_dict(weights | {"projection.weight": product})
        return fused.train(self.training)


class Scale(nn.Module):
    """Each dimension by itself: weight * x + bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


def pool(outputs: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """[B, L, D] and lengths [B] -> [B, D], of the positions within the lengths (paper, Eq. 8, Table IV)."""
    last = outputs[torch.arange(len(outputs), device=outputs.device), lengths - 1]
    if pooling == "last":
        return last
    if pooling == "first+last":
        return (outputs[:, 0] + last) / 2
    inside = (torch.arange(outputs.shape[1], device=outputs.device) < lengths[:, None])[..., None]
    if pooling == "max":
        return outputs.masked_fill(~inside, -torch.inf).amax(1)
    # Not a product with the mask, as what stands in the padding may be infinite or NaN.
    return outputs.masked_fill(~inside, 0.0).sum(1) / lengths[:, None]
