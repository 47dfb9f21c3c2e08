"""What the chat formats of all backbones have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from m3agiqa.backbones.base import Answers


@dataclass(frozen=True)
class ChatTokens:
    """Token ids of a conversation after its prefix; `answer` numbers the assistant's turns, 0 elsewhere."""

    ids: list[int]
    answer: list[int]


def answers_of(rows: Iterable[tuple[Tensor, ChatTokens]], head: Callable[[Tensor], Tensor]) -> Answers:
    """The assistant's tokens in rows whose hidden states [L, d] end with those of the tokens."""
    states: list[Tensor] = []
    ids: list[int] = []
    turns: list[int] = []
    for hidden, tokens in rows:
        start = len(hidden) - len(tokens.ids)
        answered = [i for i, answer in enumerate(tokens.answer) if answer]
        states.append(hidden[[start + i - 1 for i in answered]])  # the state before a token predicts it
        ids += [tokens.ids[i] for i in answered]
        turns += [tokens.answer[i] for i in answered]
    logits = head(torch.cat(states))
    return Answers(logits, torch.tensor(ids, device=logits.device), torch.tensor(turns, device=logits.device))
