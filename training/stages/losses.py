"""What a predictor is fitted with: squared error (paper, Eq. 10), and losses about order.

The authors left ranking losses for later, as these need large batches; from cached hidden states they
cost next to nothing. All are weighted means, and take scores and MOS [N] in quarters of the MOS scale (points
of MOS on a scale of 1 to 5), and weights [N]: how many people stand behind each MOS. Without weights all
images count the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses that are added up; one with weight 0 is not computed."""

    mse: float = 1.0
    """Squared error (paper, Eq. 10)."""
    plcc: float = 0.0
    """One minus the linear correlation within the batch, halved."""
    rank: float = 0.0
    """RankNet: cross-entropy of which of two images is the better one."""
    fidelity: float = 0.0
    """Fidelity of the probability that one image is better than the other (Thurstone's model)."""
    within: float = 0.0
    """Squared error of differences inside a source, so that knowing the source is worth nothing."""
    worse: float = 0.05
    """Hinge that puts an image above its damaged copy, and its prompt above a wrong one."""
    margin: float = 0.5
    """How far above, in quarters of the MOS scale."""
    preference: float = 1.0
    """RankNet on pairs of images of which people have picked the better one."""
    made_up: float = 0.0
    """Squared error of damaged copies and wrong prompts with the scores that are made up for them."""


def agreement_loss(
    scores: Tensor,
    mos: Tensor,
    groups: Tensor,
    config: LossConfig,
    weights: Tensor | None = None,
    sources: Tensor | None = None,
) -> Tensor:
    """Squared error, and the losses about order among images of the same group [N] (aspect).

    `sources` [N] divides the groups further for the loss within sources; without it there is but one.
    """
    weights = _or_equal(weights, mos)
    loss = config.mse * (weights * (scores - mos) ** 2).sum() / weights.sum()
    if config.within:
        sources = torch.zeros_like(groups) if sources is None else sources
        inside = torch.stack([groups, sources], dim=1).unique(dim=0, return_inverse=True)[1]
        loss = loss + config.within * within_loss(scores, mos, inside, weights)
    members = [groups == group for group in groups.unique()]
    for weight, term in (
        (config.plcc, plcc_loss),
        (config.rank, rank_loss),
        (config.fidelity, fidelity_loss),
    ):
        if weight:
            terms = [term(scores[m], mos[m], weights[m]) for m in members]
            loss = loss + weight * torch.stack(terms).mean()
    return loss


def hinge(better: Tensor, worse: Tensor, margin: float) -> Tensor:
    """Zero where each score is at least `margin` above that of the worse variant."""
    return F.relu(margin - (better - worse)).mean()


def preference_loss(better: Tensor, worse: Tensor) -> Tensor:
    """RankNet on pairs [N]: log(1 + exp(s_worse - s_better))."""
    return F.softplus(worse - better).mean()


def plcc_loss(scores: Tensor, mos: Tensor, weights: Tensor | None = None) -> Tensor:
    """(1 - PLCC) / 2, in [0, 1]."""
    weights = _or_equal(weights, mos)

    def centred(values: Tensor) -> Tensor:
        return weights.sqrt() * (values - (weights * values).sum() / weights.sum())

    return (1 - F.cosine_similarity(centred(scores), centred(mos), dim=0)) / 2


def rank_loss(scores: Tensor, mos: Tensor, weights: Tensor | None = None) -> Tensor:
    """RankNet over all pairs with different MOS: log(1 + exp(s_worse - s_better)); 0 without pairs.

    A pair weighs as much as both its images, multiplied.
    """
    weights = _or_equal(weights, mos)
    better = (mos[:, None] > mos[None]) * weights[:, None] * weights[None]
    losses = F.softplus(scores[None] - scores[:, None])
    return (losses * better).sum() / better.sum().clamp_min(1)


def fidelity_loss(scores: Tensor, mos: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 - sqrt(p q) - sqrt((1 - p)(1 - q)) over all pairs, in [0, 1]; a pair weighs as in rank_loss.

    q is the probability that the first is better, from a normal distribution with variance 1 around each
    score; p is 1, 0, or one half for equal MOS.
    """
    weights = _or_equal(weights, mos)
    first, second = torch.triu_indices(len(scores), len(scores), offset=1, device=scores.device)
    if not len(first):
        return scores.sum() * 0
    p = (1 + torch.sign(mos[first] - mos[second])) / 2
    q = torch.special.ndtr((scores[first] - scores[second]) / 2**0.5).clamp(1e-6, 1 - 1e-6)
    losses = 1 - p.sqrt() * q.sqrt() - (1 - p).sqrt() * (1 - q).sqrt()
    pairs = weights[first] * weights[second]
    return (losses * pairs).sum() / pairs.sum()


def within_loss(scores: Tensor, mos: Tensor, groups: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error after each group's mean error is subtracted; groups [N]; 0 for a single image.

    The same as half the squared error of differences s_i - s_j over all pairs inside the groups.
    """
    weights = _or_equal(weights, mos)
    numbers = groups.unique(return_inverse=True)[1]
    shares = F.one_hot(numbers).to(mos.dtype) * weights[:, None]
    error = scores - mos
    group_means = (error @ shares) / shares.sum(0)
    return (weights * (error - group_means[numbers]) ** 2).sum() / weights.sum()


def _or_equal(weights: Tensor | None, mos: Tensor) -> Tensor:
    return torch.ones_like(mos) if weights is None else weights
