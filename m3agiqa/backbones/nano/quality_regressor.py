"""What an image's looks say about its scores: three readers that are fitted in closed form.

They learn from differences between images of the same source only
(training.nano.fit_quality_regressor), so that knowing the source is worth nothing,
and they agree better with people on images of unseen sources than anything that learns by gradient from some
thousand images. They are kept frozen; how the language model takes their
opinions is learned.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.nano.efficientnet_lite import STATISTICS
from m3agiqa.backbones.nano.nss_features import APPEARANCE, BRISQUE

JUDGED = (Aspect.QUALITY, Aspect.AUTHENTICITY)
LANDMARKS = 512  # images that the kernel compares with; more do not help
FARTHEST = 4.0  # standard deviations that a number may lie off the usual

BRISQUE_FILE = Path(__file__).with_name("brisque.safetensors")
BRISQUE_WIDTH = 0.05
BRISQUE_TYPICAL = 10.0  # points, on its scale of about 0 to 100, so that its weight is of the order of one


class Opinions(nn.Module):
    """Statistics [N, STATISTICS] and [N, APPEARANCE] -> opinions [N, JUDGED]: mean 0, spread about 1.

    An opinion is the sum of what is read from the appearance (kernel ridge), from the vision encoder's
    stages (ridge) and from the published BRISQUE metric. Unfitted, it is always 0.
    """

    def __init__(self) -> None:
        super().__init__()
        judged = len(JUDGED)
        self.look = Scaling(APPEARANCE)
        self.stage = Scaling(STATISTICS)
        self.brisque = Brisque()
        self.register_buffer("landmarks", torch.zeros(LANDMARKS, APPEARANCE))
        self.register_buffer("look_weight", torch.zeros(LANDMARKS, judged))
        self.register_buffer("stage_weight", torch.zeros(STATISTICS, judged))
        self.register_buffer("brisque_weight", torch.zeros(1, judged))
        self.register_buffer("bias", torch.zeros(judged))

    def forward(self, statistics: Tensor, appearance: Tensor) -> Tensor:
        return self.parts(statistics, appearance).sum(0) + self.bias.float()

    def parts(self, statistics: Tensor, appearance: Tensor) -> Tensor:
        """What each of the three readers adds [3, N, JUDGED], in 32 bit also where the model has less."""
        near = kernel(self.look(appearance), self.landmarks.double())
        read = (
            near @ self.look_weight.double(),
            self.stage(statistics) @ self.stage_weight.double(),
            self.brisque(appearance[:, :BRISQUE]) @ self.brisque_weight.double(),
        )
        return torch.stack(read).float()


class Scaling(nn.Module):
    """Numbers [N, C] of all sizes to some of about 1, of which none is far off.

    In 64 bit, as everything here: that is cheap, and automatic mixed precision leaves it alone.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return ((x.double() - self.mean) / self.spread).clamp(-FARTHEST, FARTHEST)


class Brisque(nn.Module):
    """The published metric: its numbers [N, BRISQUE] -> [N, 1], higher is better.

    A support vector regression on people's scores of distorted photographs (LIVE), as PyPI's `brisque` has
    it under Apache-2.0.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in load_file(BRISQUE_FILE).items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scaled = 2 * (x.double() - self.lowest) / (self.highest - self.lowest) - 1
        near = (-BRISQUE_WIDTH * _squared_distances(scaled, self.support.double())).exp()
        return -near @ self.weight.double()[:, None] / BRISQUE_TYPICAL


def kernel(x: Tensor, landmarks: Tensor) -> Tensor:
    """Likeness [N, M] in (0, 1] of standardised numbers [N, C] and [M, C]; a wide Gaussian."""
    return (-0.15 / x.shape[1] * _squared_distances(x, landmarks)).exp()


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return ((x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T).clamp_min(0)
