"""Hidden states of single words, by the language model as it was before fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

N_LAYERS = 4  # of the language model; later ones represent the next word rather
BATCH_SIZE = 16  # words; batches of one shape only, as states round otherwise in a batch of another
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
        return self._length(word) == 2

    def states(self, words: Sequence[str]) -> Tensor:
        """[W, d] in 32 bit: the mean over the tokens of each word."""
        known = self._known  # the same one until the end, whatever another thread does
        new = [word for word in dict.fromkeys(words) if word not in known]
        if len(known) + len(new) > CACHED_WORDS:
            known = self._known = {}
            new = list(dict.fromkeys(words))
        for _, group in groupby(sorted(new, key=self._length), self._length):
            alike = list(group)
            for start in range(0, len(alike), BATCH_SIZE):
                batch = alike[start : start + BATCH_SIZE]
                known.update(zip(batch, self._compute(batch), strict=True))
        return torch.stack([known[word] for word in words])

    @torch.no_grad()
    def _compute(self, words: list[str]) -> Tensor:
        """[W, d] of at most BATCH_SIZE words that have as many tokens each."""
        filled = words + words[:1] * (BATCH_SIZE - len(words))
        device = self.embed.weight.device
        ids = torch.tensor([self._tokens(word) for word in filled], device=device)
        length = ids.shape[1]
        x = self.embed(ids).float()
        self.layers.to(device)
        rotations = self.rotary(x, torch.arange(length, device=device)[None])
        causal = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype, device=device).triu(1)
        with torch.autocast(device.type, enabled=False):
            for layer in self.layers:
                x = layer(x, attention_mask=causal[None, None], position_embeddings=rotations)
        return x[: len(words), 1:].float().mean(1)

    def _length(self, word: str) -> int:
        return len(self._tokens(word))

    def _tokens(self, word: str) -> list[int]:
        """After a line break: all tokens attend to the first one, whose own state means little."""
        return self.tokenizer(f"\n {word}", add_special_tokens=False)["input_ids"]
