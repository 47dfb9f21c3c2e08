"""How far the words of a prompt are found in an image, read off the visual tokens.

The aligned connector puts the tokens of places near the embeddings of words for what is there
(training.align), so a few cosines tell a fitting prompt from another. A language model of this size
rather believes the prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from m3agiqa.backbones.nano.connector import EMBEDDING_SCALE

SHARPNESS = 15.0  # how much the nearest place counts before the others
USUAL = 3.2  # between the means of fitting and of unrelated prompts, whose spread is about 1
WEIGHT = 20.0  # length of the shift for a match of one above the usual; states have a length of about 44


class Matcher:
    """Shifts hidden states towards the better rating word by how well prompt and image match."""

    def __init__(self, embeddings: Tensor, worst: int, best: int) -> None:
        """Word embeddings [vocab, d], and the token ids of the worst and the best rating word."""
        self.embeddings = embeddings
        self.centre = embeddings.float().mean(0)  # two thirds of an embedding's length is common to all
        step = embeddings[best].float() - embeddings[worst].float()
        self.direction = step / step.norm()

    def match(self, places: Tensor, words: list[int]) -> float:
        """places [PLACE_TOKENS, d], ids of the prompt's words -> mean log-sum-exp of cosines."""
        tokens = EMBEDDING_SCALE * F.rms_norm(places.float(), places.shape[-1:])
        near = F.normalize(tokens - self.centre, dim=-1) @ self._directions(words).T
        return (SHARPNESS * near).logsumexp(0).mean().item()

    def shift(self, places: Tensor, words: list[int]) -> Tensor:
        """What to add to a hidden state [d]; nothing for a prompt without words."""
        match = self.match(places, words) - USUAL if words else 0.0
        return WEIGHT * match * self.direction

    def _directions(self, words: list[int]) -> Tensor:
        return F.normalize(self.embeddings[torch.tensor(words)].float() - self.centre, dim=-1)
