"""Changes with a known effect must have it, and keep what they should not touch."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample
from training.data.distortions import (
    DAMAGE_KINDS,
    damage,
    damaged_mos,
    jitter,
    unrelated_description,
    unrelated_prompt,
)

SCALE = MosScale(1.0, 5.0)


def checkerboard(width: int, height: int, cell: int = 7) -> Image.Image:
    rows, columns = np.indices((height, width)) // cell
    grey = ((rows + columns) % 2 * 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey, 255 - grey, grey], axis=-1))


@pytest.mark.parametrize("kind", DAMAGE_KINDS)
def test_damage_is_visible_repeatable_and_keeps_the_size(kind: str) -> None:
    image = checkerboard(200, 120)
    worse = damage(image, kind, Random(3))
    assert worse.size == image.size
    assert worse.mode == "RGB"
    difference = np.asarray(ImageChops.difference(image, worse)).mean()
    assert difference > 3
    assert worse.tobytes() == damage(image, kind, Random(3)).tobytes()


def test_blur_grows_with_strength() -> None:
    image = checkerboard(256, 256)

    def contrast(strength: float) -> float:
        return float(np.asarray(damage(image, "blur", Random(0), strength)).std())

    assert contrast(0.5) > contrast(1.0) > contrast(2.0)


def test_unknown_damage_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="blur, noise"):
        damage(checkerboard(64, 64), "scratch", Random(0))


@given(st.floats(1, 5), st.floats(1, 5))
def test_damaged_mos_keeps_order_and_never_exceeds_the_original(a: float, b: float) -> None:
    assert SCALE.low <= damaged_mos(a, SCALE) <= a
    if a < b:
        assert damaged_mos(a, SCALE) <= damaged_mos(b, SCALE)


@given(st.integers(64, 400), st.integers(64, 400), st.integers())
def test_jitter_keeps_the_shape(width: int, height: int, seed: int) -> None:
    image = jitter(Image.new("RGB", (width, height), "teal"), Random(seed))
    assert image.mode == "RGB"
    assert 64 <= image.width <= width or image.width == 64
    assert 64 <= image.height <= height or image.height == 64


def test_unrelated_prompt_is_another_samples() -> None:
    pool = [Sample(str(i), Path("x"), prompt) for i, prompt in enumerate(["a cat", "a cat", "a dog", None])]
    assert {unrelated_prompt(pool[0], pool, Random(seed)) for seed in range(20)} == {"a dog"}


def test_an_only_prompt_has_no_other() -> None:
    pool = [Sample(str(i), Path("x"), prompt) for i, prompt in enumerate(["a cat", "a cat", "", None])]
    with pytest.raises(InputError, match="No other sample of the split train"):
        unrelated_prompt(pool[0], pool, Random(0))


def test_unrelated_description_names_own_content_only_if_it_is_known() -> None:
    match = Sample("1", Path("x"), "a red boat", mos={Aspect.CORRESPONDENCE: 4.5})
    mismatch = Sample("2", Path("x"), "a red boat", mos={Aspect.CORRESPONDENCE: 1.5})
    for seed in range(10):
        assert "a red boat" in unrelated_description(match, "a dog", SCALE, Random(seed))
        assert "a red boat" not in unrelated_description(mismatch, "a dog", SCALE, Random(seed))
