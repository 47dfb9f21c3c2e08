"""From EfficientNet's feature maps to visual tokens in the language model's space."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3agiqa.backbones.nano.vision import DETAIL_GRID, GROUPS

WHOLE_TOKENS = 49
TOKENS_PER_DETAIL = 4
PLACE_TOKENS = WHOLE_TOKENS + TOKENS_PER_DETAIL * DETAIL_GRID**2
SUMMARY_TOKENS = 4
VISUAL_TOKENS = PLACE_TOKENS + SUMMARY_TOKENS
BOTTLENECK = 256
HEAD_SHARE = 0.3  # weight of what is seen (the head's many channels) beside how it looks (the stages)
EMBEDDING_SCALE = 0.13  # root mean square of a typical word embedding of the language model


def gather(maps: Tensor) -> Tensor:
    """[N, views, 7, 7, C] -> [N, PLACE_TOKENS, C]: 7 x 7 of the whole image, 2 x 2 of each detail."""
    n, channels = maps.shape[0], maps.shape[-1]
    whole = maps[:, 0].reshape(n, WHOLE_TOKENS, channels)
    details = F.adaptive_avg_pool2d(maps[:, 1:].flatten(0, 1).permute(0, 3, 1, 2), 2)
    return torch.cat([whole, details.permute(0, 2, 3, 1).reshape(n, -1, channels)], dim=1)


class Connector(nn.Module):
    """[N, PLACE_TOKENS, C] -> [N, VISUAL_TOKENS, hidden]: a token a place, then a few about the whole.

    The places say what is where. How good the image looks is spread thinly over all of them, so the
    summary tokens gather it where a small language model finds it.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in GROUPS)
        self.up = nn.Linear(sum(GROUPS), 2 * hidden_size)
        self.down = nn.Linear(2 * hidden_size, hidden_size)
        self.place = nn.Parameter(torch.zeros(PLACE_TOKENS, hidden_size))
        stages = sum(GROUPS[1:])
        self.summary = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(2 * (GROUPS[0] + 2 * stages), BOTTLENECK),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(BOTTLENECK, SUMMARY_TOKENS * hidden_size),
        )
        self.scale = nn.RMSNorm(hidden_size, eps=1e-6)
        nn.init.constant_(self.scale.weight, EMBEDDING_SCALE)

    def forward(self, features: Tensor) -> Tensor:
        x = [norm(group) for norm, group in zip(self.norms, features.split(GROUPS, -1), strict=True)]
        x = torch.cat(x, dim=-1)
        places = self.down(F.gelu(self.up(x))) + self.place
        overview = torch.cat([_overview(x[:, :WHOLE_TOKENS]), _overview(x[:, WHOLE_TOKENS:])], dim=-1)
        summary = self.summary(overview).unflatten(-1, (SUMMARY_TOKENS, -1))
        return self.scale(torch.cat([places, summary], dim=1))


def _overview(x: Tensor) -> Tensor:
    """[N, T, C] -> mean of all channels over the places, and spread of the stages' channels."""
    head, stages = x[..., : GROUPS[0]], x[..., GROUPS[0] :]
    return torch.cat([HEAD_SHARE * head.mean(1), stages.mean(1), stages.std(1)], dim=-1)
