"""Conversations about one image: the only place where turns are put together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from m3agiqa import prompts
from m3agiqa.aspects import Aspect, Rating
from m3agiqa.errors import InputError
from m3agiqa.prompt_elements import PromptElement

MAX_PROMPT = 8000  # characters


@dataclass(frozen=True)
class Turn:
    """What one side says in one go."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns about one image, which belongs to the first user turn; no aspect: a plain caption."""

    aspect: Aspect | None
    turns: tuple[Turn, ...]
    prompt: str | None = None
    """The image's prompt, which the first user turn cites."""

    @classmethod
    def open(cls, aspect: Aspect, prompt: str | None) -> Conversation:
        """Round 1: the user asks for a description (paper, VIII-A.3).

        Raises InputError when the aspect needs a prompt and there is none.
        """
        prompt = normalized_prompt(prompt)
        text = _question(aspect, prompt, prompts.DESCRIBE_PROMPTS, prompts.DESCRIBE_WITHOUT_PROMPT)
        return cls(aspect, (Turn("user", text),), prompt)

    @classmethod
    def one_round(cls, aspect: Aspect, prompt: str | None) -> Conversation:
        """The user asks for a rating word without a description before it (paper, VIII-A.2)."""
        prompt = normalized_prompt(prompt)
        text = _question(aspect, prompt, prompts.ONE_ROUND, prompts.ONE_ROUND_WITHOUT_PROMPT)
        return cls(aspect, (Turn("user", text),), prompt)

    @classmethod
    def about_element(cls, element: PromptElement) -> Conversation:
        """The user asks whether the image shows an element of its prompt."""
        text = prompts.ELEMENT_QUESTIONS[element.kind].replace("{element}", element.text)
        return cls(Aspect.CORRESPONDENCE, (Turn("user", text),))

    def describe(self, *descriptions: str | tuple[Aspect, str]) -> Conversation:
        """The assistant's description, and round 2: the user asks for one rating word.

        With pairs of an aspect and its description the user asks for each of them in turn (paper,
        Table III); the rating is always about this conversation's own aspect.
        """
        assert self.aspect is not None, "a caption has no second round"
        turns: list[Turn] = []
        for described in descriptions:
            aspect, text = (self.aspect, described) if isinstance(described, str) else described
            turns += [*Conversation.open(aspect, self.prompt).turns, Turn("assistant", text)]
        return replace(self, turns=(*turns, Turn("user", prompts.RATE_PROMPTS[self.aspect])))

    def rate(self, rating: Rating) -> Conversation:
        """The assistant's one-word answer, which closes the conversation."""
        return replace(self, turns=(*self.turns, Turn("assistant", str(rating))))


def normalized_prompt(prompt: str | None) -> str | None:
    """White space folded; None if nothing is left."""
    text = " ".join((prompt or "").split())
    return text.encode("utf-8", "replace").decode() or None  # lone surrogates cannot be tokenized


def clean_prompt(prompt: str | None) -> str | None:
    """As `normalized_prompt`, to be kept whole: raises InputError when it is too long."""
    text = normalized_prompt(prompt)
    if text and len(text) > MAX_PROMPT:
        raise InputError(
            f"The prompt has {len(text):,} characters; at most {MAX_PROMPT:,} can be kept. Shorten it."
        )
    return text


def _question(
    aspect: Aspect, prompt: str | None, with_prompt: dict[Aspect, str], without: dict[Aspect, str]
) -> str:
    if prompt:
        return with_prompt[aspect].replace("{prompt}", prompt)
    if aspect.needs_prompt:
        raise InputError(
            "Correspondence compares the image with its prompt, and no prompt was given. "
            "Type the prompt, or leave correspondence out."
        )
    return without[aspect]
