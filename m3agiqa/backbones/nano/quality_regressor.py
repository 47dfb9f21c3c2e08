"""Quality and authenticity from image statistics: three regressions that are fitted in closed form.

They are fitted to differences between images of the same source only (training.nano.fit_quality_regressor),
so that recognising the source does not help. On images of unseen sources they agree better with people than
anything that is trained by gradient on some thousand images. They stay frozen; how the language model uses
their logits is trained.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.nano.efficientnet_lite import N_STATISTICS
from m3agiqa.backbones.nano.nss_features import N_APPEARANCE, N_BRISQUE

JUDGED_ASPECTS = (Aspect.QUALITY, Aspect.AUTHENTICITY)
N_LANDMARKS = 512  # images that the kernel ridge compares with; more do not help
MAX_DEVIATION = 4.0  # standard deviations from the mean; statistics are clamped to this

BRISQUE_FILE = Path(__file__).with_name("brisque.safetensors")
BRISQUE_WIDTH = 0.05
BRISQUE_SCALE = 10.0  # points of its 0 to 100, so that its weight is of the order of one


class QualityRegressor(nn.Module):
    """Statistics [N, N_STATISTICS] and [N, N_APPEARANCE] -> logits [N, JUDGED_ASPECTS], mean 0, std 1.

    A logit is the sum of a kernel ridge regression on the appearance, a ridge regression on the vision
    encoder's statistics, and the published BRISQUE metric; unfitted, it is 0. Names of buffers are keys of
    connector.safetensors.
    """

    landmarks: Tensor
    look_weight: Tensor
    stage_weight: Tensor
    brisque_weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        judged = len(JUDGED_ASPECTS)
        self.look = ClampedStandardization(N_APPEARANCE)
        self.stage = ClampedStandardization(N_STATISTICS)
        self.brisque = Brisque()
        self.register_buffer("landmarks", torch.zeros(N_LANDMARKS, N_APPEARANCE))
        self.register_buffer("look_weight", torch.zeros(N_LANDMARKS, judged))
        self.register_buffer("stage_weight", torch.zeros(N_STATISTICS, judged))
        self.register_buffer("brisque_weight", torch.zeros(1, judged))
        self.register_buffer("bias", torch.zeros(judged))

    def forward(self, statistics: Tensor, appearance: Tensor) -> Tensor:
        return self.parts(statistics, appearance).sum(0) + self.bias.float()

    def parts(self, statistics: Tensor, appearance: Tensor) -> Tensor:
        """What each of the three adds [3, N, JUDGED_ASPECTS], in 32 bit also where the model has less."""
        similarities = kernel(self.look(appearance), self.landmarks.double())
        parts = (
            similarities @ self.look_weight.double(),
            self.stage(statistics) @ self.stage_weight.double(),
            self.brisque(appearance[:, :N_BRISQUE]) @ self.brisque_weight.double(),
        )
        return torch.stack(parts).float()


class ClampedStandardization(nn.Module):
    """Statistics [N, C] -> z-scores, clamped.

    In 64 bit, as everything here: that is cheap, and automatic mixed precision leaves it alone.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return ((x.double() - self.mean) / self.spread).clamp(-MAX_DEVIATION, MAX_DEVIATION)


class Brisque(nn.Module):
    """The published metric: its statistics [N, N_BRISQUE] -> [N, 1], higher is better.

    A support vector regression on people's scores of distorted photographs (LIVE), as PyPI's `brisque` has
    it under Apache-2.0.
    """

    lowest: Tensor
    highest: Tensor
    support: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in load_file(BRISQUE_FILE).items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scaled = 2 * (x.double() - self.lowest) / (self.highest - self.lowest) - 1
        similarities = (-BRISQUE_WIDTH * _squared_distances(scaled, self.support.double())).exp()
        return -similarities @ self.weight.double()[:, None] / BRISQUE_SCALE


def kernel(x: Tensor, landmarks: Tensor) -> Tensor:
    """Similarity [N, M] in (0, 1] of z-scores [N, C] and [M, C]; a wide Gaussian."""
    return (-0.15 / x.shape[1] * _squared_distances(x, landmarks)).exp()


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return ((x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T).clamp_min(0)
