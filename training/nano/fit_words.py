"""Fits what nano writes to people's corrected descriptions and scores: its head adapter, its first estimates.

Only the last step from hidden states to words learns, from states that are computed once, so that it takes
seconds. People's words become likelier, and where they first depart from the model's own, they are to be
preferred to these. The model's own descriptions of what nobody has described are learned again (rehearsal).
A fifth of the images decides how long to learn, if at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from m3agiqa.aspects import COMMON_SCALE
from m3agiqa.backbones.nano.grounded_text import FirstEstimate
from m3agiqa.backbones.nano.head_adapter import HeadAdapter
from m3agiqa.checkpoint.comparison import MIN_DESCRIBED_IMAGES
from m3agiqa.errors import InputError
from training.stages.adapt import shrunken_line
from training.stages.finetune import FinetuneConfig

DECIDING_SHARE = 0.2  # of the images, which decide how many epochs are best
BATCH_TOKENS = 512


@dataclass(frozen=True)
class WordsConfig:
    """Fine-tuning on people's descriptions, where there are enough."""

    min_texts: int = MIN_DESCRIBED_IMAGES
    """Training images with people's descriptions; with fewer, words stay as they are."""
    rank: int = 8
    """LoRA rank of nano's head adapter."""
    epochs: int = 20
    """At most; nano's best number is found on a fifth of the training images."""
    lr: float = 3e-3
    """Of nano's head adapter."""
    rehearsal: float = 0.5
    """Weight of the model's own descriptions beside people's."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """For other backbones, whose vision encoder is tuned."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.min_texts, self.rank, self.epochs) < 1:
            raise InputError("words: min_texts, rank and epochs must be at least 1.")


@dataclass(frozen=True)
class DescriptionTokens:
    """The tokens of some descriptions, each with the hidden state before it. All have N rows."""

    states: Tensor
    """[N, d]"""
    ids: Tensor
    rejected: Tensor
    """What the model itself writes at this place, where people's description first departs from its own;
    elsewhere -1."""
    weights: Tensor
    images: Tensor
    """The number of the image that each is about."""

    @classmethod
    def join(cls, parts: Sequence[DescriptionTokens]) -> DescriptionTokens:
        """All of them in order."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))


class HeadLosses:
    """Losses (nats) of tokens under a head [vocab, d] that an adapter changes for some of them."""

    def __init__(self, head: Tensor, tokens: Tensor, described: DescriptionTokens) -> None:
        """tokens: ids [V] of the adapter. What it cannot change is computed once."""
        self.described, self.tokens, self.head = described, tokens, head[tokens]
        place = torch.full((len(head),), -1)
        place[tokens] = torch.arange(len(tokens))
        self.place, self.rejected = place[described.ids], place[described.rejected.clamp(min=0)]
        others, own = [], []
        for states, ids in zip(
            described.states.split(BATCH_TOKENS), described.ids.split(BATCH_TOKENS), strict=True
        ):
            logits = states @ head.T
            own.append(logits.gather(1, ids[:, None])[:, 0])
            logits[:, tokens] = -torch.inf
            others.append(logits.logsumexp(1))
        self.others, self.own = torch.cat(others), torch.cat(own)

    def __call__(self, adapter: HeadAdapter | None, chosen: Tensor) -> Tensor:
        """Cross-entropies of the tokens at some places [n], [n]."""
        logits = self._logits(adapter, chosen)
        place = self.place[chosen]
        target = torch.where(place >= 0, _pick(logits, place), self.own[chosen])
        return torch.logaddexp(self.others[chosen], logits.logsumexp(1)) - target

    def objective(self, adapter: HeadAdapter | None, chosen: Tensor) -> Tensor:
        """What is minimised: the mean cross-entropy, and where people departed from the model's words that of
        choosing theirs over its own."""
        weights = self.described.weights[chosen]
        loss = (self(adapter, chosen) * weights).sum() / weights.sum()
        departed = chosen[self.described.rejected[chosen] >= 0]
        if not len(departed):
            return loss
        logits = self._logits(adapter, departed)
        margin = _pick(logits, self.place[departed]) - _pick(logits, self.rejected[departed])
        return loss + F.softplus(-margin).mean()

    def _logits(self, adapter: HeadAdapter | None, chosen: Tensor) -> Tensor:
        """Of the adapter's tokens, [n, V]."""
        states = self.described.states[chosen]
        logits = states @ self.head.T
        return logits if adapter is None else logits + adapter(states)


def _pick(logits: Tensor, place: Tensor) -> Tensor:
    return logits.gather(1, place.clamp(min=0)[:, None])[:, 0]


def fit_head_adapter(
    head: Tensor, start: HeadAdapter | None, described: DescriptionTokens, config: WordsConfig
) -> HeadAdapter | None:
    """An adapter of a head [vocab, d] that makes people's words likelier; `start` where it would not help.

    Learning goes on from `start`, for what it has learned is no longer to be seen in the model's own words.
    """
    tokens = torch.cat([described.ids, described.rejected[described.rejected >= 0]]).unique()
    if start is None:
        torch.manual_seed(config.seed)
        begun = HeadAdapter(tokens, head.shape[1], config.rank)
        with torch.no_grad():  # what it reads has unit variance, whatever the model
            begun.down.div_(described.states.square().mean().sqrt())
    else:
        begun = start.widened(tokens)
    tokens = begun.tokens
    losses = HeadLosses(head, tokens, described)
    names = described.images.unique().tolist()
    Random(config.seed).shuffle(names)
    deciding = torch.isin(described.images, torch.tensor(names[: round(DECIDING_SHARE * len(names))]))
    learning, held_out = (~deciding).nonzero()[:, 0], deciding.nonzero()[:, 0]

    @torch.no_grad()
    def held_out_loss(adapter: HeadAdapter | None) -> float:
        return float(losses.objective(adapter, held_out))

    curve = [held_out_loss(begun)]
    _learn(
        begun, losses, learning, config, config.epochs, lambda adapter: curve.append(held_out_loss(adapter))
    )
    best = int(np.argmin(curve))
    if best == 0:
        return start
    everything = torch.arange(len(described.ids))
    return _learn(begun, losses, everything, config, best, lambda adapter: None)


def _learn(
    begun: HeadAdapter,
    losses: HeadLosses,
    chosen: Tensor,
    config: WordsConfig,
    epochs: int,
    after_epoch: Callable[[HeadAdapter], None],
) -> HeadAdapter:
    """A copy of an adapter, after some epochs over the tokens at some places."""
    torch.manual_seed(config.seed)
    adapter = copy.deepcopy(begun)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=config.lr)
    for _ in range(epochs):
        for part in chosen[torch.randperm(len(chosen))].split(BATCH_TOKENS):
            optimizer.zero_grad()
            losses.objective(adapter, part).backward()
            optimizer.step()
        after_epoch(adapter)
    return adapter.eval().requires_grad_(False)


@torch.no_grad()
def mean_token_loss(head: Tensor, adapter: HeadAdapter | None, described: DescriptionTokens) -> float:
    """Nats per token of descriptions under a head [vocab, d] with an adapter."""
    tokens = described.ids.unique() if adapter is None else adapter.tokens
    return float(HeadLosses(head, tokens, described)(adapter, torch.arange(len(described.ids))).mean())


def moved_first_estimate(
    estimate: FirstEstimate, logits: Sequence[float], scores: Sequence[float]
) -> FirstEstimate:
    """An aspect's first estimate, moved towards people's scores [n] on COMMON_SCALE as far as they carry."""
    old = np.clip(estimate.intercept + estimate.slope * np.array(logits), COMMON_SCALE.low, COMMON_SCALE.high)
    gain, level = shrunken_line(old, np.array(scores, dtype=float), np.ones(len(old)))
    return FirstEstimate(gain * estimate.intercept + level, max(gain * estimate.slope, 0.0))
