"""From image features to visual tokens in the language model's embedding space."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3agiqa.backbones.nano.efficientnet_lite import CHANNEL_GROUPS, grid_cells
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS, QualityRegressor

WHOLE_GRID, FINE_GRID = 7, 4  # cells a side
GRID_TOKENS = WHOLE_GRID**2 + FINE_GRID**2
SUMMARY_TOKENS = len(JUDGED_ASPECTS)
VISUAL_TOKENS = GRID_TOKENS + SUMMARY_TOKENS
ANGLE_PER_UNIT = math.pi / 8  # by which a logit of 1 rotates its token; 4 or more: by a right angle
LOGIT_NOISE = 0.7  # standard deviation in training, as the regressor errs less on images it was fitted to
EMBEDDING_SCALE = 0.13  # root mean square of a typical word embedding of the language model


class ImageFeatures(NamedTuple):
    """What is computed from the pixels of N images, before anything that is trained by gradient."""

    grid_cells: Tensor
    """[N, GRID_TOKENS, sum(CHANNEL_GROUPS)], of the vision encoder."""
    statistics: Tensor
    """[N, N_STATISTICS], of the vision encoder's stages."""
    appearance: Tensor
    """[N, N_APPEARANCE], of the pixels."""
    colours: Tensor
    """[N, 11], of the pixels: which colours there are."""
    encoder_scores: Tensor
    """[N, JUDGED_ASPECTS], of the quality encoder."""


def gather_grid_cells(whole: list[Tensor], fine: list[Tensor]) -> Tensor:
    """Feature maps of the image at two resolutions -> [N, GRID_TOKENS, C]: 7 x 7 cells, then 4 x 4."""
    return torch.cat([grid_cells(whole, WHOLE_GRID), grid_cells(fine, FINE_GRID)], dim=1)


class Connector(nn.Module):
    """Image features -> [N, VISUAL_TOKENS, hidden]: a token a grid cell, then one a quality logit.

    The grid tokens say what is where. The overall quality is spread thinly over all of them, so the summary
    tokens repeat it where a small language model and the predictor find it. They depend on nothing but the
    quality logits, so that neither can recognise the source of an image in them.

    Names of attributes are keys of connector.safetensors; some of them have a second, telling name.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in CHANNEL_GROUPS)
        self.up = nn.Linear(sum(CHANNEL_GROUPS), 2 * hidden_size)
        self.down = nn.Linear(2 * hidden_size, hidden_size)
        self.place = nn.Parameter(torch.zeros(GRID_TOKENS, hidden_size))
        self.opinions = QualityRegressor()
        self.compass = nn.Parameter(torch.empty(2, SUMMARY_TOKENS, hidden_size))
        nn.init.orthogonal_(self.compass.data.view(2 * SUMMARY_TOKENS, hidden_size))
        with torch.no_grad():
            self.compass.mul_(hidden_size**0.5)
        self.scale = nn.RMSNorm(hidden_size, eps=1e-6)
        nn.init.constant_(self.scale.weight, EMBEDDING_SCALE)

    @property
    def grid_embedding(self) -> nn.Parameter:
        """Position embeddings [GRID_TOKENS, hidden]."""
        return self.place

    @property
    def quality_regressor(self) -> QualityRegressor:
        return self.opinions

    @property
    def token_basis(self) -> nn.Parameter:
        """[2, SUMMARY_TOKENS, hidden]: directions of the summary tokens for a logit of 0 and a high one."""
        return self.compass

    def quality_logits(self, features: ImageFeatures) -> Tensor:
        """[N, SUMMARY_TOKENS]."""
        logits: Tensor = self.quality_regressor(
            features.statistics, features.appearance, features.encoder_scores
        )
        return logits

    def forward(self, features: ImageFeatures, quality_logits: Tensor | None = None) -> Tensor:
        """The logits are computed where they are not given."""
        if quality_logits is None:
            quality_logits = self.quality_logits(features)
        return torch.cat([self.grid_tokens(features.grid_cells), self.summary_tokens(quality_logits)], dim=1)

    def grid_tokens(self, cells: Tensor) -> Tensor:
        """[N, GRID_TOKENS, C] -> [N, GRID_TOKENS, hidden]."""
        groups = torch.split(cells, list(CHANNEL_GROUPS), -1)
        x = torch.cat([norm(group) for norm, group in zip(self.norms, groups, strict=True)], dim=-1)
        tokens: Tensor = self.scale(self.down(F.gelu(self.up(x))) + self.grid_embedding)
        return tokens

    def summary_tokens(self, quality_logits: Tensor) -> Tensor:
        """[N, SUMMARY_TOKENS, hidden]: each logit is the angle between its token and a direction.

        The length of the tokens carries nothing, as a norm comes before everything that reads them.
        """
        if self.training:
            quality_logits = quality_logits + LOGIT_NOISE * torch.randn_like(quality_logits)
        angle = (ANGLE_PER_UNIT * quality_logits).clamp(-math.pi / 2, math.pi / 2)[..., None]
        neutral, better = self.token_basis
        tokens: Tensor = self.scale((angle.cos() * neutral + angle.sin() * better).to(neutral.dtype))
        return tokens
