"""Rows of tokens that a language model has read so far, and can read on."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache


class Reading:
    """Columns are shared by all rows; those that are not a row's own are hidden from it by the mask.

    Where beginnings of different lengths are read together, they are best filled up on the right: behind its
    own tokens every filling sees something, and kernels of attention differ in what they make of nothing.
    """

    def __init__(
        self, model: nn.Module, cache: Cache, hidden: Tensor, mask: Tensor, positions: Tensor
    ) -> None:
        """What is in the cache: states [rows, columns, d], which of them are a row's own [rows, columns], and
        positions [..., rows, columns]. `model` is called as the library calls a model without its head."""
        self.model, self.cache, self.mask = model, cache, mask
        self.columns = [hidden]
        self.upcoming = positions.amax(-1) + 1
        """Positions [..., rows] of the tokens that come next; some models count in several dimensions."""

    @property
    def last(self) -> Tensor:
        """States [rows, d] of the last column."""
        return self.columns[-1][:, -1]

    def states(self) -> list[Tensor]:
        """Each row's own states [L, d]."""
        hidden = torch.cat(self.columns, dim=1)
        own = self.mask.bool().to(hidden.device)
        return [states[places] for states, places in zip(hidden, own, strict=True)]

    def pick(self, rows: Tensor) -> Reading:
        """A reading of some rows, in this order, perhaps several times; this one stays as it is."""
        other = copy.copy(self)
        other.cache = copy.copy(self.cache)
        other.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        other.cache.reorder_cache(rows)
        hidden = torch.cat(self.columns, dim=1)
        other.columns = [hidden[rows.to(hidden.device)]]
        other.mask, other.upcoming = self.mask[rows], self.upcoming[..., rows]
        return other

    def read(self, ids: Tensor, own: Tensor) -> None:
        """Append columns of tokens [rows, L]; `own` is 1 where they are a row's own."""
        ids, own = ids.to(self.mask.device), own.to(self.mask.device)
        self.mask = torch.cat([self.mask, own], dim=1)
        positions = (self.upcoming[..., None] + own.cumsum(1) - 1).clamp_min(0)
        self.upcoming = self.upcoming + own.sum(1)
        hidden = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.columns.append(hidden)

    def forget(self, row: int, count: int) -> None:
        """Hide the last columns, all of them the row's own, from it."""
        if count:
            self.mask[row, -count:] = 0
            self.upcoming[..., row] -= count


def padded(rows: Sequence[Sequence[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids [rows, L], filled up on one side with each row's first, and 1 where they are a row's own."""
    length = max(map(len, rows))
    ids, own = [], []
    for row in rows:
        filling, nothing = [row[0]] * (length - len(row)), [0] * (length - len(row))
        shown = [1] * len(row)
        ids.append([*filling, *row] if left else [*row, *filling])
        own.append(nothing + shown if left else shown + nothing)
    return torch.tensor(ids), torch.tensor(own)
