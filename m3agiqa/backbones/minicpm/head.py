"""The output head, read from the files of a base without the rest of the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from m3agiqa.backbones.minicpm.loading import weight_files
from m3agiqa.errors import WeightsError

HEAD_TENSOR = "llm.lm_head.weight"
BLOCK_ROWS = 4096


def head_blocks(base: Path) -> Iterator[tuple[Tensor, float]]:
    """Its rows [at most ROWS, d] in order, in the files' precision, and the share that has been read then.

    Raises WeightsError for files that are missing or damaged.
    """
    for path in weight_files(base):
        try:
            with safe_open(path, framework="pt") as file:
                if HEAD_TENSOR in file.keys():  # noqa: SIM118, as it is no dictionary
                    matrix = file.get_slice(HEAD_TENSOR)
                    rows, _ = matrix.get_shape()
                    for start in range(0, rows, BLOCK_ROWS):
                        yield matrix[start : start + BLOCK_ROWS], min(start + BLOCK_ROWS, rows) / rows
                    return
        except SafetensorError as error:
            raise WeightsError(f"{path} is damaged ({error}). Delete it and download it anew.") from error
    raise WeightsError(f"The weights in {base} lack {HEAD_TENSOR}. Download them anew.")
