"""An image as MiniCPM-V 2.5 sees it: an overview, and slices of a larger one (LLaVA-UHD's way).

Resizing is Pillow's, bicubic, so that pixels are the published ones; torchvision is not needed. Pillow 13
scales tall pictures in another order than the versions that the model was trained with, so it is not used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from m3agiqa.errors import WeightsError


@dataclass(frozen=True)
class Slicing:
    """How images are cut; the values of a model's preprocessor_config.json."""

    scale_resolution: int = 448
    """Side in pixels of the square whose area a slice has, about."""
    max_slice_nums: int = 9
    patch_size: int = 14
    norm_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    norm_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_config(cls, facts: dict[str, Any]) -> Self:
        """Of the file's content; what it leaves out is as published."""
        try:
            given = {name: facts[name] for name in cls.__dataclass_fields__ if name in facts}
            for name in ("norm_mean", "norm_std"):
                if name in given:
                    given[name] = tuple(map(float, given[name]))
            return cls(**given)
        except (TypeError, ValueError) as error:
            raise WeightsError(f"The model's preprocessor_config.json is damaged: {error}") from error


@dataclass(frozen=True)
class Slices:
    """One image, ready for the vision encoder. The overview comes first, then the grid row by row."""

    pixels: list[Tensor]
    """Each [3, patch, patches * patch]: its patches side by side in one row, normalized."""
    sizes: list[tuple[int, int]]
    """Patch rows and columns of each."""
    grid: tuple[int, int] | None
    """Columns and rows of slices; None: the overview is all."""


def sliced(image: Image.Image, slicing: Slicing) -> Slices:
    """Cut an RGB image of any size."""
    grid = slice_grid(image.size, slicing)
    overview = _fitting(image.size, slicing, enlarge=grid is None)
    pictures = [image.resize(overview, Image.Resampling.BICUBIC)]
    if grid is not None:
        columns, rows = grid
        width, height = _cell(image.size, grid, slicing)
        whole = image.resize((width * columns, height * rows), Image.Resampling.BICUBIC)
        pictures += [
            whole.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
            for y in range(rows)
            for x in range(columns)
        ]
    patch = slicing.patch_size
    sizes = [(picture.height // patch, picture.width // patch) for picture in pictures]
    return Slices([patches(picture, slicing) for picture in pictures], sizes, grid)


def slice_grid(size: tuple[int, int], slicing: Slicing) -> tuple[int, int] | None:
    """Columns and rows whose ratio is nearest to the image's (width, height); None for a small image."""
    width, height = size
    wanted = min(math.ceil(width * height / slicing.scale_resolution**2), slicing.max_slice_nums)
    if wanted <= 1:
        return None
    counts = [n for n in (wanted - 1, wanted, wanted + 1) if 1 < n <= slicing.max_slice_nums]
    grids = [(columns, n // columns) for n in counts for columns in range(1, n + 1) if n % columns == 0]
    ratio = math.log(width / height)
    return min(grids, key=lambda grid: abs(ratio - math.log(grid[0] / grid[1])))


def _fitting(size: tuple[float, float], slicing: Slicing, enlarge: bool) -> tuple[int, int]:
    """Width and height of whole patches, near scale_resolution² in area and near the ratio given."""
    width, height = size
    if enlarge or width * height > slicing.scale_resolution**2:
        ratio = width / height
        height = int(slicing.scale_resolution / math.sqrt(ratio))
        width = int(height * ratio)
    return _multiple(width, slicing.patch_size), _multiple(height, slicing.patch_size)


def _cell(size: tuple[int, int], grid: tuple[int, int], slicing: Slicing) -> tuple[int, int]:
    """Width and height of one slice."""
    width, height = (_multiple(length, count) / count for length, count in zip(size, grid, strict=True))
    return _fitting((width, height), slicing, enlarge=True)


def _multiple(length: float, of: int) -> int:
    return max(round(length / of) * of, of)


def patches(picture: Image.Image, slicing: Slicing) -> Tensor:
    """RGB picture of h x w whole patches -> [3, patch, h * w * patch]."""
    patch = slicing.patch_size
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    mean, std = torch.tensor(slicing.norm_mean), torch.tensor(slicing.norm_std)
    values = (data.view(picture.height, picture.width, 3).float() / 255 - mean) / std
    rows = values.view(picture.height // patch, patch, picture.width // patch, patch, 3)
    return rows.permute(4, 1, 0, 2, 3).reshape(3, patch, -1)
