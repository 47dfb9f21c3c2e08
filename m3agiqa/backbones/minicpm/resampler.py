"""The resampler: learned queries that read a slice's patches, however many these are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

HEAD_WIDTH = 128
NORM_EPS = 1e-6


class Resampler(nn.Module):
    """Patches [N, P, vision width] of N slices -> [N, queries, width].

    Keys carry the two-dimensional position of their patch, so that slices of any shape can be read.
    """

    def __init__(self, queries: int, width: int, vision_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(queries, width))
        self.kv_proj = nn.Linear(vision_width, width, bias=False)
        self.attn = CrossAttention(width, max(1, width // HEAD_WIDTH))
        self.ln_q = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_kv = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_post = nn.LayerNorm(width, eps=NORM_EPS)
        self.proj = nn.Parameter(torch.empty(width, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random queries and projection; the other modules have their own."""
        nn.init.normal_(self.query, std=0.02)
        nn.init.normal_(self.proj, std=self.proj.shape[0] ** -0.5)

    def forward(self, patches: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """`sizes` are patch rows and columns; what a slice has beyond its own patches is not read."""
        values = self.ln_kv(self.kv_proj(patches.to(self.query.dtype)))  # [N, P, width]
        width = values.shape[-1]
        position_table = pad_sequence(
            [positions(rows, columns, width) for rows, columns in sizes], batch_first=True
        )
        own = pad_sequence([torch.ones(rows * columns) for rows, columns in sizes], batch_first=True).bool()
        length = position_table.shape[1]
        values = values[:, :length]
        queries = self.ln_q(self.query).expand(len(sizes), -1, -1)
        read = self.attn(queries, values + position_table.to(values), values, own.to(values.device))
        return self.ln_post(read) @ self.proj


class CrossAttention(nn.Module):
    """torch's MultiheadAttention, parameter by parameter, with every weight used by its own module.

    Theirs reads the weights of its output layer past that layer, which sharding (ZeRO-3) and LoRA miss.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, own: Tensor) -> Tensor:
        """[N, Q, d], [N, P, d], [N, P, d] and which patches [N, P] may be read -> [N, Q, d]."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        heads = [
            F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
        ]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=own[:, None, None])
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


@lru_cache(maxsize=64)
def positions(rows: int, columns: int, width: int) -> Tensor:
    """Sine-cosine positions [rows * columns, width] in 32 bit: the column's, then the row's."""
    omega = torch.arange(width // 4, dtype=torch.float32) / (width / 4)
    omega = 1.0 / 10_000**omega

    def encoded(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float32)[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    across = encoded(columns)[None].expand(rows, -1, -1)
    down = encoded(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([across, down], dim=-1).flatten(0, 1)
