"""From EfficientNet's feature maps to visual tokens in the language model's space."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3agiqa.backbones.nano.vision import DETAIL_GRID, GROUPS

WHOLE_TOKENS = 49
TOKENS_PER_DETAIL = 4
VISUAL_TOKENS = WHOLE_TOKENS + TOKENS_PER_DETAIL * DETAIL_GRID**2


class Connector(nn.Module):
    """[N, views, 7, 7, C] -> [N, VISUAL_TOKENS, hidden]: 7 x 7 of the whole image, 2 x 2 of each detail."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in GROUPS)
        self.up = nn.Linear(sum(GROUPS), 2 * hidden_size)
        self.down = nn.Linear(2 * hidden_size, hidden_size)
        self.place = nn.Parameter(torch.zeros(VISUAL_TOKENS, hidden_size))

    def forward(self, maps: Tensor) -> Tensor:
        n = maps.shape[0]
        whole = maps[:, 0].reshape(n, WHOLE_TOKENS, -1)
        details = F.adaptive_avg_pool2d(maps[:, 1:].flatten(0, 1).permute(0, 3, 1, 2), 2)
        details = details.permute(0, 2, 3, 1).reshape(n, -1, maps.shape[-1])
        x = torch.cat([whole, details], dim=1)
        x = torch.cat([norm(g) for norm, g in zip(self.norms, x.split(GROUPS, -1), strict=True)], -1)
        return self.down(F.gelu(self.up(x))) + self.place
