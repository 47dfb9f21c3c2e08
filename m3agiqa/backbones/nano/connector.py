"""From what nano sees of an image to visual tokens in the language model's space."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3agiqa.backbones.nano.efficientnet_lite import GROUPS, places
from m3agiqa.backbones.nano.quality_regressor import JUDGED, Opinions

WHOLE_SIDE, FINE_SIDE = 7, 4  # places a side
PLACE_TOKENS = WHOLE_SIDE**2 + FINE_SIDE**2
SUMMARY_TOKENS = len(JUDGED)
VISUAL_TOKENS = PLACE_TOKENS + SUMMARY_TOKENS
TURN = math.pi / 8  # how far an opinion of 1 turns its token; of 4 or more: to a right angle
DOUBT = 0.7  # spread of the noise on opinions in training, as readers are too right about images they know
EMBEDDING_SCALE = 0.13  # root mean square of a typical word embedding of the language model


class Seen(NamedTuple):
    """What is seen of N images."""

    places: Tensor
    """[N, PLACE_TOKENS, sum(GROUPS)], of the vision encoder."""
    statistics: Tensor
    """[N, STATISTICS], of the vision encoder's stages."""
    appearance: Tensor
    """[N, APPEARANCE], of the pixels."""
    colours: Tensor
    """[N, 11], likewise; which are there."""


def gather(whole: list[Tensor], fine: list[Tensor]) -> Tensor:
    """Maps of the image at two resolutions -> [N, PLACE_TOKENS, C]: 7 x 7 places, then 4 x 4."""
    return torch.cat([places(whole, WHOLE_SIDE), places(fine, FINE_SIDE)], dim=1)


class Connector(nn.Module):
    """What is seen -> [N, VISUAL_TOKENS, hidden]: a token a place, then one for each opinion.

    The places say what is where. How good the image looks is spread thinly over all of them, so the
    summary tokens say it where a small language model and the predictor find it. They know nothing but the
    opinions, so that neither can recognise the source of an image in them.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in GROUPS)
        self.up = nn.Linear(sum(GROUPS), 2 * hidden_size)
        self.down = nn.Linear(2 * hidden_size, hidden_size)
        self.place = nn.Parameter(torch.zeros(PLACE_TOKENS, hidden_size))
        self.opinions = Opinions()
        self.compass = nn.Parameter(torch.empty(2, SUMMARY_TOKENS, hidden_size))
        nn.init.orthogonal_(self.compass.data.view(2 * SUMMARY_TOKENS, hidden_size))
        with torch.no_grad():
            self.compass *= hidden_size**0.5
        self.scale = nn.RMSNorm(hidden_size, eps=1e-6)
        nn.init.constant_(self.scale.weight, EMBEDDING_SCALE)

    def forward(self, seen: Seen) -> Tensor:
        return torch.cat(
            [self.place_tokens(seen.places), self.summary_tokens(seen.statistics, seen.appearance)], dim=1
        )

    def place_tokens(self, features: Tensor) -> Tensor:
        """[N, PLACE_TOKENS, C] -> [N, PLACE_TOKENS, hidden]."""
        x = [norm(group) for norm, group in zip(self.norms, features.split(GROUPS, -1), strict=True)]
        return self.scale(self.down(F.gelu(self.up(torch.cat(x, dim=-1)))) + self.place)

    def summary_tokens(self, statistics: Tensor, appearance: Tensor) -> Tensor:
        """[N, SUMMARY_TOKENS, hidden]: each opinion is the angle between its token and a direction.

        The tokens' length says nothing, as a norm comes before everything that reads them.
        """
        opinions = self.opinions(statistics, appearance)
        if self.training:
            opinions = opinions + DOUBT * torch.randn_like(opinions)
        angle = (TURN * opinions).clamp(-math.pi / 2, math.pi / 2)[..., None]
        usual, better = self.compass
        return self.scale((angle.cos() * usual + angle.sin() * better).to(usual.dtype))
