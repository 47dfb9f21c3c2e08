"""Statistics of pixels: what they tell, and what makes no difference to them."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3agiqa.backbones.nano.nss_features import (
    CANONICAL_SIDE,
    N_APPEARANCE,
    N_CANONICAL,
    N_OCTAVES,
    WINDOW_SIDE,
    appearance,
    canonical,
    windows,
)


def scene(seed: int = 0, side: int = 512) -> Image.Image:
    """Something with the spectrum of natural pictures."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None]) + 1 / side
    layers = []
    for _ in range(3):
        waves = np.fft.fft2(rng.normal(size=(side, side))) / frequency
        layer = np.fft.ifft2(waves).real
        layers.append(128 + 50 * layer / layer.std())
    return Image.fromarray(np.stack(layers, axis=-1).clip(0, 255).astype(np.uint8))


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(1).normal(0, 25, np.asarray(image).shape)
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.sampled_from(["black", "white", "#808080", "noise"]),
)
def test_every_image_has_finite_statistics(size: tuple[int, int], kind: str) -> None:
    image = Image.effect_noise(size, 80).convert("RGB") if kind == "noise" else Image.new("RGB", size, kind)
    found = appearance(image)
    assert found.shape == (N_APPEARANCE,) and np.isfinite(found).all()


@pytest.mark.parametrize("size", [(448, 448), (1024, 1024), (300, 200), (2000, 500)])
def test_all_images_are_compared_at_one_scale(size: tuple[int, int]) -> None:
    shown = canonical(Image.new("RGB", size))
    assert shown.width * shown.height == pytest.approx(CANONICAL_SIDE**2, rel=0.01)
    assert shown.width / shown.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_natural_pictures_are_nearly_gaussian_after_normalization() -> None:
    shape, variance = appearance(scene())[:2]
    assert 1.5 < shape < 4
    assert 0.3 < variance < 1.2


@pytest.mark.parametrize(
    ("size", "count"), [((1, 1), 1), ((256, 256), 1), ((300, 256), 2), ((512, 512), 4), ((1900, 700), 4)]
)
def test_windows_are_own_pixels_and_a_fixed_number(size: tuple[int, int], count: int) -> None:
    image = Image.effect_noise(size, 60).convert("RGB")
    shown = windows(image)
    assert [window.size for window in shown] == [(WINDOW_SIDE, WINDOW_SIDE)] * count
    assert (np.asarray(image) == np.asarray(shown[0])[0, 0]).all(-1).any()


def test_windows_of_a_picture_that_fits_show_all_of_it() -> None:
    image = Image.effect_noise((512, 512), 60).convert("RGB")
    upper_left, upper_right, lower_left, lower_right = windows(image)
    whole = Image.new("RGB", image.size)
    for window, corner in (
        (upper_left, (0, 0)),
        (upper_right, (256, 0)),
        (lower_left, (0, 256)),
        (lower_right, (256, 256)),
    ):
        whole.paste(window, corner)
    assert whole.tobytes() == image.tobytes()


def test_an_upscaled_picture_lacks_the_finest_octave_of_its_own_pixels() -> None:
    image = scene(side=1024)
    upscaled = image.resize((256, 256), Image.Resampling.LANCZOS).resize(image.size, Image.Resampling.BICUBIC)
    before, after = (appearance(each)[-3 * N_OCTAVES :] for each in (image, upscaled))
    assert after[0] < before[0] - 1, "own pixels"
    assert abs(after[4] - before[4]) < 0.2, "a coarse octave"


def test_a_mirror_image_looks_the_same() -> None:
    image = scene()
    turned = appearance(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert np.abs(appearance(image) - turned)[:N_CANONICAL].mean() < 0.02


def test_the_format_of_the_file_makes_little_difference() -> None:
    image = scene()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    compressed, noise = (appearance(each) for each in (Image.open(file).convert("RGB"), noisy(image)))
    difference = np.abs(np.stack([compressed, noise]) - appearance(image)).mean(1)
    assert difference[0] < 0.3 * difference[1]
