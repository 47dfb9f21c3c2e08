"""A batch of conversations while it is spoken, token by token."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from m3agiqa.aspects import RATINGS
from m3agiqa.backbones.base import Delta, Request, Spoken
from m3agiqa.errors import InputError

if TYPE_CHECKING:
    from m3agiqa.backbones.hf.backbone import HfBackbone

MAX_NEW_TOKENS = 128  # the longest teacher description has 53 words
MAX_CLOSING = 64  # tokens of the second question
SENTENCE_ENDS = (".", "!", "?")


class Speech:
    """Columns: beginning | questions (left-padded) | descriptions | second questions.

    A row that has ended is masked out of the columns that the others still need, until it is parted from
    them to be rated.
    """

    def __init__(self, backbone: HfBackbone, requests: Sequence[Request], first: int = 0) -> None:
        """All requests with an image or all without; `first` is the number of their first row."""
        self.backbone, self.chat = backbone, backbone.chat
        self.shown = requests[0].image is not None
        self.conversations = [c for request in requests for c in request.conversations]
        owners = [i for i, request in enumerate(requests) for _ in request.conversations]
        questions = [self.chat.rest(conversation, self.shown).ids for conversation in self.conversations]
        begun, reading = backbone.begin([request.image for request in requests])
        self._check_length(reading.mask.shape[1] + max(map(len, questions)))
        self.reading = reading.pick(backbone.tensor(owners))
        ids, own = backbone.padded(questions, left=True)
        hidden = self.reading.read(ids, own)
        self.states = [[begun[o], h[s.bool()]] for o, h, s in zip(owners, hidden, own, strict=True)]
        self.last = hidden[:, -1]
        self.rows = list(range(first, first + len(questions)))
        self.said: list[list[int]] = [[] for _ in questions]
        self.text = ["" for _ in questions]
        self.done = [False for _ in questions]
        self.steps = 0

    def part(self, indices: list[int]) -> Speech:
        """Some of the rows as a speech of their own."""
        if len(indices) == len(self.rows):
            return self
        part = copy.copy(self)
        for name in ("rows", "conversations", "states", "said", "text", "done"):
            setattr(part, name, [getattr(self, name)[i] for i in indices])
        pick = self.backbone.tensor(indices)
        part.last, part.reading = self.last[pick], self.reading.pick(pick)
        return part

    def step(self) -> Iterator[Delta]:
        """One more token for every row that is still speaking."""
        tokens = self.backbone.logits(self.last).argmax(-1)
        self.steps += 1
        for i, token in enumerate(tokens.tolist()):
            if self.done[i]:
                continue
            if token in self.chat.ends:
                self.done[i] = True
                continue
            self.said[i].append(token)
            text = self._decode(self.said[i]).lstrip()
            if not text.endswith("\ufffd") and len(text) > len(self.text[i]):
                yield Delta(self.rows[i], text[len(self.text[i]) :])
                self.text[i] = text
        if all(self.done):
            return
        speaking = [[0 if done else 1] for done in self.done]
        self._read(tokens[:, None], self.backbone.tensor(speaking))
        if self.steps == MAX_NEW_TOKENS:
            self._cut()

    def rate(self) -> Iterator[Spoken]:
        """Ask all rows for their rating word."""
        closings = []
        for conversation in self.conversations:
            whole = self.chat.rest(conversation.describe(""), self.shown).ids
            closings.append(whole[len(self.chat.rest(conversation, self.shown).ids) :])
        self._read(*self.backbone.padded(closings, left=True))
        words = self.backbone.logits(self.last)[:, self.backbone.tensor(self.chat.words)].argmax(-1)
        for i, word in enumerate(words.tolist()):
            description = self._decode(self.said[i]).strip()
            yield Spoken(self.rows[i], description, RATINGS[word], torch.cat(self.states[i]).cpu())

    def _read(self, ids: Tensor, own: Tensor) -> None:
        hidden = self.reading.read(ids, own)
        for states, h, s in zip(self.states, hidden, own, strict=True):
            states.append(h[s.bool()])
        self.last = hidden[:, -1]

    def _decode(self, ids: list[int]) -> str:
        return self.chat.tokenizer.decode(ids, skip_special_tokens=True)

    def _cut(self) -> None:
        """End rows that ran out of tokens at their last whole sentence; forget what came after it."""
        for i, done in enumerate(self.done):
            if done:
                continue
            self.done[i] = True
            said = self.said[i]
            ends = [k for k in range(1, len(said) + 1) if self._decode(said[:k])[-1:] in SENTENCE_ENDS]
            # A recurrent layer cannot forget.
            keep = ends[-1] if ends and not self.backbone.recurrent else len(said)
            self.said[i] = said[:keep]
            self.reading.forget(i, len(said) - keep)
            begun, question, *answer = self.states[i]
            self.states[i] = [begun, question, torch.cat(answer)[:keep]]

    def _check_length(self, length: int) -> None:
        limit = getattr(self.backbone.model.config.get_text_config(), "max_position_embeddings", None)
        most = limit and limit - MAX_NEW_TOKENS - MAX_CLOSING
        if most and length > most:
            raise InputError(
                f"Image and prompt are too long for this model: with the question they have {length:,} "
                f"tokens, and {most:,} can be read. Shorten the prompt, or give a smaller image."
            )
