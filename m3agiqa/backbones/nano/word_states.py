"""Hidden states of single words, by the language model as it was before fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

N_LAYERS = 4  # of the language model; later ones represent the next word rather
BATCH_SIZE = 256  # words
CACHED_WORDS = 20_000


class WordStates:
    """States of words after the first layers; it keeps a copy of these, since adapters change the model's."""

    def __init__(self, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.embed = llm.get_input_embeddings()
        self.rotary = llm.model.rotary_emb
        # In 32 bit, as in 16 bit the states of a word depend on how many others are read with it.
        self.layers = copy.deepcopy(llm.model.layers[:N_LAYERS]).float().eval().requires_grad_(False)
        self._known: dict[str, Tensor] = {}

    def is_one_token(self, word: str) -> bool:
        return len(self._tokens(word)) == 2

    def states(self, words: Sequence[str]) -> Tensor:
        """[W, d] in 32 bit: the mean over the tokens of each word."""
        known = self._known  # the same one until the end, whatever another thread does
        new = [word for word in dict.fromkeys(words) if word not in known]
        if len(known) + len(new) > CACHED_WORDS:
            known = self._known = {}
            new = list(dict.fromkeys(words))
        for start in range(0, len(new), BATCH_SIZE):
            batch = new[start : start + BATCH_SIZE]
            known.update(zip(batch, self._compute(batch), strict=True))
        return torch.stack([known[word] for word in words])

    @torch.no_grad()
    def _compute(self, words: list[str]) -> Tensor:
        ids = [self._tokens(word) for word in words]
        length = max(map(len, ids))
        device = self.embed.weight.device
        padded = torch.tensor([row + row[:1] * (length - len(row)) for row in ids], device=device)
        own = torch.tensor([[1.0] * len(row) + [0.0] * (length - len(row)) for row in ids], device=device)
        x = self.embed(padded).float()
        self.layers.to(device)
        rotations = self.rotary(x, torch.arange(length, device=device)[None])
        causal = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype, device=device).triu(1)
        with torch.autocast(device.type, enabled=False):
            for layer in self.layers:
                x = layer(x, attention_mask=causal[None, None], position_embeddings=rotations)
        own = own[:, 1:, None]
        return (x[:, 1:].float() * own).sum(1) / own.sum(1)

    def _tokens(self, word: str) -> list[int]:
        """After a line break: all tokens attend to the first one, whose own state means little."""
        return self.tokenizer(f"\n {word}", add_special_tokens=False)["input_ids"]
