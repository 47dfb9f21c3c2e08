"""Which conversation a predictor reads: the rounds and the descriptions of the paper's Tables III and IV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from m3agiqa.aspects import Aspect
from m3agiqa.conversation import Conversation
from training.data.variants import Variant
from training.stages.hidden_cache import Entry


@dataclass(frozen=True)
class Reading:
    """The default is what is spoken and read at inference: own description, then the rating question."""

    descriptions: tuple[Aspect, ...] | None = None
    """Aspects whose spoken descriptions stand in the conversation, in this order; empty: a single round
    that asks for the rating at once ("w/o ID"); None: the judged aspect's own."""
    rated: bool = False
    """Whether the spoken rating closes the conversation ("FullConv")."""

    def __post_init__(self) -> None:
        if self.descriptions is not None:
            object.__setattr__(self, "descriptions", tuple(Aspect(aspect) for aspect in self.descriptions))

    @property
    def as_spoken(self) -> bool:
        """Whether its hidden states were kept while it was spoken (stage describe)."""
        return self == Reading()

    def conversation(self, case: Variant, aspect: Aspect, spoken: Mapping[Aspect, Entry]) -> Conversation:
        """The conversation about a case; descriptions that need a prompt are left out where there is none."""
        wanted = (aspect,) if self.descriptions is None else self.descriptions
        about = [each for each in wanted if case.prompt or not each.needs_prompt]
        if about:
            told = Conversation.open(aspect, case.prompt).describe(
                *((each, spoken[each].description) for each in about)
            )
        else:
            told = Conversation.one_round(aspect, case.prompt)
        return told.rate(spoken[aspect].rating) if self.rated else told

    def needs(self, aspect: Aspect) -> tuple[Aspect, ...]:
        """Aspects that must have been spoken about before this can be read."""
        wanted = (aspect,) if self.descriptions is None else self.descriptions
        return (*wanted, aspect) if self.rated else wanted
