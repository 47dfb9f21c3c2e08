"""Several conversations spoken at once, token by token, with one cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from m3agiqa.aspects import RATINGS
from m3agiqa.backbones.base import Delta, Spoken
from m3agiqa.backbones.minicpm.chat import Chat
from m3agiqa.conversation import Conversation

MAX_NEW_TOKENS = 256  # the longest teacher description has 75; the base model would go on
RATE_SHARE = 0.25  # share of a batch's rows that must have ended before they are rated
SENTENCE_ENDS = (".", "!", "?")


class Speech:
    """State of one batch of conversations while it is spoken.

    Columns are shared by all rows: what comes before the question, the question, the description and the
    second question, each filled up on the left. A row that has ended is masked out of the columns that the
    others still need, until it is parted from them to be rated.
    """

    def __init__(
        self,
        llm: LlamaForCausalLM,
        chat: Chat,
        beginnings: Sequence[Tensor],
        owners: Sequence[int],
        conversations: Sequence[Conversation],
        questions: Sequence[Sequence[int]],
    ) -> None:
        """`beginnings` [P, d] are embedded; each conversation goes on from the one that it owns."""
        self.llm, self.chat = llm, chat
        self.device = beginnings[0].device
        self.rating_ids = [chat.say(word)[0] for word in RATINGS]
        self.cache = DynamicCache(config=llm.config)
        self.mask = torch.zeros(len(beginnings), 0, dtype=torch.long, device=self.device)
        begun = self._forward(*_left_padded(beginnings))
        pick = torch.tensor(owners, device=self.device)
        self.cache.batch_select_indices(pick)
        self.mask = self.mask[pick]
        self.conversations = list(conversations)
        self.rows = list(range(len(conversations)))
        self.states = [[begun[owner]] for owner in owners]
        self.said: list[list[int]] = [[] for _ in questions]
        self.text = ["" for _ in questions]
        self.done = [False for _ in questions]
        self.steps = 0
        asked = self._read([[*question, *chat.ready] for question in questions])
        self._keep(asked)

    def speak(self) -> Iterator[Delta | Spoken]:
        """One more token for every row that has not ended; those that have are rated as soon as it pays."""
        yield from self._step()
        ended = [i for i, done in enumerate(self.done) if done]
        if len(ended) >= RATE_SHARE * len(self.rows):  # a few ended rows cost less than another forward
            if ended:
                yield from self._part(ended)._rate()
            self._leave([i for i, done in enumerate(self.done) if not done])

    def _step(self) -> Iterator[Delta]:
        logits = self.llm.get_output_embeddings()(self.last).float()
        tokens = logits.argmax(-1)
        self.steps += 1
        for i, token in enumerate(tokens.tolist()):
            if self.done[i]:
                continue
            if token in self.chat.ends:
                self.done[i] = True
                continue
            self.said[i].append(token)
            text = self.chat.text(self.said[i])
            if not text.endswith("\ufffd") and len(text) > len(self.text[i]):
                yield Delta(self.rows[i], text[len(self.text[i]) :])
                self.text[i] = text
        if all(self.done):
            return
        speaking = torch.tensor([[0 if done else 1] for done in self.done], device=self.device)
        self._keep(self._forward(self._embed(tokens[:, None]), speaking))
        if self.steps == MAX_NEW_TOKENS:
            self._cut()

    def _rate(self) -> Iterator[Spoken]:
        """Ask all rows for their rating word."""
        ready = len(self.chat.ready)
        asked = [self.chat.next_question(c.describe("").turns[-1]) for c in self.conversations]
        states = self._read([[*question, *self.chat.ready] for question in asked])
        words = self.llm.get_output_embeddings()(self.last)[:, self.rating_ids].argmax(-1)
        for i, word in enumerate(words.tolist()):
            hidden = torch.cat([*self.states[i], states[i][:-ready]]).cpu()
            yield Spoken(self.rows[i], self.chat.text(self.said[i]).strip(), RATINGS[word], hidden)

    def _cut(self) -> None:
        """End rows that ran out of tokens at their last whole sentence; forget what came after it."""
        for i, done in enumerate(self.done):
            if done:
                continue
            self.done[i] = True
            said = self.said[i]
            ends = [k for k in range(1, len(said) + 1) if self.chat.text(said[:k])[-1:] in SENTENCE_ENDS]
            keep = ends[-1] if ends else len(said)
            self.said[i] = said[:keep]
            self.mask[i, self.mask.shape[1] - self.steps + keep :] = 0
            begun, asked, *answer = self.states[i]
            self.states[i] = [begun, asked, torch.cat(answer)[:keep]]

    # --- rows --------------------------------------------------------------------------------

    def _part(self, indices: list[int]) -> Speech:
        """Some of the rows as a speech of their own."""
        part, pick = copy.copy(self), torch.tensor(indices, device=self.device)
        part.cache = DynamicCache(config=self.llm.config)
        for index, layer in enumerate(self.cache.layers):
            part.cache.update(layer.keys[pick], layer.values[pick], index)
        part._pick(indices)
        return part

    def _leave(self, indices: list[int]) -> None:
        """Go on with some of the rows."""
        self.cache.batch_select_indices(torch.tensor(indices, dtype=torch.long, device=self.device))
        self._pick(indices)

    def _pick(self, indices: list[int]) -> None:
        for name in ("rows", "conversations", "states", "said", "text", "done"):
            setattr(self, name, [getattr(self, name)[i] for i in indices])
        self.mask, self.last = self.mask[indices], self.last[indices]

    # --- reading -----------------------------------------------------------------------------

    def _read(self, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
        """Append tokens to all rows; their states, row by row."""
        embedded = [self._embed(torch.tensor(ids, device=self.device)) for ids in tokens]
        return self._forward(*_left_padded(embedded))

    def _forward(self, embedded: Tensor, shown: Tensor) -> list[Tensor]:
        """Append [rows, L, d], of which `shown` [rows, L] says what is a row's own; states of the latter."""
        seen = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, shown], dim=1)
        hidden = self.llm.model(
            inputs_embeds=embedded,
            past_key_values=self.cache,
            attention_mask=self.mask,
            position_ids=(seen + shown.cumsum(1) - 1).clamp_min(0),
            use_cache=True,
        ).last_hidden_state
        self.last = hidden[:, -1]
        return [states[own.bool()] for states, own in zip(hidden, shown, strict=True)]

    def _keep(self, states: Sequence[Tensor]) -> None:
        for kept, new in zip(self.states, states, strict=True):
            kept.append(new)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.llm.get_input_embeddings()(ids)


def _left_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows [L_i, d] -> [rows, longest, d], and 1 where they are a row's own."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    places = torch.arange(int(lengths.max()), device=rows[0].device)
    shown = (places >= lengths.max() - lengths[:, None]).long()
    padded = rows[0].new_zeros(*shown.shape, rows[0].shape[-1])
    padded[shown.bool()] = torch.cat(list(rows))
    return padded, shown
