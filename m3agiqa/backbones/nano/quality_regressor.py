"""Quality and authenticity from image statistics: a ridge regression that is fitted in closed form.

It is fitted to people's scores and to those of a multimodal LLM that were brought to people's scale
(training.nano.fit_quality_regressor). The regression stays frozen; how the language model and the predictors
use its logits is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.nano.efficientnet_lite import N_STATISTICS
from m3agiqa.backbones.nano.nss_features import APPEARANCE_BLOCKS

JUDGED_ASPECTS = (Aspect.QUALITY, Aspect.AUTHENTICITY)
STATISTICS_BLOCKS = (N_STATISTICS, N_STATISTICS, *APPEARANCE_BLOCKS)
"""Numbers of each kind: of the vision encoder's stages for the whole image and for its own pixels, then those
of its appearance. Each kind counts the same, however many numbers it has."""
BLOCK_WEIGHTS = [size**-0.5 for size in STATISTICS_BLOCKS for _ in range(size)]
MAX_DEVIATION = 4.0  # standard deviations from the mean; statistics are clamped to this


class QualityRegressor(nn.Module):
    """Statistics [N, 2 N_STATISTICS] and [N, N_APPEARANCE] -> logits [N, JUDGED_ASPECTS], mean 0, std 1.

    Unfitted, they are 0. In 64 bit, which is cheap and is left alone by automatic mixed precision. Names of
    buffers are keys of connector.safetensors.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        size, judged = sum(STATISTICS_BLOCKS), len(JUDGED_ASPECTS)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("weight", torch.zeros(size, judged))
        self.register_buffer("bias", torch.zeros(judged))

    def deviations(self, statistics: Tensor, appearance: Tensor) -> Tensor:
        """Clamped z-scores [N, C] of all statistics over the images that this was fitted to."""
        x = torch.cat([statistics.double(), appearance.double()], dim=1)
        return ((x - self.mean) / self.std).clamp(-MAX_DEVIATION, MAX_DEVIATION)

    def standardize(self, statistics: Tensor, appearance: Tensor) -> Tensor:
        """Deviations [N, C], weighted so that each block has a mean square of about 1."""
        z = self.deviations(statistics, appearance)
        return z * z.new_tensor(BLOCK_WEIGHTS)

    def forward(self, statistics: Tensor, appearance: Tensor) -> Tensor:
        logits = self.standardize(statistics, appearance) @ self.weight.double() + self.bias.double()
        return logits.float()
