"""Which conversation a predictor reads: the rounds and the descriptions of the paper's Tables III and IV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from m3agiqa.aspects import Aspect
from m3agiqa.conversation import Conversation
from training.data.variants import Variant
from training.stages.hidden_cache import Entry


@dataclass(frozen=True)
class PredictorInput:
    """The default is what is generated and read at inference: own description, then the rating question."""

    descriptions: tuple[Aspect, ...] | None = None
    """Aspects whose generated descriptions stand in the conversation, in this order; empty: a single round
    that asks for the rating at once ("w/o ID"); None: the judged aspect's own."""
    rated: bool = False
    """Whether the generated rating closes the conversation ("FullConv")."""

    def __post_init__(self) -> None:
        if self.descriptions is not None:
            object.__setattr__(self, "descriptions", tuple(Aspect(aspect) for aspect in self.descriptions))

    @property
    def is_generated(self) -> bool:
        """Whether its hidden states were kept while it was generated (stage describe)."""
        return self == PredictorInput()

    def conversation(
        self, variant: Variant, aspect: Aspect, generated: Mapping[Aspect, Entry]
    ) -> Conversation:
        """Descriptions that need a prompt are left out where there is none."""
        wanted = (aspect,) if self.descriptions is None else self.descriptions
        about = [each for each in wanted if variant.prompt or not each.needs_prompt]
        if about:
            conversation = Conversation.open(aspect, variant.prompt).describe(
                *((each, generated[each].description) for each in about)
            )
        else:
            conversation = Conversation.one_round(aspect, variant.prompt)
        return conversation.rate(generated[aspect].rating) if self.rated else conversation

    def needs(self, aspect: Aspect) -> tuple[Aspect, ...]:
        """Aspects that must have been described before this can be encoded."""
        wanted = (aspect,) if self.descriptions is None else self.descriptions
        return (*wanted, aspect) if self.rated else wanted
