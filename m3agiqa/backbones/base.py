"""What every backbone can do: generate descriptions of an image, encode conversations, and be fine-tuned."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

from PIL import Image
from torch import Tensor, nn

from m3agiqa.aspects import Rating
from m3agiqa.conversation import Conversation
from m3agiqa.prompt_elements import CheckedElement, PromptElement
from m3agiqa.quality_map import QualityMap, Report

BASE_FILE = "backbone.json"
"""Where a checkpoint says which published model it is made of, if its backbone's name leaves that open."""
LONGEST_WORD = 40  # characters; a longer one is cut, as are scripts without spaces


@dataclass(frozen=True)
class Request:
    """One RGB image and the conversations to hold about it; no image: text alone, in training."""

    image: Image.Image | None
    conversations: tuple[Conversation, ...]


@dataclass(frozen=True)
class Delta:
    """The next piece of one conversation's description."""

    row: int
    text: str


@dataclass(frozen=True)
class Generation:
    """A finished conversation: the description, the rating word, and the hidden states.

    `hidden` [L, d] are the last layer's states over image, both questions and the description, i.e. all
    that comes before the rating (paper, Table IV, "w/ ft, w/ ID"), so that logits are `head @ hidden`. A
    backbone may take the image's positions from an earlier layer.
    """

    row: int
    description: str
    rating: Rating
    hidden: Tensor


class Backbone(Protocol):
    """A local multimodal language model. Rows number the conversations of all requests in order."""

    name: str
    revision: int
    """Raised whenever the same weights would compute something else; part of cache keys."""
    hidden_size: int
    vocab_size: int

    @property
    def head(self) -> Tensor:
        """The frozen output matrix [vocab, d]."""
        ...

    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Generation]:
        """Generate descriptions in conversations that are opened with round 1; a Generation ends each row.

        `stop` is asked before every token, by some also while they look; once it answers True, Stopped is
        raised.
        """
        ...

    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        """Hidden states [L, d] of conversations whose descriptions are given, row by row."""
        ...


@dataclass(frozen=True)
class Part:
    """A part of a backbone that can be tuned, alone or with others. Parts share no module."""

    module: nn.Module
    file: str
    """Where checkpoints keep its trained weights: a folder for an adapter, else a safetensors file."""
    lora: str | None = None
    """Layers that LoRA goes into, as PEFT takes them: a pattern of names, or "all-linear". None: the part
    is trained whole."""
    base: str | None = None
    """Name of its published weights; None: there are none, so that it is saved even if it is not tuned."""
    init_from: Path | None = None
    """Folder of an adapter that training continues from."""

    @classmethod
    def adapted(cls, module: nn.Module, name: str, lora: str, base: str, init_from: Path | None) -> Self:
        """One that LoRA goes into; the adapter `name` of the checkpoint `init_from` is gone on with."""
        folder = init_from / name if init_from and (init_from / name).is_dir() else None
        return cls(module, name, lora, base, folder)


class Answers(NamedTuple):
    """All tokens of the assistant in some conversations; no other token is a label."""

    logits: Tensor
    """[N, vocab], each from the state before its token."""
    ids: Tensor
    """[N], the tokens."""
    turn: Tensor
    """[N], 1 for a first answer (the description), 2 for a second one (the rating word)."""


class TrainableBackbone(Backbone, Protocol):
    """A backbone that can be fine-tuned (training.stages.finetune), on any device and sharded over many."""

    @classmethod
    def for_training(cls, init_from: Path | None) -> Self:
        """Base weights, and what the folder `init_from` (a stage's, or a checkpoint) has of its parts."""
        ...

    @property
    def parts(self) -> dict[str, Part]:
        """All modules with weights, by name.

        Among them are "vision", which the paper tunes alone, and "language", which alone learns from text
        without an image.
        """
        ...

    def answers(self, requests: Sequence[Request]) -> Answers:
        """Forward whole conversations; differentiable.

        Weights may be sharded (DeepSpeed), so they are used only by calling the modules of `parts` and
        what these consist of. Requests either all have an image or all have none.
        """
        ...

    def enable_gradient_checkpointing(self) -> None:
        """From now on `answers` recomputes activations in the backward pass: slower, in less memory."""
        ...


@runtime_checkable
class KnowsWords(Protocol):
    """A backbone that compares images with those words of a prompt that it knows."""

    def knows_words(self, prompt: str) -> bool:
        """Whether it knows enough of them; not in other languages and scripts, perhaps."""
        ...


@runtime_checkable
class ChecksElements(Protocol):
    """A backbone that tells of each element of a prompt whether an image shows it."""

    def check_elements(self, image: Image.Image, elements: Sequence[PromptElement]) -> list[CheckedElement]:
        """In their order; at least one. The image is one that it has just described."""
        ...


@runtime_checkable
class MapsQuality(Protocol):
    """A backbone that tells by itself where an image looks bad; of others parts are covered (occlusion)."""

    def quality_map(
        self,
        image: Image.Image,
        report: Report = lambda done, total: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> QualityMap:
        """Of an image that is large enough, else InputError. Raises Stopped once `stop` answers True."""
        ...


@runtime_checkable
class LimitsPrompt(Protocol):
    """A backbone whose questions, which cite the prompt, may not have any length."""

    def fits(self, prompt: str) -> bool:
        """Whether it can be asked about an image with this prompt, in every aspect."""
        ...


@runtime_checkable
class LimitsPromptBesideImage(Protocol):
    """A backbone in which image and prompt share a room, or one that is made of several."""

    def prompt_limit(self, image: Image.Image) -> Callable[[str], bool]:
        """Whether it can be asked about this image with a prompt, in every aspect."""
        ...


def prompt_limit(backbone: Backbone, image: Image.Image) -> Callable[[str], bool]:
    """Whether the backbone can be asked about an image with a prompt; see the protocols above."""
    if isinstance(backbone, LimitsPromptBesideImage):
        return backbone.prompt_limit(image)
    return backbone.fits if isinstance(backbone, LimitsPrompt) else lambda prompt: True


def readable_prompt(backbone: Backbone, image: Image.Image, prompt: str) -> str:
    """As much of the prompt's beginning as the backbone can read, without a word that is cut in two."""
    fits = prompt_limit(backbone, image)
    if fits(prompt):
        return prompt
    length = bisect_left(range(len(prompt)), True, key=lambda end: not fits(prompt[:end])) - 1
    words = prompt[: length + 1].rpartition(" ")[0]
    return words if words and length - len(words) < LONGEST_WORD else prompt[:length]


@runtime_checkable
class NotesBase(Protocol):
    """A backbone that may be made of any of many published models."""

    def note_base(self, folder: Path) -> None:
        """Write BASE_FILE, so that trained weights can be combined with their base model again."""
        ...

    @classmethod
    def base_version(cls, folder: Path, fetch: bool = False) -> str:
        """Version of the base weights that a folder's model is made of (hub.folder_version).

        Without `fetch` nothing is downloaded. Raises WeightsError where they are not on this machine.
        """
        ...
