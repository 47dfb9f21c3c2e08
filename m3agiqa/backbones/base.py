"""What every backbone can do: speak about an image, and be read as its encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

from m3agiqa.aspects import Rating
from m3agiqa.conversation import Conversation


@dataclass(frozen=True)
class Request:
    """One RGB image and the conversations to hold about it; no image: text alone, in training."""

    image: Image.Image | None
    conversations: tuple[Conversation, ...]


@dataclass(frozen=True)
class Delta:
    """Some more text of one conversation's description."""

    row: int
    text: str


@dataclass(frozen=True)
class Spoken:
    """A finished conversation: what was said, the rating word, and what the model held in mind.

    `hidden` [L, d] are the states over image, both questions and the description, i.e. all that stands
    before the rating (paper, Table IV, "w/ ft, w/ ID"): what the output head sees, so that logits are
    `head @ hidden`. A backbone may take the image's positions from an earlier layer.
    """

    row: int
    description: str
    rating: Rating
    hidden: Tensor


class Backbone(Protocol):
    """A local MLLM as speaker and encoder. Rows number the conversations of all requests in order."""

    name: str
    revision: int
    """Raised whenever the same weights would see, speak or be read differently; part of cache keys."""
    hidden_size: int
    vocab_size: int

    @property
    def head(self) -> Tensor:
        """The frozen output matrix [vocab, d]."""
        ...

    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Spoken]:
        """Speak all conversations (opened with round 1) at once; one Spoken per row comes last.

        `stop` is asked before every token; once it answers True, Stopped is raised.
        """
        ...

    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        """Hidden states [L, d] of conversations whose descriptions are already given, row by row."""
        ...
