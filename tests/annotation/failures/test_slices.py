"""Groups of cases on which a model errs more than elsewhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from annotation.failures.error_table import cases
from annotation.failures.slices import MIN_CASES, attributes, error_slices, members_of

CASES = 400


def judged(error_of: Callable[[dict], float], seed: int = 0, **columns: object) -> pd.DataFrame:
    """Cases with errors of a normal distribution, whose size `error_of` says of each row."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "item": str(number),
            "aspect": "quality",
            "image": "gone.png",
            "generator": ("dalle", "flux and fast", "sd: xl", "vq")[number % 4],
            "prompt": ("a cat", "two cats left of a red dog", "a sign with the text “OPEN”")[number % 3],
            "mos": 2 + number % 2,
            "scale_low": 1.0,
            "scale_high": 5.0,
            **columns,
        }
        for number in range(CASES)
    ]
    for row in rows:
        row["predicted"] = row["mos"] + rng.normal(0, error_of(row))
    return cases(pd.DataFrame(rows))


def test_a_generator_with_larger_errors_is_a_slice() -> None:
    table = judged(lambda row: 1.2 if row["generator"] == "flux and fast" else 0.3)
    first, *_ = error_slices(table)
    assert first.name == "generator: flux and fast" and first.count == CASES // 4
    assert first.mean_error == pytest.approx(1.2 * np.sqrt(2 / np.pi), abs=0.15)
    assert first.low < first.mean_error - first.mean_error_outside < first.high
    assert set(table[members_of(table, first.name)]["generator"]) == {"flux and fast"}


def test_two_attributes_together_are_a_slice_where_neither_alone_explains_it() -> None:
    table = judged(lambda row: 1.5 if row["generator"] == "vq" and "text" in row["prompt"] else 0.3)
    first, *_ = error_slices(table)
    inside = table[members_of(table, first.name)]
    assert "generator: vq and " in first.name
    assert set(inside["generator"]) == {"vq"} and set(inside["prompt"]) == {"a sign with the text “OPEN”"}


def test_equal_errors_give_a_slice_in_at_most_one_of_twenty_tables() -> None:
    """The intervals allow for the number of slices that are tried."""
    with_slices = sum(bool(error_slices(judged(lambda row: 0.5, seed))) for seed in range(20))
    assert with_slices <= 1 + 3, "5 % of 20, and three standard deviations"


def test_small_groups_are_no_slices() -> None:
    table = judged(lambda row: 0.3)
    table.loc[: MIN_CASES - 2, "generator"] = "rare"
    table.loc[: MIN_CASES - 2, "error"] = 3.0
    assert not any("rare" in each.name for each in error_slices(table))
    assert error_slices(table.head(3)) == [] and error_slices(table.head(0)) == []


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    Image.new("RGB", (1200, 40)).save(tmp_path / "wide.png")
    table = judged(lambda row: 0.3, image=str(tmp_path / "wide.png"))
    assert set(attributes(table)["image"]) == {"1024 px and more"}
    assert set(attributes(judged(lambda row: 0.3))["image"]) == {None}, "the file is gone"


@pytest.mark.parametrize("name", ["", "beauty: none", "generator: nobody", "generator: vq and x: y"])
def test_a_name_that_is_no_slice_has_no_cases(name: str) -> None:
    assert not members_of(judged(lambda row: 0.3), name).any()
