"""Scores from several places, on one scale."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError
from training.data import DataConfig, load
from training.data.nano_scores import FIVE_LEVELS, nano_entries


def test_scores_of_three_places_are_on_five_levels(nano_data: Path) -> None:
    samples = {entry.sample.id: entry.sample for entry in nano_entries(nano_data)}
    assert len(samples) == 48 and {source[0] for source in samples} == {"p", "n", "t"}
    for sample in samples.values():
        assert all(FIVE_LEVELS.low <= mos <= FIVE_LEVELS.high for mos in sample.mos.values())
        assert all(
            aspect in sample.descriptions for aspect in sample.mos if aspect is not Aspect.AUTHENTICITY
        )


def test_the_maps_are_those_of_the_data_card(nano_data: Path) -> None:
    samples = {entry.sample.id: entry.sample for entry in nano_entries(nano_data)}
    by_llm, small, by_people = (samples[name] for name in ("n1", "t1", "p1"))
    score = (by_llm.mos[Aspect.QUALITY] + 0.67) / 1.06
    assert small.mos[Aspect.QUALITY] == pytest.approx(1.06 * (score - 0.3) - 0.67)
    assert small.mos[Aspect.CORRESPONDENCE] == pytest.approx(by_llm.mos[Aspect.CORRESPONDENCE])
    assert by_people.mos[Aspect.QUALITY] == pytest.approx(1.06 * (score - 0.5 + 0.45) / 0.92 - 0.67)


def test_authenticity_of_agiqa_3k_comes_from_the_undamaged_images(nano_data: Path) -> None:
    samples = {entry.sample.id: entry.sample for entry in nano_entries(nano_data)}
    assert samples["p0"].mos[Aspect.AUTHENTICITY] == samples["n0"].mos[Aspect.AUTHENTICITY]
    assert sum(Aspect.AUTHENTICITY in samples[f"p{i}"].mos for i in range(16)) == 5


def test_a_part_of_the_validation_prompts_is_for_testing(nano_data: Path) -> None:
    samples = load(DataConfig("nano", nano_data)).samples
    splits = {sample.split for sample in samples if sample.source == "agiqa-3k"}
    assert splits == {"train", "validation", "test"}


def test_a_row_that_is_something_else_is_named(nano_data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    shutil.copytree(nano_data, broken)
    path = broken / "agi-native" / "samples.jsonl"
    path.write_text(path.read_text().replace('"score"', '"points"', 1))
    with pytest.raises(InputError, match=r"samples\.jsonl, line 1 is not a row of agi-native"):
        list(nano_entries(broken))
