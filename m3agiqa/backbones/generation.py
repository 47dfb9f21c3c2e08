"""Several conversations spoken at once, token by token, with one cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from m3agiqa.aspects import RATING_WORDS
from m3agiqa.backbones.base import Delta, Spoken
from m3agiqa.backbones.kv_cache import Reading, padded
from m3agiqa.errors import Stopped

RATE_SHARE = 0.25  # share of a batch's rows that must have ended before they are rated
SENTENCE_ENDS = (".", "!", "?")


class Markup(Protocol):
    """A model's chat, as far as speaking needs it."""

    ends: set[int]
    """Tokens that end an answer."""

    @property
    def words(self) -> list[int]:
        """Tokens that the rating words begin with."""
        ...

    def text(self, ids: Sequence[int]) -> str: ...


class Speech:
    """State of one batch of conversations while it is spoken.

    Columns: beginnings | questions (left-padded) | descriptions | second questions (left-padded). A row that
    has ended is masked out of the columns that the others still need, until it is parted from them to be
    rated.
    """

    def __init__(
        self,
        reading: Reading,
        head: Callable[[Tensor], Tensor],
        chat: Markup,
        questions: Sequence[Sequence[int]],
        closings: Sequence[Sequence[int]],
        *,
        header: Sequence[int] = (),
        limit: int,
        forgets: bool = True,
        first: int = 0,
    ) -> None:
        """One row each for `reading` (beginnings), tokens of `questions`, and of `closings`, which end the
        description and ask for the rating.

        `header` follows both, and the states of the second one are not handed out. `limit`: tokens of the
        longest description. `forgets`: whether the model can take back what it said. `first`: the number of
        the first row.
        """
        self.reading, self.head, self.chat = reading, head, chat
        self.closings = [[*closing, *header] for closing in closings]
        self.header, self.limit, self.forgets = len(header), limit, forgets
        self.rows = list(range(first, first + len(questions)))
        self.said: list[list[int]] = [[] for _ in questions]
        self.text = ["" for _ in questions]
        self.done = [False for _ in questions]
        self.steps = 0
        reading.read(*padded([[*question, *header] for question in questions], left=True))

    def part(self, indices: list[int]) -> Speech:
        """Some of the rows as a speech of their own."""
        if len(indices) == len(self.rows):
            return self
        part = copy.copy(self)
        for name in ("rows", "closings", "said", "text", "done"):
            setattr(part, name, [getattr(self, name)[i] for i in indices])
        part.reading = self.reading.pick(torch.tensor(indices, dtype=torch.long, device=self._device))
        return part

    def step(self) -> Iterator[Delta]:
        """One more token for every row that is still speaking."""
        tokens = self.head(self.reading.last).argmax(-1)
        self.steps += 1
        for i, token in enumerate(tokens.tolist()):
            if self.done[i]:
                continue
            if token in self.chat.ends:
                self.done[i] = True
                continue
            self.said[i].append(token)
            text = self.chat.text(self.said[i]).lstrip()
            if not text.endswith("\ufffd") and len(text) > len(self.text[i]):
                yield Delta(self.rows[i], text[len(self.text[i]) :])
                self.text[i] = text
        if all(self.done):
            return
        self.reading.read(tokens[:, None], torch.tensor([[int(not done)] for done in self.done]))
        if self.steps == self.limit:
            self._cut()

    def rate(self) -> Iterator[Spoken]:
        """Ask all rows for their rating word."""
        self.reading.read(*padded(self.closings, left=True))
        words = self.head(self.reading.last)[:, self.chat.words].argmax(-1)
        for i, (word, states) in enumerate(zip(words.tolist(), self.reading.states(), strict=True)):
            hidden = states[: len(states) - self.header].cpu()
            yield Spoken(self.rows[i], self.chat.text(self.said[i]).strip(), RATING_WORDS[word], hidden)

    def _cut(self) -> None:
        """End rows that ran out of tokens at their last whole sentence; forget what came after it."""
        for i, done in enumerate(self.done):
            if done:
                continue
            self.done[i] = True
            said = self.said[i]
            ends = [k for k in range(1, len(said) + 1) if self.chat.text(said[:k])[-1:] in SENTENCE_ENDS]
            keep = ends[-1] if ends and self.forgets else len(said)
            self.said[i] = said[:keep]
            self.reading.forget(i, len(said) - keep)

    @property
    def _device(self) -> torch.device:
        return self.reading.mask.device


def speak(speech: Speech, stop: Callable[[], bool]) -> Iterator[Delta | Spoken]:
    """All of it. Rows that have ended are rated as soon as it pays, and their part of the cache is freed.

    Raises Stopped once `stop`, asked before every token, answers True.
    """
    while speech.rows:
        if stop():
            raise Stopped("Stopped on request.")
        yield from speech.step()
        ended = [i for i, done in enumerate(speech.done) if done]
        # Not one by one in a large batch, where a few ended rows cost less than another forward.
        if len(ended) >= RATE_SHARE * len(speech.rows):
            speaking = [i for i, done in enumerate(speech.done) if not done]
            yield from speech.part(ended).rate()
            speech = speech.part(speaking)
