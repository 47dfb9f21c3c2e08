"""The image side of nano: EfficientNet-Lite0 -> image features -> visual tokens of the language model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from m3agiqa.backbones.adapters import load_adapter
from m3agiqa.backbones.cpu_precision import fast_autocast
from m3agiqa.backbones.nano.colors import colours
from m3agiqa.backbones.nano.connector import Connector, ImageFeatures, gather_grid_cells
from m3agiqa.backbones.nano.efficientnet_lite import EfficientNetLite0, Views, statistics, views
from m3agiqa.backbones.nano.nss_features import FINEST_OCTAVE, N_APPEARANCE
from m3agiqa.backbones.nano.prompt_alignment import (
    AlignedImages,
    PromptAligner,
    PromptAligners,
    correspondence_logit,
    unfitted_weights,
)
from m3agiqa.backbones.nano.quality_encoder import ENCODED_ASPECTS, QualityEncoder, early_maps
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS
from m3agiqa.backbones.nano.window_scores import window_scores
from m3agiqa.backbones.nano.word_states import WordStates
from m3agiqa.backbones.per_aspect import sharing_copy
from m3agiqa.conversation import Conversation
from m3agiqa.errors import WeightsError, raise_if_stopped
from m3agiqa.quality_map import QualityMap, Report

CONNECTOR_FILE = "connector.safetensors"
PROMPT_ALIGNERS_FILE = "matchers.safetensors"
QUALITY_ENCODER_FILE = "quality-encoder.safetensors"
VISION_ADAPTER_FOLDER = "vision-adapter"


class ImageEncoder:
    """The vision encoder and what was fitted to read it; `hidden_size` is the language model's."""

    def __init__(self, vision: EfficientNetLite0, hidden_size: int) -> None:
        self.vision = vision
        self.hidden_size = hidden_size
        self.connector = Connector(hidden_size)
        self.quality_encoder = QualityEncoder(vision).eval().requires_grad_(False)
        self.prompt_aligners = PromptAligners([PromptAligner(unfitted_weights(hidden_size))])
        self.is_serving = False
        """At inference: what cannot count is not computed, and no image changes another of its batch."""

    def read(self, folder: Path) -> None:
        """Take over what a folder holds: a connector, and the rest where there is any.

        Without a quality encoder all its scores are 0, and without prompt aligners all matches of prompts.
        Raises WeightsError for files of another version of nano.
        """
        self.connector = self._read_connector(folder / CONNECTOR_FILE)
        if (folder / QUALITY_ENCODER_FILE).exists():
            weights = load_file(folder / QUALITY_ENCODER_FILE)
            learned = {name: value.float() for name, value in weights.items()}
            self.quality_encoder.load_state_dict(learned, strict=False)
        if (folder / PROMPT_ALIGNERS_FILE).exists():
            self.prompt_aligners = PromptAligners.of(load_file(folder / PROMPT_ALIGNERS_FILE))

    def read_for_inference(self, folder: Path) -> None:
        """As `read`, with LoRA of the vision encoder merged into it. Raises WeightsError."""
        self.read(folder)
        self.connector = self.connector.float().eval().requires_grad_(False)
        self.vision = load_adapter(self.vision, folder / VISION_ADAPTER_FOLDER, merge=True)

    def sibling(self, folder: Path) -> Self:
        """Another one, trained as a folder says, that shares the base weights of this one."""
        other = copy.copy(self)
        other.quality_encoder = sharing_copy(self.quality_encoder)
        other.read(folder)
        other.connector = other.connector.float().eval().requires_grad_(False)
        other.vision = load_adapter(sharing_copy(self.vision), folder / VISION_ADAPTER_FOLDER)
        return other

    def _read_connector(self, path: Path) -> Connector:
        connector = Connector(self.hidden_size)
        # What checkpoints of 0.4.1 do not have stays 0.
        unfitted = connector.quality_regressor.state_dict(prefix="opinions.")
        try:
            connector.load_state_dict({**unfitted, **load_file(path)})
        except RuntimeError as error:
            raise WeightsError(
                f"{path} was made by another version of this project, whose nano looks at images in another "
                "way. Train the model again with this version, or use it with the version that made it."
            ) from error
        return connector

    # --- images -> features -> tokens --------------------------------------------------------

    def features(self, shown: Views, stop: Callable[[], bool] = lambda: False) -> ImageFeatures:
        """Of N images, as the connector and the prompt aligners take them."""
        kind = next(self.vision.parameters())
        whole, fine = self.vision(shown.whole.to(kind)), self.vision(shown.fine.to(kind))
        raise_if_stopped(stop)
        counts = [len(windows) for windows in shown.windows]
        together = torch.cat(shown.windows).to(kind).contiguous(memory_format=torch.channels_last)
        window_maps = self.vision(together)
        raise_if_stopped(stop)
        of_windows = torch.stack([each.mean(0) for each in statistics(window_maps).split(counts)])
        image_statistics = torch.cat([statistics(fine), of_windows], dim=1)
        appearance = shown.appearance.to(kind.device)
        scores = kind.new_zeros(len(counts), len(ENCODED_ASPECTS))
        if not self.is_serving or self.connector.quality_regressor.gate(image_statistics, appearance).any():
            scores = self.quality_encoder(early_maps(whole), early_maps(window_maps).split(counts))
        return ImageFeatures(
            gather_grid_cells(whole, fine),
            image_statistics,
            appearance,
            colours(shown.pixels).to(kind.device),
            scores[:, [ENCODED_ASPECTS.index(aspect) for aspect in JUDGED_ASPECTS]].float(),
        )

    def encode(
        self, images: Sequence[Image.Image], stop: Callable[[], bool] = lambda: False
    ) -> EncodedImages:
        """Visual tokens of N images, and what prompts are compared with.

        `stop` is asked in between; once it answers True, Stopped is raised.
        """
        # One by one while serving, as convolutions round otherwise for several images at once.
        batches = [[image] for image in images] if self.is_serving else [images]
        parts = []
        for batch in batches:
            raise_if_stopped(stop)
            parts.append(self.encode_views(views(batch), stop))
        return EncodedImages.of(parts)

    def encode_views(self, shown: Views, stop: Callable[[], bool] = lambda: False) -> EncodedImages:
        """As `encode`, of images that were cut into views already, in one batch."""
        raise_if_stopped(stop)
        with fast_autocast() if self.is_serving else nullcontext():
            features = self.features(shown, stop)
        features = features._replace(grid_cells=features.grid_cells.to(self.connector.grid_embedding.dtype))
        quality_logits = self.connector.quality_logits(features)
        tokens = self.connector(features, quality_logits)
        deviations = self.connector.quality_regressor.deviations(features.statistics, features.appearance)
        detail = deviations[:, FINEST_OCTAVE - N_APPEARANCE]
        aligned = self.prompt_aligners.align(features)
        return EncodedImages(tokens, aligned, quality_logits, shown.pixels, detail)

    # --- what is read off them ---------------------------------------------------------------

    def logit(
        self, images: EncodedImages, owner: int, conversation: Conversation, words: WordStates
    ) -> Tensor:
        """What the conversation about image number `owner` asks, with mean 0 and standard deviation 1.

        The conversation has an aspect, and a prompt where that is correspondence.
        """
        if conversation.aspect in JUDGED_ASPECTS:
            return images.quality_logits[owner, JUDGED_ASPECTS.index(conversation.aspect)]
        assert conversation.prompt is not None, "correspondence is asked with a prompt"
        match = self.prompt_aligners.match(images.aligned_with(owner), conversation.prompt, words)[0]
        return correspondence_logit(match, images.quality_logits[owner])

    def quality_map(self, image: Image.Image, report: Report, stop: Callable[[], bool]) -> QualityMap:
        """Scores of windows of the image's own pixels."""
        return window_scores(self.vision, self.connector.quality_regressor, image, report, stop)


@dataclass(frozen=True)
class EncodedImages:
    """What N images are to the language model, and to prompts."""

    tokens: Tensor
    """Visual tokens [N, VISUAL_TOKENS, d]."""
    aligned: list[AlignedImages]
    """By each of the prompt aligners."""
    quality_logits: Tensor
    """[N, JUDGED_ASPECTS]."""
    pixels: Tensor
    """RGB [N, 3, S, S] in [0, 1], small."""
    detail: Tensor
    """[N], of the finest octave of each image's own pixels, in standard deviations from the mean image."""

    def aligned_with(self, owner: int) -> list[AlignedImages]:
        """One of the images, by each of the prompt aligners."""
        return [each.of(owner) for each in self.aligned]

    @classmethod
    def of(cls, parts: Sequence[EncodedImages]) -> EncodedImages:
        """The images of all parts."""
        aligned = [
            AlignedImages(*map(torch.cat, zip(*same, strict=True)))
            for same in zip(*(part.aligned for part in parts), strict=True)
        ]
        return cls(
            torch.cat([part.tokens for part in parts]),
            aligned,
            torch.cat([part.quality_logits for part in parts]),
            torch.cat([part.pixels for part in parts]),
            torch.cat([part.detail for part in parts]),
        )
