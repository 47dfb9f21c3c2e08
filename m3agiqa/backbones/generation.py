"""The decoding loop of all backbones: several descriptions at once, token by token, with one KV cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor

from m3agiqa.aspects import RATING_WORDS
from m3agiqa.backbones.base import Delta, Generation, Request
from m3agiqa.backbones.kv_cache import DecoderState, padded
from m3agiqa.backbones.memory import enough_for_work
from m3agiqa.errors import raise_if_stopped
from m3agiqa.threads import follow_load

MIN_ENDED_SHARE = 0.25  # share of a batch's rows that must have ended before they are rated
SENTENCE_ENDS = (".", "!", "?")


class GenerationChat(Protocol):
    """What generation needs of a model's chat format."""

    ends: set[int]
    """Tokens that end an answer."""

    @property
    def rating_tokens(self) -> list[int]:
        """First tokens of the rating words."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Without space before it."""
        ...


class Grammar(Protocol):
    """What one row's description may consist of."""

    def next_tokens(self, written: Sequence[int]) -> set[int]:
        """Tokens that may follow those that are written; never none."""
        ...


class GenerationBatch:
    """A batch of conversations while their descriptions are generated.

    Columns: prefixes | questions (left-padded) | descriptions | second questions (left-padded). A row that
    has ended is masked out of the columns that the others still need, until it is split off to be rated.
    """

    def __init__(
        self,
        state: DecoderState,
        head: Callable[[Tensor], Tensor],
        chat: GenerationChat,
        closings: Sequence[Sequence[int]],
        *,
        limit: int,
        header: int = 0,
        can_drop: bool = True,
        first: int = 0,
        processor: LogitsProcessor | None = None,
        grammars: Sequence[Grammar] = (),
        rating_head: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`state` ends where the descriptions begin. `head`: hidden states [rows, d] -> logits [rows, vocab].

        closings: tokens that end each description and ask for the rating. limit: tokens of the longest
        description. header: number of tokens at the end of a closing whose states are not handed out.
        can_drop: whether the model can take back tokens. first: number of the first row. processor: applied
        to a row's logits. grammars: one a row, or none. rating_head: hidden states -> logits [rows, ratings];
        without it `head` gives them.
        """
        self.state, self.head, self.chat, self.processor = state, head, chat, processor
        self.grammars = list(grammars)
        self.rating_head = rating_head or (lambda states: head(states)[:, chat.rating_tokens])
        self.closings = list(closings)
        self.header, self.limit, self.can_drop = header, limit, can_drop
        self.rows = list(range(first, first + len(closings)))
        self.generated: list[list[int]] = [[] for _ in closings]
        self.text = ["" for _ in closings]
        self.done = [False for _ in closings]
        self.steps = 0

    def select(self, indices: list[int]) -> GenerationBatch:
        """Some of the rows as a batch of their own."""
        if len(indices) == len(self.rows):
            return self
        other = copy.copy(self)
        for name in ("rows", "closings", "generated", "text", "done", "grammars"):
            values = getattr(self, name)
            setattr(other, name, [values[i] for i in indices] if values else values)
        device = self.state.mask.device
        other.state = self.state.select(torch.tensor(indices, dtype=torch.long, device=device))
        return other

    def step(self) -> Iterator[Delta]:
        """One more token for every row that has not ended; several where its grammar leaves no choice."""
        spans = self._next_spans()
        self.steps += 1
        for i, span in enumerate(spans):
            if not span:
                continue
            if span[-1] in self.chat.ends:
                self.done[i] = True
                span.pop()
            self.generated[i] += span
            text = self.chat.text(self.generated[i])
            if not text.endswith("\ufffd") and len(text) > len(self.text[i]):
                yield Delta(self.rows[i], text[len(self.text[i]) :])
                self.text[i] = text
        if not any(spans):
            return
        ids, own = padded([span or [0] for span in spans], left=True)
        own[[i for i, span in enumerate(spans) if not span]] = 0
        self.state.append(ids, own)
        if self.steps == self.limit and not self.grammars:  # a grammar ends by itself
            self._cut()

    def rate(self) -> Iterator[Generation]:
        """Ask all rows for their rating word."""
        self.state.append(*padded(self.closings, left=True))
        words = self.rating_head(self.state.last).argmax(-1)
        for i, (word, states) in enumerate(zip(words.tolist(), self.state.states(), strict=True)):
            hidden = states[: len(states) - self.header].cpu()
            description = self.chat.text(self.generated[i]).strip()
            yield Generation(self.rows[i], description, RATING_WORDS[word], hidden)

    def _next_spans(self) -> list[list[int]]:
        """The next tokens of each row; none for rows that have ended."""
        logits = self.head(self.state.last)
        spans: list[list[int]] = []
        for i, ids in enumerate(self.generated):
            if self.done[i]:
                spans.append([])
            elif self.grammars:
                spans.append(_grammatical_span(self.grammars[i], ids, logits[i], self.chat.ends))
            else:
                if self.processor:
                    so_far = torch.tensor([ids], dtype=torch.long, device=logits.device)
                    logits[i] = self.processor(so_far, logits[i : i + 1])[0]
                spans.append([int(logits[i].argmax())])
        return spans

    def _cut(self) -> None:
        """End rows that ran out of tokens at their last whole sentence; drop what came after it."""
        for i, done in enumerate(self.done):
            if done:
                continue
            self.done[i] = True
            ids = self.generated[i]
            ends = [k for k in range(1, len(ids) + 1) if self.chat.text(ids[:k])[-1:] in SENTENCE_ENDS]
            keep = ends[-1] if ends and self.can_drop else len(ids)
            self.generated[i] = ids[:keep]
            self.state.drop_last(i, len(ids) - keep)


def _grammatical_span(grammar: Grammar, written: Sequence[int], logits: Tensor, ends: set[int]) -> list[int]:
    """The likeliest [vocab] of the tokens that may follow, with all tokens after it that alone may follow."""
    allowed = sorted(grammar.next_tokens(written))
    span = [allowed[int(logits[allowed].argmax())]]
    while span[-1] not in ends:
        following = grammar.next_tokens([*written, *span])
        if len(following) > 1:
            break
        span += following
    return span


def generate(batch: GenerationBatch, stop: Callable[[], bool]) -> Iterator[Delta | Generation]:
    """All of it. Rows that have ended are rated as soon as it pays, and their part of the cache is freed.

    Raises Stopped once `stop`, asked before every token, answers True.
    """
    while batch.rows:
        raise_if_stopped(stop)
        follow_load()
        yield from batch.step()
        ended = [i for i, done in enumerate(batch.done) if done]
        # Not one by one in a large batch, where a few ended rows cost less than another forward.
        if len(ended) >= MIN_ENDED_SHARE * len(batch.rows):
            others = [i for i, done in enumerate(batch.done) if not done]
            yield from batch.select(ended).rate()
            batch = batch.select(others)


def generate_in_groups(
    groups: Iterable[Sequence[Request]],
    batch_of: Callable[[Sequence[Request], int], GenerationBatch],
    stop: Callable[[], bool],
) -> Iterator[Delta | Generation]:
    """One group of requests after the other; `batch_of` is given a group and the number of its first row.

    Raises InputError where memory runs out, and Stopped.
    """
    first = 0
    for requests in groups:
        with enough_for_work():
            yield from generate(batch_of(requests, first), stop)
        first += sum(len(request.conversations) for request in requests)
