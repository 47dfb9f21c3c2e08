"""Leaving sources out: whatever sources and parts there are, what can be measured is, and nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.samples import Sample
from training.stages.fit import FitConfig
from training.stages.fit_data import Target
from training.stages.leave_source_out import TRANSFER_COLUMNS, leave_source_out, with_interval, within_source

SCALE = MosScale(1.0, 5.0)
CONFIG = FitConfig(extractor="none", dim=8, dropout=0.0, input_dropout=0.0, epochs=8, batch=8, lr=2e-2)
WIDTH = 6


def planted(source: str, split: str, count: int) -> list[Target]:
    """Sequences whose first channel carries the MOS."""
    generator = torch.Generator().manual_seed(count)
    found = []
    for number in range(count):
        mos = 1 + 4 * number / max(1, count - 1)
        states = torch.randn(5, WIDTH, generator=generator) * 0.3
        states[:, 0] += mos
        sample = Sample(f"{source} {split} {number}", Path("x"), source=source, split=split)
        found.append(Target(sample, Aspect.QUALITY, states, mos))
    return found


@pytest.mark.parametrize("projection", ["hidden", "vocab"])
def test_what_is_left_out_is_predicted_with_and_without_a_head(tmp_path: Path, projection: str) -> None:
    head = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(3))
    every = [t for source in "ab" for t in planted(source, "train", 24) + planted(source, "test", 12)]
    config = FitConfig(**{**vars(CONFIG), "projection": projection})
    frame = leave_source_out(every, [["a"], ["b"]], config, SCALE, tmp_path, "test", head)
    assert tuple(frame.columns) == TRANSFER_COLUMNS
    assert list(frame["sample"]) == [t.sample.id for t in every if t.sample.split == "test"]
    found = within_source(frame)
    assert set(found) == {"a", "b", "mean"} and found["mean"] > 0.7


@pytest.mark.parametrize(
    ("parts", "measured"),
    [
        ({"a": ("train", "test"), "b": ("train",)}, set()),  # a leaves nothing to validate with
        ({"a": ("train", "test"), "b": ("test",)}, {"b"}),  # and here nothing to train with
        ({"a": ("train", "test"), "b": ("train",), "c": ("validation",)}, {"a", "c"}),
    ],
)
def test_groups_that_cannot_be_measured_are_skipped(
    tmp_path: Path, parts: dict[str, tuple[str, ...]], measured: set[str]
) -> None:
    every = [t for source, splits in parts.items() for split in splits for t in planted(source, split, 12)]
    frame = leave_source_out(every, [[source] for source in parts], CONFIG, SCALE, tmp_path, "test")
    assert set(frame["source"]) == measured
    frame.to_csv(tmp_path / "predicted.csv", index=False)
    found = within_source(pd.read_csv(tmp_path / "predicted.csv"))
    assert set(found) == (measured | {"mean"} if measured else set())


def test_sources_of_too_few_images_have_no_agreement_and_no_mean() -> None:
    rows = [("s1", "a", 2.0, 2.1), ("s2", "b", 3.0, 2.9), ("s3", "c", 1.0, 3.0), ("s4", "c", 4.0, 3.0)]
    frame = pd.DataFrame(rows, columns=list(TRANSFER_COLUMNS))
    assert within_source(frame) == {}
    more = pd.DataFrame([("s5", "a", 4.0, 4.2), ("s6", "a", 3.0, 3.9)], columns=list(TRANSFER_COLUMNS))
    assert within_source(pd.concat([frame, more])) == pytest.approx({"a": 1.0, "mean": 1.0})


def test_sources_may_be_called_by_numbers() -> None:
    frame = pd.DataFrame({"source": [1, 1, 2, 2], "mos": [1.0, 2.0, 3.0, 4.0], "predicted": [1, 2, 4, 3]})
    assert within_source(frame) == pytest.approx({"1": 1.0, "2": -1.0, "mean": 0.0})


def test_the_mean_has_an_interval() -> None:
    rng = np.random.default_rng(0)
    mos = rng.uniform(1, 5, 80)
    frame = pd.DataFrame({"source": ["a"] * 60 + ["b"] * 20, "mos": mos})
    frame["predicted"] = frame["mos"] + rng.normal(0, 1, 80) + 9 * (frame["source"] == "a")
    found = with_interval(frame)
    assert {**within_source(frame), "mean_low": found["mean_low"], "mean_high": found["mean_high"]} == found
    assert 0.4 < found["mean_low"] < found["mean"] < found["mean_high"] < 0.95
    assert found["mean_high"] - found["mean_low"] < 0.4
    assert with_interval(frame[:1]) == {}
