"""The connector learns words, and its readers scores, from what is seen alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_nano import tiny_nano

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.nano import CONNECTOR_FILE, PROMPT_ALIGNERS_FILE
from m3agiqa.backbones.nano.connector import Connector
from tests.training.teacher_samples import load_teacher
from training.data.nano_teacher import TEACHER_SCALE
from training.nano.align import DONE_FILE, FEATURES_FOLDER, AlignConfig, align
from training.nano.feature_cache import ImageView


def test_an_image_is_changed_at_random_but_repeatably(data: Path) -> None:
    image = data / "captions" / "images" / "0.png"
    plain, changed, blurred = (
        ImageView(image, seed=seed, damage=damage).open().tobytes()
        for seed, damage in (("", None), ("a", None), ("a", "blur"))
    )
    assert blurred == ImageView(image, seed="a", damage="blur").open().tobytes()
    assert len({plain, changed, blurred}) == 3


@pytest.mark.usefixtures("two_folds", "tiny_base")
def test_aligned_connector_loads_and_tells_what_it_reached(data: Path, tmp_path: Path) -> None:
    align(load_teacher(data), data, TEACHER_SCALE, tmp_path, AlignConfig(epochs=2, batch=16))
    weights = load_file(tmp_path / CONNECTOR_FILE)
    Connector(tiny_nano().llm.config.hidden_size).load_state_dict(weights)
    assert all(value.isfinite().all() for value in weights.values())
    told = json.loads((tmp_path / DONE_FILE).read_text())
    assert set(told["validation_srcc"]) == {"quality", "authenticity"}
    assert set(told["left_out_srcc"]) == {"quality", "authenticity", "match", "correspondence"}
    assert 0 <= told["unrelated_below"] <= 1 and set(told["changed_below"]) == {"colour"}
    prompt_aligners = load_file(tmp_path / PROMPT_ALIGNERS_FILE)
    assert all(value.isfinite().all() for value in prompt_aligners.values())
    assert weights["opinions.weight"].any()
    assert not (tmp_path / FEATURES_FOLDER).exists(), "a gigabyte that is no longer needed"


@pytest.mark.usefixtures("two_folds", "tiny_base")
def test_without_quality_and_validation_there_is_less_to_show_and_to_report(
    data: Path, tmp_path: Path
) -> None:
    samples = [
        replace(sample, mos={a: mos for a, mos in sample.mos.items() if a is not Aspect.QUALITY})
        for sample in load_teacher(data)
        if sample.split == "train"
    ]
    align(samples, None, TEACHER_SCALE, tmp_path, AlignConfig(epochs=1, batch=16))
    told = json.loads((tmp_path / DONE_FILE).read_text())
    assert told["validation_srcc"] == {}
    assert all(value.isfinite().all() for value in load_file(tmp_path / CONNECTOR_FILE).values())
