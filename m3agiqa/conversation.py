"""Conversations about one image: the only place where turns are put together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from m3agiqa import prompts
from m3agiqa.aspects import Aspect, Rating
from m3agiqa.errors import InputError


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
        prompt = " ".join((prompt or "").split())
        if prompt:
            text = prompts.DESCRIBE[aspect].replace("{prompt}", prompt)
        elif aspect.needs_prompt:
            raise InputError(
                "Correspondence compares the image with its prompt, and no prompt was given. "
                "Type the prompt, or leave correspondence out."
            )
        else:
            text = prompts.DESCRIBE_WITHOUT_PROMPT[aspect]
        return cls(aspect, (Turn("user", text),), prompt or None)

    @classmethod
    def one_round(cls, aspect: Aspect, prompt: str, rating: Rating) -> Conversation:
        """A rating word without a description before it (paper, VIII-A.2)."""
        prompt = " ".join(prompt.split())
        question = prompts.ONE_ROUND[aspect].replace("{prompt}", prompt)
        return cls(aspect, (Turn("user", question), Turn("assistant", str(rating))), prompt)

    def describe(self, description: str) -> Conversation:
        """The assistant's description, and round 2: the user asks for one rating word."""
        question = Turn("user", prompts.RATE[self.aspect])
        return self._go_on(Turn("assistant", description), question)

    def rate(self, rating: Rating) -> Conversation:
        """The assistant's one-word answer, which closes the conversation."""
        return self._go_on(Turn("assistant", str(rating)))

    def _go_on(self, *turns: Turn) -> Conversation:
        return replace(self, turns=(*self.turns, *turns))
