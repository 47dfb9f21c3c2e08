"""Elements of a prompt, checked by asking a language model a yes/no question about each (VQAScore).

Source: Lin et al., "Evaluating text-to-visual generation with image-to-text generation", 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from m3agiqa.backbones.kv_cache import DecoderState, padded
from m3agiqa.conversation import Conversation
from m3agiqa.prompt_elements import CheckedElement, Presence, PromptElement

PRESENCE_BOUNDS = (0.3, 0.7)
"""Below the first probability of yes an element is not seen, from the second on it is seen. Not measured."""


class QuestionChat(Protocol):
    """What yes/no questions need of a model's chat format."""

    def first_tokens(self, words: Sequence[str]) -> list[int]:
        """The first token of each word, where an answer begins."""
        ...


class AnswersQuestions(Protocol):
    """A backbone that can be asked anything."""

    chat: QuestionChat

    def next_token_logits(self, image: Image.Image, conversations: Sequence[Conversation]) -> Tensor:
        """[conversations, vocab], of the token that an answer to each would begin with."""
        ...


def check_by_questions(
    backbone: AnswersQuestions, image: Image.Image, elements: Sequence[PromptElement]
) -> list[CheckedElement]:
    """Each with the probability of "yes" beside "no", whatever else the model might answer."""
    conversations = [Conversation.about_element(element) for element in elements]
    capital, small = (backbone.chat.first_tokens(words) for words in (("Yes", "No"), ("yes", "no")))
    by_answer = backbone.next_token_logits(image, conversations)[:, torch.tensor([capital, small])]
    probabilities = by_answer.float().logsumexp(1).softmax(1)[:, 0].tolist()
    return list(map(_checked, elements, conversations, probabilities))


def _checked(element: PromptElement, conversation: Conversation, probability: float) -> CheckedElement:
    low, high = PRESENCE_BOUNDS
    sure = Presence.SEEN if probability >= high else Presence.NOT_SEEN
    presence = Presence.NOT_SURE if low <= probability < high else sure
    comparison = (
        f"Asked: “{conversation.turns[0].content}” Probability of yes: {100 * probability:.0f} %; "
        f"it counts as seen from {100 * high:.0f} % on, and as not seen below {100 * low:.0f} %."
    )
    return CheckedElement(element, presence, comparison, probability)


def logits_after(
    begun: DecoderState, questions: Sequence[Sequence[int]], head: Callable[[Tensor], Tensor], rows: int
) -> Tensor:
    """[questions, vocab] on the CPU, of what follows each question's tokens after the one row of `begun`.

    So many `rows` are processed at once.
    """
    logits = []
    for first in range(0, len(questions), rows):
        batch = questions[first : first + rows]
        state = begun.select(torch.zeros(len(batch), dtype=torch.long, device=begun.mask.device))
        state.append(*padded(batch, left=True))
        logits.append(head(state.last).float().cpu())
    return torch.cat(logits)
