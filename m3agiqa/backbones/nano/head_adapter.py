"""What people's corrected descriptions have taught nano: which words it prefers.

A low-rank change of the output head, for the tokens that descriptions consist of. The language model's hidden
states stay as they are, so that predictors still read what they were trained on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HEAD_ADAPTER_FILE = "head-adapter.safetensors"


class HeadAdapter(nn.Module):
    """Hidden states [N, d] -> what is added to the logits [N, V] of some tokens, by LoRA of the head."""

    tokens: Tensor
    """[V], ids."""

    def __init__(self, tokens: Tensor, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("tokens", tokens)
        self.down = nn.Parameter(torch.randn(rank, hidden_size) / hidden_size**0.5)
        self.up = nn.Parameter(torch.zeros(len(tokens), rank))

    @classmethod
    def read(cls, folder: Path) -> HeadAdapter | None:
        """Of a checkpoint; None if it has none."""
        path = folder / HEAD_ADAPTER_FILE
        if not path.exists():
            return None
        weights = load_file(path)
        rank, hidden_size = weights["down"].shape
        adapter = cls(weights["tokens"], hidden_size, rank)
        adapter.load_state_dict(weights)
        return adapter.eval().requires_grad_(False)

    def write(self, folder: Path) -> None:
        """Keep it in a checkpoint's folder."""
        weights = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / HEAD_ADAPTER_FILE)

    @torch.no_grad()
    def widened(self, tokens: Tensor) -> HeadAdapter:
        """A copy that adds the same to the logits, and can learn to change those of more tokens [V]."""
        rank, hidden_size = self.down.shape
        both = sorted({*self.tokens.tolist(), *tokens.tolist()})
        other = HeadAdapter(torch.tensor(both), hidden_size, rank)
        other.down.copy_(self.down)
        other.up[torch.searchsorted(other.tokens, self.tokens)] = self.up
        return other

    def forward(self, states: Tensor) -> Tensor:
        changes: Tensor = states.float() @ self.down.T @ self.up.T
        return changes

    def add_to(self, logits: Tensor, states: Tensor) -> Tensor:
        """Logits [N, vocab] in 32 bit, changed in place."""
        return logits.index_add_(1, self.tokens, self(states))
