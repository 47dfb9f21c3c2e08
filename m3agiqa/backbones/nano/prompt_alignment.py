"""How well an image shows what its prompt asks for.

Images and words are brought into one space by canonical correlation analysis, fitted in closed form
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
from m3agiqa.backbones.nano.colors import COLOUR_NAMES, named_colours
from m3agiqa.backbones.nano.connector import ANGLE_PER_UNIT, WHOLE_GRID, ImageFeatures
from m3agiqa.backbones.nano.efficientnet_lite import CHANNEL_GROUPS
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS
from m3agiqa.backbones.nano.text import content_words, foreign_words
from m3agiqa.backbones.nano.word_states import WordStates
from m3agiqa.prompt_elements import CheckedElement, ElementKind, Presence, PromptElement

HEAD_CHANNELS = CHANNEL_GROUPS[0]  # of the vision encoder's last map, which names what is there
WHOLE_CELLS = WHOLE_GRID**2  # cells of the coarser grid, which come first
SOFTMAX_SHARPNESS = 15.0  # the higher, the more the nearest grid cell counts before the others
PART_WEIGHTS = (1.0, 0.5, 0.5)  # of the image as a whole, of its grid cells, and of its colours
MAX_MATCH = 2.5  # standard deviations over images with their own prompts
MIN_DIVISOR = 1e-6  # a word that stands in every text is not rare at all
KNOWN_SHARE = 0.5  # of a prompt's words; with fewer it is in another language
ELEMENT_BOUNDS = {ElementKind.THING: (-0.9, 3.4), ElementKind.COLOUR: (-0.8, 1.8)}
"""Below the first score an element is not seen, from the second on it is seen.

Measured on 715 held-out images, elements of their own prompts against those of others (AUC 0.75 for things,
0.79 for colours): at even odds 91 % and 92 % of what is seen belongs to the image's prompt, 75 % and 88 % of
what is not seen to another one. Kinds that are not named cannot be told well enough.
"""
OTHER_KIND = "Not compared: held-out images have shown that nano cannot tell this kind of element."
UNKNOWN_WORDS = "Not compared: nano does not know these words."

QUALITY_SHARES = {Aspect.QUALITY: 0.7, Aspect.AUTHENTICITY: 0.3}  # of the quality logits beside the match


class AlignedImages(NamedTuple):
    """N images in the space that they share with texts, ready to be compared with prompts."""

    images: Tensor
    """[N, K], of unit length."""
    grid_cells: Tensor
    """[N, T, K], likewise."""
    colours: Tensor
    """[N, 11], how much there is of each, standardized."""

    def of(self, image: int) -> AlignedImages:
        """One image alone."""
        return AlignedImages(*(field[image : image + 1] for field in self))


def unfitted_weights(states: int) -> dict[str, Tensor]:
    """Weights of an aligner that knows no words, for a language model with states of this width.

    Names are keys of matchers.safetensors; "usual" is mean and standard deviation.
    """
    standard = torch.tensor([0.0, 1.0])
    return {
        "letters": torch.zeros(0),  # of the dictionary, as bytes; one word a line
        "rarity": torch.zeros(0),  # [V], of these words
        "state_centre": torch.zeros(states),
        "state_map": torch.zeros(states, 1),  # [d, D], after which words have unit length
        "text_map": torch.zeros(1, 1),  # [D, K]
        "text_centre": torch.zeros(1),
        "image_maps": torch.zeros(2, HEAD_CHANNELS, 1),  # [2, C, K], of the image at both resolutions
        "image_centres": torch.zeros(2, 1),
        "references": torch.zeros(1, 1, 1),  # [R, T, K], grid cells of images
        "usual_colours": standard[:, None].repeat(1, len(COLOUR_NAMES)),
        "usual_parts": standard.repeat(len(PART_WEIGHTS), 1),  # over all pairs of image and prompt
        "usual": standard,  # of the weighted sum, over images with their own prompts
        "share": torch.tensor(1.0),  # of the match beside quality logits; older checkpoints lack it
    }


class PromptAligner(nn.Module):
    """How well images and prompts match: mean 0, standard deviation `share` over images with their prompts.

    A prompt of whose words too few are known has a match of 0. A word is known if it stands in the dictionary
    or is a single token of the language model.
    """

    letters: Tensor
    rarity: Tensor
    state_centre: Tensor
    state_map: Tensor
    text_map: Tensor
    text_centre: Tensor
    image_maps: Tensor
    image_centres: Tensor
    references: Tensor
    usual_colours: Tensor
    usual_parts: Tensor
    usual: Tensor
    share: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in {"share": torch.tensor(1.0), **weights}.items():
            self.register_buffer(name, value)
        words = bytes(self.letters.to(torch.uint8).tolist()).decode().split()
        self.rarities: dict[str, float] = dict(zip(words, self.rarity.tolist(), strict=True))
        self.common = {word: -rarity for word, rarity in self.rarities.items()}

    def align(self, features: ImageFeatures) -> AlignedImages:
        """Bring images into the common space."""
        head = features.grid_cells[..., :HEAD_CHANNELS].float()
        maps, centres = self.image_maps.float(), self.image_centres.float()

        def mapped(x: Tensor, resolution: int) -> Tensor:
            return x.log1p() @ maps[resolution] - centres[resolution]

        whole, fine = head[:, :WHOLE_CELLS], head[:, WHOLE_CELLS:]
        images = mapped(whole.mean(1), 0) + mapped(fine.mean(1), 1)
        cells = torch.cat([mapped(whole, 0), mapped(fine, 1)], dim=1)
        mean, std = self.usual_colours.float()
        colours = (features.colours.float() - mean) / std
        return AlignedImages(F.normalize(images, dim=-1), F.normalize(cells, dim=-1), colours)

    def match(self, aligned: AlignedImages, prompt: str, word_states: WordStates) -> Tensor:
        """[N], within MAX_MATCH of 0."""
        words = self.known_words(prompt, word_states)
        if not words:
            return aligned.images.new_zeros(len(aligned.images))
        mean, std = self.usual.float()
        total = _weighted(self._parts_of(words, aligned, prompt, word_states))
        match: Tensor = self.share * ((total - mean) / std).clamp(-MAX_MATCH, MAX_MATCH)
        return match

    def total(self, aligned: AlignedImages, prompt: str, word_states: WordStates) -> Tensor:
        """[N], the weighted sum of the parts."""
        return _weighted(self.parts(aligned, prompt, word_states))

    def parts(self, aligned: AlignedImages, prompt: str, word_states: WordStates) -> Tensor:
        """[3, N]: the match of the image as a whole, of its grid cells and of its colours; 0 for what the
        prompt does not mention."""
        words = self.known_words(prompt, word_states)
        if not words:
            return aligned.images.new_zeros(len(PART_WEIGHTS), len(aligned.images))
        return self._parts_of(words, aligned, prompt, word_states)

    def _parts_of(
        self, words: list[str], aligned: AlignedImages, prompt: str, word_states: WordStates
    ) -> Tensor:
        parts = aligned.images.new_zeros(len(PART_WEIGHTS), len(aligned.images))
        mean, std = self.usual_parts.float().unbind(1)
        rarity, vectors = self._rarity(words), self._vectors(words, word_states)
        parts[0] = aligned.images @ F.normalize(self._text(rarity, vectors), dim=0)
        parts[1] = self._nearness(aligned, vectors) @ rarity / rarity.sum().clamp_min(MIN_DIVISOR)
        parts = (parts - mean[:, None]) / std[:, None]
        named = named_colours(prompt)
        parts[2] = aligned.colours[:, named].mean(1) / std[2] if named else 0.0
        return parts

    def nearness(self, aligned: AlignedImages, words: list[str], word_states: WordStates) -> Tensor:
        """[N, W]: how near each word is to a grid cell, in standard deviations over the references."""
        return self._nearness(aligned, self._vectors(words, word_states))

    def _nearness(self, aligned: AlignedImages, vectors: Tensor) -> Tensor:
        references = _nearness(self.references.float(), vectors)
        nearness = _nearness(aligned.grid_cells, vectors)
        return (nearness - references.mean(0)) / (references.std(0) + MIN_DIVISOR)

    def known_words(self, prompt: str, word_states: WordStates) -> list[str]:
        """None where most words are unknown."""
        words = content_words(prompt, self.common)
        known = [word for word in words if word in self.rarities or word_states.is_one_token(word)]
        enough = self.rarities and len(known) >= KNOWN_SHARE * (len(words) + foreign_words(prompt))
        return known if enough else []

    def _rarity(self, words: list[str]) -> Tensor:
        """[W]; a word that is not in the dictionary is as rare as the rarest that is."""
        rarest = max(self.rarities.values())
        rarities = [self.rarities.get(word, rarest) for word in words]
        return torch.tensor(rarities, device=self.rarity.device)

    def _vectors(self, words: list[str], word_states: WordStates) -> Tensor:
        """[W, K]."""
        inner = (word_states.states(words) - self.state_centre.float()) @ self.state_map.float()
        return F.normalize(inner, dim=-1) @ self.text_map.float()

    def _text(self, rarity: Tensor, vectors: Tensor) -> Tensor:
        """[K]: the words' sum, in which rare ones count more."""
        norm: Tensor = rarity.norm()
        return rarity @ vectors / norm.clamp_min(MIN_DIVISOR) - self.text_centre.float()


class PromptAligners(nn.Module):
    """Several aligners, each fitted without prompts of the length of those that it judges (cross-fitting).

    So no training image matches its own prompt better than a new image would, and whatever reads the matches
    can be trained with the same images. A prompt of which one word is replaced is judged by the same aligner,
    as it has to be if the two are compared.
    """

    def __init__(self, aligners: Sequence[PromptAligner]) -> None:
        super().__init__()
        self.each = nn.ModuleList(aligners)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> PromptAligners:
        """From a state dict."""
        by_number: dict[str, dict[str, Tensor]] = {}
        for name, value in weights.items():
            _, number, own = name.split(".")
            by_number.setdefault(number, {})[own] = value
        return cls([PromptAligner(by_number[number]) for number in sorted(by_number, key=int)])

    def set_share(self, share: float) -> None:
        """How much matches count beside quality logits, in correspondence logits."""
        for aligner in self._aligners:
            aligner.share.fill_(share)

    def align(self, features: ImageFeatures) -> list[AlignedImages]:
        """The same N images, by each aligner."""
        return [aligner.align(features) for aligner in self._aligners]

    def know_words(self, prompt: str, word_states: WordStates) -> bool:
        """Whether enough words of a prompt are known; if not, its match is 0. Unfitted ones cannot tell."""
        aligner = self._aligners[length_class(prompt, len(self.each))]
        return not aligner.rarities or bool(aligner.known_words(prompt, word_states))

    def match(self, aligned: Sequence[AlignedImages], prompt: str, word_states: WordStates) -> Tensor:
        """[N], within MAX_MATCH of 0."""
        number = length_class(prompt, len(self.each))
        return self._aligners[number].match(aligned[number], prompt, word_states)

    def nearness_of_words(
        self, aligned: Sequence[AlignedImages], prompt: str, word_states: WordStates
    ) -> dict[str, float]:
        """Of a prompt's words in their base forms: how near each is to a part of one image.

        In standard deviations over images. Empty where too few words are known.
        """
        number = length_class(prompt, len(self.each))
        aligner = self._aligners[number]
        words = aligner.known_words(prompt, word_states)
        if not words:
            return {}
        nearness = aligner.nearness(aligned[number], words, word_states)[0]
        return dict(zip(words, nearness.tolist(), strict=True))

    def check(
        self, aligned: Sequence[AlignedImages], element: PromptElement, word_states: WordStates
    ) -> CheckedElement:
        """Whether one image shows an element: things by the mean over the aligners, colours by its pixels."""
        if element.kind not in ELEMENT_BOUNDS:
            return CheckedElement(element, Presence.NOT_JUDGED, OTHER_KIND)
        scores, compared = [], ""
        for aligner, own in zip(self._aligners, aligned, strict=True):
            words, named = aligner.known_words(element.text, word_states), named_colours(element.text)
            if not (named if element.kind is ElementKind.COLOUR else words):
                return CheckedElement(element, Presence.NOT_JUDGED, UNKNOWN_WORDS)
            if element.kind is ElementKind.COLOUR:
                names = " and ".join(COLOUR_NAMES[number] for number in named)
                compared = f"How much {names} there is anywhere in the image, with how much is usual."
                scores.append(own.colours[0, named].mean())
            else:
                parts_compared = f"the image as a whole and each of its {own.grid_cells.shape[1]} parts"
                compared = f"The words “{' '.join(words)}”, with {parts_compared}."
                parts = aligner._parts_of(words, own, element.text, word_states)[:, 0]
                scores.append(parts[0] + PART_WEIGHTS[1] * parts[1])
        low, high = ELEMENT_BOUNDS[element.kind]
        score = float(torch.stack(scores).mean())
        presence = Presence.SEEN if score >= high else Presence.NOT_SEEN if score < low else Presence.NOT_SURE
        bounds = f"it counts as seen from {high:g} on, and as not seen below {low:g}"
        return CheckedElement(element, presence, f"{compared} The score is {score:.1f}; {bounds}.")

    @property
    def _aligners(self) -> list[PromptAligner]:
        return [aligner for aligner in self.each if isinstance(aligner, PromptAligner)]


def length_class(prompt: str, classes: int) -> int:
    """By the number of words; in [0, classes)."""
    return len(prompt.split()) % classes


def _weighted(parts: Tensor) -> Tensor:
    return torch.tensor(PART_WEIGHTS, device=parts.device) @ parts


def _nearness(cells: Tensor, vectors: Tensor) -> Tensor:
    """Grid cells [N, T, K] and words [W, K] -> [N, W]: a soft maximum of the cosines."""
    return (SOFTMAX_SHARPNESS * cells @ F.normalize(vectors, dim=1).T).logsumexp(1)


def correspondence_logit(match: Tensor, quality_logits: Tensor) -> Tensor:
    """Match [...] and quality logits [..., JUDGED_ASPECTS] -> [...]: mean 0, standard deviation about 1.

    People who are asked about the prompt judge the quality as well: a botched cat is less of a cat.
    """
    shares = torch.tensor([QUALITY_SHARES[aspect] for aspect in JUDGED_ASPECTS], device=match.device)
    total = match + quality_logits.float().clamp(-MAX_MATCH, MAX_MATCH) @ shares
    return total / (1 + shares.square().sum()).sqrt()


def rotate(worst: Tensor, best: Tensor, logit: Tensor) -> Tensor:
    """A direction [d] of unit length: midway between two others for a logit of 0, else nearer to one."""
    middle = F.normalize(F.normalize(worst, dim=0) + F.normalize(best, dim=0), dim=0)
    step = best - worst
    step = F.normalize(step - (step @ middle) * middle, dim=0)
    angle = (ANGLE_PER_UNIT * logit).clamp(-math.pi / 2, math.pi / 2)
    return angle.cos() * middle + angle.sin() * step
