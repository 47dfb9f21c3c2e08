"""Quality and authenticity: a ridge regression on image statistics, and the fine-tuned encoder's scores.

Both are fitted to people's scores and to those of a multimodal LLM that were brought to people's scale
(training.nano). The encoder is better on images like those of the large data sets that it has learned from,
and worse on others: a gate says how much it counts. All of this stays frozen; how the language model and the
predictors use the logits is trained.
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
ENCODER_SHARE = 0.5  # of the logits, where the gate is open
MAX_DEVIATION = 4.0  # standard deviations from the mean; statistics are clamped to this


class QualityRegressor(nn.Module):
    """Statistics [N, 2 N_STATISTICS] and [N, N_APPEARANCE], and the encoder's scores -> logits.

    Scores of the quality encoder and logits are [N, JUDGED_ASPECTS]. Logits have mean 0 and standard
    deviation 1 over what they are fitted to; unfitted, they are 0. In 64 bit, which is cheap and is left
    alone by automatic mixed precision. Names of buffers are keys of connector.safetensors.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    encoder_weight: Tensor
    """[JUDGED_ASPECTS], of the quality encoder's scores."""
    gate_weight: Tensor
    """[C], of the statistics: how much an image is like those that the encoder has learned most from."""
    gate_bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        size, judged = sum(STATISTICS_BLOCKS), len(JUDGED_ASPECTS)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("weight", torch.zeros(size, judged))
        self.register_buffer("bias", torch.zeros(judged))
        self.register_buffer("encoder_weight", torch.zeros(judged))
        self.register_buffer("gate_weight", torch.zeros(size))
        self.register_buffer("gate_bias", torch.zeros(()))

    def deviations(self, statistics: Tensor, appearance: Tensor) -> Tensor:
        """Clamped z-scores [N, C] of all statistics over the images that this was fitted to."""
        x = torch.cat([statistics.double(), appearance.double()], dim=1)
        return ((x - self.mean) / self.std).clamp(-MAX_DEVIATION, MAX_DEVIATION)

    def standardize(self, statistics: Tensor, appearance: Tensor) -> Tensor:
        """Deviations [N, C], weighted so that each block has a mean square of about 1."""
        z = self.deviations(statistics, appearance)
        return z * z.new_tensor(BLOCK_WEIGHTS)

    def forward(self, statistics: Tensor, appearance: Tensor, encoder_scores: Tensor) -> Tensor:
        x = self.standardize(statistics, appearance)
        ridge = x @ self.weight.double() + self.bias.double()
        encoded = encoder_scores.double() * self.encoder_weight.double()
        return torch.lerp(ridge, encoded, ENCODER_SHARE * self._gate(x)[:, None]).float()

    def of_own_pixels(self, statistics: Tensor) -> Tensor:
        """The vision encoder's statistics of windows at own pixels [W, N_STATISTICS] -> their share of the
        ridge's logits [W, JUDGED_ASPECTS]."""
        columns = slice(N_STATISTICS, 2 * N_STATISTICS)
        z = (statistics.double() - self.mean[columns]) / self.std[columns]
        weighted = z.clamp(-MAX_DEVIATION, MAX_DEVIATION) * z.new_tensor(BLOCK_WEIGHTS[columns])
        return weighted @ self.weight[columns].double()

    def gate(self, statistics: Tensor, appearance: Tensor) -> Tensor:
        """[N], from 0, where the encoder does not count, to 1."""
        return self._gate(self.standardize(statistics, appearance))

    def _gate(self, x: Tensor) -> Tensor:
        return (x @ self.gate_weight.double() + self.gate_bias.double()).clamp(0, 1)
