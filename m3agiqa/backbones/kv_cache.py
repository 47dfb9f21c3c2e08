"""The rows of a batch that a decoder has processed so far, and can go on with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import Cache

Forward = Callable[[Tensor, Tensor, Tensor, Cache], Tensor]
"""(ids [rows, L] or embeddings [rows, L, d], mask [rows, columns], positions [..., rows, L], cache) -> hidden
states [rows, L, d]; what is new is appended to the cache."""


def library_forward(model: nn.Module) -> Forward:
    """Of a model of transformers without its output head."""

    def forward(ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        states: Tensor = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return states

    return forward


class DecoderState:
    """KV cache, mask, next positions and hidden states of a batch.

    All rows share the columns; padding is hidden from its row by the mask. Prefixes of different lengths are
    best padded on the right: there every padded position attends to something, and attention kernels differ
    in what they return for positions that attend to nothing.
    """

    def __init__(
        self, forward: Forward, cache: Cache, hidden: Tensor, mask: Tensor, positions: Tensor
    ) -> None:
        """Of what the cache holds: hidden states [rows, columns, d], a mask [rows, columns] of 0 for padding,
        and positions [..., rows, columns]."""
        self.forward, self.cache, self.mask = forward, cache, mask
        self.columns = [hidden]
        self.next_positions = positions.amax(-1) + 1
        """[..., rows]; some models number positions in several dimensions."""

    @property
    def last(self) -> Tensor:
        """Hidden states [rows, d] of the last column."""
        return self.columns[-1][:, -1]

    def states(self) -> list[Tensor]:
        """Hidden states [L, d] of each row, without padding."""
        hidden = torch.cat(self.columns, dim=1)
        own = self.mask.bool().to(hidden.device)
        return [states[columns] for states, columns in zip(hidden, own, strict=True)]

    def select(self, rows: Tensor) -> DecoderState:
        """Another state with these rows, in this order, perhaps repeated; this one stays as it is."""
        other = copy.copy(self)
        other.cache = select_rows(self.cache, rows)
        hidden = torch.cat(self.columns, dim=1)
        other.columns = [hidden[rows.to(hidden.device)]]
        other.mask, other.next_positions = self.mask[rows], self.next_positions[..., rows]
        return other

    def append(self, inputs: Tensor, own: Tensor) -> None:
        """Process more columns: tokens [rows, L] or embeddings [rows, L, d]; `own` is 0 for padding."""
        inputs, own = inputs.to(self.mask.device), own.to(self.mask.device)
        self.mask = torch.cat([self.mask, own], dim=1)
        positions = (self.next_positions[..., None] + own.cumsum(1) - 1).clamp_min(0)
        self.next_positions = self.next_positions + own.sum(1)
        self.columns.append(self.forward(inputs, self.mask, positions, self.cache))

    def drop_last(self, row: int, count: int) -> None:
        """Hide the last columns, none of which is padding of this row, from it."""
        if count:
            self.mask[row, -count:] = 0
            self.next_positions[..., row] -= count


def select_rows(cache: Cache, rows: Tensor) -> Cache:
    """Another cache with these rows of one, which stays as it is."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in other.layers:  # recurrent ones keep their states in dictionaries
        states = {name: dict(own) for name, own in vars(layer).items() if isinstance(own, dict)}
        vars(layer).update(states)
    other.reorder_cache(rows)  # type: ignore[arg-type]  # any tensor of whole numbers
    return other


def padded(rows: Sequence[Sequence[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids [rows, L], padded on one side with each row's first, and a mask of 0 for padding."""
    length = max(map(len, rows))
    ids, own = [], []
    for row in rows:
        filling, nothing = [row[0]] * (length - len(row)), [0] * (length - len(row))
        shown = [1] * len(row)
        ids.append([*filling, *row] if left else [*row, *filling])
        own.append(nothing + shown if left else shown + nothing)
    return torch.tensor(ids), torch.tensor(own)
