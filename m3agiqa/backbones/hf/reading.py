"""Rows of tokens that a model has read so far, and can read on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel


class Reading:
    """Columns are shared by all rows; those that are not a row's own are hidden from it by the mask."""

    def __init__(self, model: PreTrainedModel, cache: Cache, mask: Tensor, positions: Tensor) -> None:
        """`mask` [rows, columns] and `positions` [..., rows, columns] of what is in the cache."""
        self.model, self.cache, self.mask = model, cache, mask
        self.upcoming = positions.amax(-1) + 1
        """Positions [..., rows] of the tokens that come next; some models count in several dimensions."""

    def pick(self, rows: Tensor) -> Reading:
        """A reading of some rows, in this order, perhaps several times; this one stays as it is."""
        other = copy.copy(self)
        other.cache = copy.copy(self.cache)
        other.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        other.cache.reorder_cache(rows)
        other.mask, other.upcoming = self.mask[rows], self.upcoming[..., rows]
        return other

    def read(self, ids: Tensor, own: Tensor) -> Tensor:
        """States [rows, L, d] of more columns of tokens [rows, L]; `own` is 1 where they are a row's own."""
        self.mask = torch.cat([self.mask, own], dim=1)
        positions = (self.upcoming[..., None] + own.cumsum(1) - 1).clamp_min(0)
        self.upcoming = self.upcoming + own.sum(1)
        return self.model.base_model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def forget(self, row: int, count: int) -> None:
        """Hide the last columns, all of them the row's own, from it."""
        if count:
            self.mask[row, -count:] = 0
            self.upcoming[..., row] -= count
