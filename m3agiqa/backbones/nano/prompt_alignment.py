"""How far what a prompt asks for is found in an image.

Images and words are brought into one space by canonical correlations, which are fitted in closed form
(training.nano.fit_prompt_alignment) to texts about images, and to no scores. A language model of this size
tends to believe the prompt instead of the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.nano.colors import COLOURS, colours_named
from m3agiqa.backbones.nano.connector import WHOLE_SIDE, Seen
from m3agiqa.backbones.nano.efficientnet_lite import GROUPS
from m3agiqa.backbones.nano.quality_regressor import JUDGED
from m3agiqa.backbones.nano.text import content_words, foreign_words
from m3agiqa.backbones.nano.word_states import Meanings

HEAD = GROUPS[0]  # channels that tell what is there
WHOLE = WHOLE_SIDE**2  # places of the whole image, before those of the finer look
SHARPNESS = 15.0  # how much the nearest place counts before the others
WEIGHTS = (1.0, 0.5, 0.5)  # of the image as a whole, of its places, and of its colours
LIMIT = 2.5  # spreads of usual pairs
LEAST = 1e-6  # that is divided by; a word that stands in every text is not rare at all
KNOWN_SHARE = 0.5  # of a prompt's words; with fewer it is in another language

SHARES = {Aspect.QUALITY: 0.7, Aspect.AUTHENTICITY: 0.3}  # of the opinions beside the match
TURN = math.pi / 8  # how far a verdict of one turns its token


class Sight(NamedTuple):
    """What prompts are compared with, of N images."""

    images: Tensor
    """[N, K], of unit length, in the space that images have with texts."""
    places: Tensor
    """[N, T, K], likewise."""
    colours: Tensor
    """[N, 11], how much there is of each, in spreads from the usual."""

    def of(self, image: int) -> Sight:
        """One image alone."""
        return Sight(*(field[image : image + 1] for field in self))


def unfitted(states: int) -> dict[str, Tensor]:
    """Weights of a matcher that knows no words, for a language model with so wide states."""
    return {
        "letters": torch.zeros(0),  # of the dictionary, as bytes; its words stand in lines
        "rarity": torch.zeros(0),  # [V], of these words
        "state_centre": torch.zeros(states),
        "state_map": torch.zeros(states, 1),  # [d, D], after which words have unit length
        "text_map": torch.zeros(1, 1),  # [D, K]
        "text_centre": torch.zeros(1),
        "image_maps": torch.zeros(2, HEAD, 1),  # [2, C, K], of the image at both resolutions
        "image_centres": torch.zeros(2, 1),
        "references": torch.zeros(1, 1, 1),  # [R, T, K], places of images
        "usual_colours": torch.stack([torch.zeros(len(COLOURS)), torch.ones(len(COLOURS))]),
        "usual_parts": torch.tensor([[0.0, 1.0]]).repeat(len(WEIGHTS), 1),  # mean and spread over all pairs
        "usual": torch.tensor([0.0, 1.0]),  # of the weighted sum, over usual pairs
    }


class Matcher(nn.Module):
    """Says how well images and prompts match: 0 is usual for an image with its own prompt, the spread is 1.

    A prompt of whose words too few are known matches as is usual. A word is known if it stands in the
    dictionary or is one of the language model's tokens.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in weights.items():
            self.register_buffer(name, value)
        words = bytes(self.letters.to(torch.uint8).tolist()).decode().split()
        self.rarities = dict(zip(words, self.rarity.tolist(), strict=True))
        self.common = {word: -rarity for word, rarity in self.rarities.items()}

    def sight(self, seen: Seen) -> Sight:
        head = seen.places[..., :HEAD].float()
        maps, centres = self.image_maps.float(), self.image_centres.float()

        def mapped(x: Tensor, look: int) -> Tensor:
            return x.log1p() @ maps[look] - centres[look]

        whole, fine = head[:, :WHOLE], head[:, WHOLE:]
        images = mapped(whole.mean(1), 0) + mapped(fine.mean(1), 1)
        places = torch.cat([mapped(whole, 0), mapped(fine, 1)], dim=1)
        mean, spread = self.usual_colours.float()
        colours = (seen.colours.float() - mean) / spread
        return Sight(F.normalize(images, dim=-1), F.normalize(places, dim=-1), colours)

    def match(self, sight: Sight, prompt: str, meanings: Meanings) -> Tensor:
        """[N], within LIMIT of 0."""
        if not self.known_words(prompt, meanings):
            return sight.images.new_zeros(len(sight.images))
        mean, spread = self.usual.float()
        return ((self.total(sight, prompt, meanings) - mean) / spread).clamp(-LIMIT, LIMIT)

    def total(self, sight: Sight, prompt: str, meanings: Meanings) -> Tensor:
        """[N], the weighted sum of the parts."""
        return torch.tensor(WEIGHTS, device=sight.images.device) @ self.parts(sight, prompt, meanings)

    def parts(self, sight: Sight, prompt: str, meanings: Meanings) -> Tensor:
        """[3, N]: the image as a whole, its places and its colours; 0 where a prompt says nothing of them."""
        found = sight.images.new_zeros(len(WEIGHTS), len(sight.images))
        words = self.known_words(prompt, meanings)
        if not words:
            return found
        mean, spread = self.usual_parts.float().unbind(1)
        rarity, vectors = self._rarity(words), self._vectors(words, meanings)
        found[0] = sight.images @ F.normalize(self._text(rarity, vectors), dim=0)
        usual = _nearness(self.references.float(), vectors)
        near = (_nearness(sight.places, vectors) - usual.mean(0)) / (usual.std(0) + LEAST)
        found[1] = near @ rarity / rarity.sum().clamp_min(LEAST)
        found = (found - mean[:, None]) / spread[:, None]
        named = colours_named(prompt)
        found[2] = sight.colours[:, named].mean(1) / spread[2] if named else 0.0
        return found

    def known_words(self, prompt: str, meanings: Meanings) -> list[str]:
        """None where most words are unknown."""
        words = content_words(prompt, self.common)
        known = [word for word in words if word in self.rarities or meanings.is_one_token(word)]
        enough = self.rarities and len(known) >= KNOWN_SHARE * (len(words) + foreign_words(prompt))
        return known if enough else []

    def _rarity(self, words: list[str]) -> Tensor:
        """[W]; a word that is not in the dictionary is as rare as the rarest that is."""
        rarest = max(self.rarities.values())
        rarities = [self.rarities.get(word, rarest) for word in words]
        return torch.tensor(rarities, device=self.rarity.device)

    def _vectors(self, words: list[str], meanings: Meanings) -> Tensor:
        """[W, K]."""
        inner = (meanings.states(words) - self.state_centre.float()) @ self.state_map.float()
        return F.normalize(inner, dim=-1) @ self.text_map.float()

    def _text(self, rarity: Tensor, vectors: Tensor) -> Tensor:
        """[K]: the words' sum, in which rare ones count more."""
        return rarity @ vectors / rarity.norm().clamp_min(LEAST) - self.text_centre.float()


class Matchers(nn.Module):
    """Several matchers, each of which has learned from no prompt of the length of those that it judges.

    So no image that was learned from matches its own prompt better than a new image would, and whatever reads
    the matches can be trained with the same images. A prompt of which one word is changed is judged by the
    same matcher, as it has to be if they are compared.
    """

    def __init__(self, matchers: Sequence[Matcher]) -> None:
        super().__init__()
        self.each = nn.ModuleList(matchers)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Matchers:
        """From a state dict."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in weights.items():
            _, number, own = name.split(".")
            found.setdefault(number, {})[own] = value
        return cls([Matcher(found[number]) for number in sorted(found, key=int)])

    def sights(self, seen: Seen) -> list[Sight]:
        """Of the same N images, one for each matcher."""
        return [matcher.sight(seen) for matcher in self.each]

    def match(self, sights: Sequence[Sight], prompt: str, meanings: Meanings) -> Tensor:
        """[N], within LIMIT of 0."""
        number = length_class(prompt, len(self.each))
        return self.each[number].match(sights[number], prompt, meanings)


def length_class(prompt: str, classes: int) -> int:
    """By the number of words; in [0, classes)."""
    return len(prompt.split()) % classes


def _nearness(places: Tensor, vectors: Tensor) -> Tensor:
    """Places [N, T, K] and words [W, K] -> [N, W]: a soft maximum of the cosines."""
    return (SHARPNESS * places @ F.normalize(vectors, dim=1).T).logsumexp(1)


def verdict(match: Tensor, opinions: Tensor) -> Tensor:
    """Match [...] and opinions [..., JUDGED] -> what they say of correspondence: mean 0, spread about 1.

    People who are asked about the prompt judge what they see as well: a botched cat is less of a cat.
    """
    shares = torch.tensor([SHARES[aspect] for aspect in JUDGED], device=match.device)
    total = match + opinions.float().clamp(-LIMIT, LIMIT) @ shares
    return total / (1 + shares.square().sum()).sqrt()


def turned(worst: Tensor, best: Tensor, verdict: Tensor) -> Tensor:
    """A direction [d] of unit length: between two others, or nearer to one of them."""
    middle = F.normalize(F.normalize(worst, dim=0) + F.normalize(best, dim=0), dim=0)
    step = best - worst
    step = F.normalize(step - (step @ middle) * middle, dim=0)
    angle = (TURN * verdict).clamp(-math.pi / 2, math.pi / 2)
    return angle.cos() * middle + angle.sin() * step
