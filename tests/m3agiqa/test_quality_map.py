"""Where an image looks bad: the default model's map, that of other models by occlusion, and the overlay."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from m3agiqa import Aspect, Assessor, InputError, QualityMap, Stopped
from m3agiqa.backbones.base import Request
from m3agiqa.backbones.nano.nss_features import texture_signs
from m3agiqa.backbones.nano.window_scores import departures
from m3agiqa.quality_map import MAX_OPACITY, MapPart, even_parts

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from quality_map import DAMAGES, OTHER_DAMAGES, damaged, quarter_of

MAPPED = (Aspect.QUALITY, Aspect.AUTHENTICITY)


def dead_leaves(seed: int, size: tuple[int, int] = (512, 384)) -> Image.Image:
    """Discs over discs of all sizes, as many of each as in natural images, with a little noise."""
    random, (width, height), number = np.random.default_rng(seed), (2 * size[0], 2 * size[1]), 3000
    image = Image.new("RGB", (width, height))
    radii = np.minimum(6 / np.sqrt(random.uniform(1e-3, 1, number)), 220)
    centres = random.uniform(0, 1, (number, 2)) * (width, height)
    for (x, y), radius, colour in zip(centres, radii, random.integers(20, 236, (number, 3)), strict=True):
        box = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(image).ellipse(box, fill=tuple(colour.tolist()))
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32)
    noisy = pixels + random.normal(0, 4, (*pixels.shape[:2], 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def test_the_worst_part_lies_where_an_image_is_damaged_not_in_its_sky(assessor: Assessor) -> None:
    """On images of generators: benchmarks/quality_map.py."""
    sky = Image.linear_gradient("L").resize((256, 192)).convert("RGB")
    for seed in range(2):
        image = dead_leaves(seed)
        image.paste(sky, (0, 0))
        for quarter, damage in enumerate(("blurred", "smeared", "pixelated"), 1):
            found = assessor.quality_map(damaged(image, quarter, damage))
            assert {quarter_of(found.worst(aspect), image.size) for aspect in MAPPED} == {quarter}, damage


def test_signs_of_texture_tell_damage_from_emptiness() -> None:
    image, empty = dead_leaves(0), Image.linear_gradient("L").convert("RGB")
    usual = texture_signs(image)
    seen = {
        name: (departures(texture_signs(damage(image, 384)), usual) > 0).tolist()
        for name, damage in (DAMAGES | OTHER_DAMAGES).items()
    }
    assert seen.pop("pixelated") == [True, True, False]
    assert seen.pop("noisy") == [False, False, True]
    seen.pop("compressed")  # is not seen
    assert all(each == [True, False, False] for each in seen.values()), seen
    assert not departures(texture_signs(empty), usual)[:2].any()
    assert not texture_signs(Image.new("RGB", (256, 256), "white")).any()


def test_the_default_model_says_how_far_it_is_and_can_be_stopped(assessor: Assessor) -> None:
    image, reports = dead_leaves(0), []
    found = assessor.quality_map(image, report=lambda *counts: reports.append(counts))
    assert list(found.scores) == list(MAPPED) and len(found.parts) == 16
    assert all(np.median(values) == pytest.approx(0, abs=1e-9) for values in found.scores.values())
    assert reports == [(done, 16) for done in range(0, 16, 4)]
    with pytest.raises(Stopped):
        assessor.quality_map(image, stop=lambda: True)
    with pytest.raises(InputError, match=r"100 × 90 pixels; .* at least 128 a side"):
        assessor.quality_map(image.resize((100, 90)))


@pytest.mark.parametrize(("size", "windows"), [((256, 2100), (4, 8)), ((1300, 128), (6, 4))])
def test_windows_reach_from_edge_to_edge(assessor: Assessor, size: tuple[int, int], windows: tuple) -> None:
    found = assessor.quality_map(Image.effect_noise(size, 60).convert("RGB"))
    assert len(found.parts) == math.prod(windows)
    assert {part[2:] for part in found.parts} == {(min(size) // 2, min(size) // 2)}
    last = found.parts[-1]
    assert (last.left + last.width, last.top + last.height) == size


def test_other_models_have_parts_covered(scripted: Assessor, picture: Image.Image) -> None:
    """The dark quarter is the worst to a model that likes light; descriptions are those of the whole."""
    image = Image.new("RGB", (200, 120), "grey")
    image.paste("black", (100, 60, 200, 120))
    texts: list[str] = []

    def encode(requests: Sequence[Request]) -> list[Tensor]:
        [request] = requests
        texts.extend(conversation.turns[1].content for conversation in request.conversations)
        light = float(np.asarray(request.image, np.float32).mean())
        return [torch.tensor(light)] * len(request.conversations)

    told = scripted.assess(image, "a ball")
    scripted.backbone.encode = encode
    for predictor in scripted.predictors.values():
        predictor.predict = lambda states: 1 + float(states) / 64
    reports: list[tuple[int, int]] = []
    found = scripted.quality_map(image, told, lambda *counts: reports.append(counts))
    assert list(found.scores) == list(MAPPED)
    assert reports == [(number, 16) for number in range(16)]
    assert set(texts) == {told.aspects[Aspect.QUALITY].description}
    worst = np.array(found.scores[Aspect.QUALITY]).reshape(4, 4)
    assert (worst[2:, 2:] < worst.min(where=np.arange(4)[:, None] < 2, initial=0)).all()
    assert found.worst(Aspect.QUALITY)[:2] >= (100, 60)
    with pytest.raises(Stopped):
        scripted.quality_map(image, told, stop=lambda: True)


def test_the_overlay_colours_what_is_worse_than_the_median() -> None:
    size = (400, 200)
    scores = {Aspect.QUALITY: [0.5, 0.5, 0.5, 0.5, 0.5, -1.5, 0.5, 0.9]}
    found = QualityMap.of(size, even_parts(size, (4, 2)), scores, "By hand.", 0.4)
    assert found.worst(Aspect.QUALITY) == MapPart(100, 100, 100, 100)
    overlay = np.asarray(found.overlay(Aspect.QUALITY))
    assert overlay.shape == (128, 256, 4)
    opacity = overlay[..., 3] / 255
    assert opacity[70:120, 70:120].min() == pytest.approx(MAX_OPACITY, abs=0.01)
    assert opacity[:60].max() == 0 and opacity[:, 140:].max() == 0
    faint = QualityMap.of(size, found.parts, {Aspect.QUALITY: [0, 0, 0, 0, 0, -0.1, 0, 0]}, "", 0.4)
    assert faint.opacity(Aspect.QUALITY).max() == pytest.approx(MAX_OPACITY / 4, abs=0.01)
    assert json.loads(json.dumps(found.to_dict()))["worst"] == {"quality": [100, 100, 100, 100]}
