"""A map of images by what they show, with an encoder that sees nothing but the mean colour."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from waiting import wait_until

from annotation.failures.image_map import NEAR_DUPLICATES, ImageMap, ImageMaps, MapProgress, group_ranks
from m3agiqa.errors import WeightsError

COLOURS = {"red": "red", "rose": (255, 40, 40), "green": "green", "blue": "blue", "sky": (40, 40, 255)}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{name}.png" for name in COLOURS]
    for path, colour in zip(paths, COLOURS.values(), strict=True):
        Image.new("RGB", (40, 40), colour).save(path)
    return [str(path) for path in paths]


class Encoding:
    """Tells how many images it has seen."""

    seen = 0

    def __call__(self) -> Callable[[Sequence[Image.Image]], np.ndarray]:
        return self.encode

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.seen += len(images)
        means = np.array([np.asarray(image).mean((0, 1)) for image in images])
        return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.fixture
def encoding() -> Iterator[Encoding]:
    return Encoding()


def made(maps: ImageMaps, files: Sequence[str]) -> ImageMap:
    wait_until(lambda: isinstance(maps.of(files), ImageMap))
    return maps.of(files)


def cases(files: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame({"item": list(COLOURS)[: len(files)], "image": files})


def members(table: pd.DataFrame, images: ImageMap, name: str) -> list[str]:
    """In the order of their ranks."""
    ranks = group_ranks(table, images, name).dropna().sort_values(kind="stable")
    return table["item"][ranks.index].tolist()


def test_alike_images_are_found(tmp_path: Path, files: list[str], encoding: Encoding) -> None:
    images, table = made(ImageMaps(tmp_path / "kept.npz", encoding), files), cases(files)
    assert members(table, images, "similar to: rose")[:2] == ["rose", "red"]
    assert members(table, images, "similar to: gone") == []
    assert members(table, images, NEAR_DUPLICATES) == ["red", "rose", "blue", "sky"]
    red, rose, green, blue, _ = images.places
    assert np.linalg.norm(red - rose) < 0.3 < min(np.linalg.norm(red - blue), np.linalg.norm(red - green))
    assert images.places.min() == 0 and images.places.max() == 1
    x, y = rose
    around = " ".join(f"{max(0, x + dx):.3f},{max(0, y + dy):.3f}" for dx, dy in ((-0.2, -0.2), (0.2, -0.2)))
    assert "rose" in members(table, images, f"area: {around} {x:.3f},{min(1, y + 0.2):.3f}")
    assert members(table, images, "area: 0,0 1,0 1,1 0,1") == list(COLOURS)
    for hostile in ("area: ", "area: 1,1", "area: 9,9 8,8 7,7", "area: " + "0,0 " * 999 + "0,0"):
        assert members(table, images, hostile) == []


def test_each_image_is_looked_at_once(tmp_path: Path, files: list[str], encoding: Encoding) -> None:
    maps = ImageMaps(tmp_path / "kept.npz", encoding)
    assert maps.known(files) is None and encoding.seen == 0, "nothing is computed unless it is asked for"
    first = made(maps, files[:4])
    assert encoding.seen == 4 and maps.known(files[:4]) is first
    again = ImageMaps(tmp_path / "kept.npz", encoding)
    assert len(made(again, files).vectors) == encoding.seen == 5
    Image.new("RGB", (40, 40), "yellow").save(files[0])
    assert again.known(files) is None, "another image in the same place is another one"
    made(again, files)
    assert encoding.seen == 6
    (tmp_path / "kept.npz").write_bytes(b"PK damaged")
    made(ImageMaps(tmp_path / "kept.npz", encoding), files)
    assert encoding.seen == 11, "a damaged file is made anew"


def test_what_cannot_be_read_has_no_place(tmp_path: Path, files: list[str], encoding: Encoding) -> None:
    Path(files[0]).write_bytes(b"no image")
    Path(files[1]).unlink()
    images, table = made(ImageMaps(tmp_path / "kept.npz", encoding), files), cases(files)
    assert np.isnan(images.places[:2]).all() and not np.isnan(images.places[2:]).any()
    assert members(table, images, "area: 0,0 1,0 1,1 0,1") == ["green", "blue", "sky"]
    assert members(table, images, NEAR_DUPLICATES) == ["blue", "sky"]
    one = made(ImageMaps(tmp_path / "other.npz", encoding), files[2:3])
    assert one.places.tolist() == [[0.5, 0.5]] and one.duplicates.tolist() == [-1]


def test_whoever_waits_is_told_how_far_it_is_and_what_went_wrong(
    tmp_path: Path, files: list[str], encoding: Encoding
) -> None:
    busy = True
    maps = ImageMaps(tmp_path / "kept.npz", encoding, lambda: busy)
    assert maps.of(files) == MapProgress(0, 5)
    assert maps.of(files[:2]) == MapProgress(0, 2) and encoding.seen == 0, "others need the machine more"
    busy = False
    made(maps, files[:2])

    def missing() -> Callable:
        raise WeightsError("The weights are missing.")

    broken = ImageMaps(tmp_path / "none.npz", missing)
    wait_until(lambda: broken.of(files) == MapProgress(0, 5, "The weights are missing."))
    assert broken.of(files).problem == "", "asking again tries again"
