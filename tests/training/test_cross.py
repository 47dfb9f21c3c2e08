"""A model trained on one data set is measured on another's scale, with and without new predictors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_backbone import QUICK, ScriptedBackbone, begun_run

from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError
from training import pipeline
from training.evaluation.cross_dataset import cross
from training.run import RunFolder

pytestmark = pytest.mark.usefixtures("scripted")


@pytest.fixture
def trained(tmp_path: Path) -> RunFolder:
    """On a scale of 1 to 5."""
    run = begun_run(tmp_path / "a", aspects=(Aspect.QUALITY, Aspect.AUTHENTICITY))
    pipeline.describe(run)
    pipeline.fit(run)
    ScriptedBackbone.asked.clear()
    return RunFolder.open(run.folder)


@pytest.fixture
def tested(tmp_path: Path) -> RunFolder:
    """On a scale of 0 to 100, not yet spoken about."""
    return begun_run(tmp_path / "b", 32, (0.0, 100.0), (Aspect.QUALITY, Aspect.CORRESPONDENCE))


def test_predictors_are_measured_on_their_own_scale(trained: RunFolder, tested: RunFolder) -> None:
    found = cross(trained, tested)
    assert list(found) == ["quality"], "the aspect that both have"
    told = found["quality"]
    assert told["n"] == sum(sample.split == "test" for sample in tested.samples)
    assert (told["trained_on"], told["retrained"]) == ("run", False)
    assert told["srcc"] > 0.8
    assert told["rmse"] < 1.0, "in units of the scale from 1 to 5"
    assert told["rough_accuracy"] > 0.8


def test_only_the_test_images_are_described_and_once(trained: RunFolder, tested: RunFolder) -> None:
    before = len(trained.cache.entries)
    cross(trained, tested)
    asked = {request.image.tobytes() for requests in ScriptedBackbone.asked for request in requests}
    assert len(asked) == sum(sample.split == "test" for sample in tested.samples)
    assert len(RunFolder.open(trained.folder).cache.entries) == before
    ScriptedBackbone.asked.clear()
    assert cross(RunFolder.open(trained.folder), RunFolder.open(tested.folder)) == cross(trained, tested)
    assert ScriptedBackbone.asked == []


@pytest.mark.parametrize("projection", ["hidden", "vocab"])
def test_new_predictors_are_measured_on_the_new_scale(
    tmp_path: Path, tested: RunFolder, projection: str
) -> None:
    trained = begun_run(tmp_path / "a", 12, fit=replace(QUICK, projection=projection, epochs=12))
    found = cross(trained, tested, retrain=True)["quality"]
    assert found["retrained"] is True
    assert found["srcc"] > 0.8
    assert 1.0 < found["rmse"] < 30, "in units of the scale from 0 to 100"
    again = cross(RunFolder.open(trained.folder), RunFolder.open(tested.folder), retrain=True)["quality"]
    assert again == found, "resumed, it is the same"


def test_retraining_with_other_settings_does_not_go_on_from_the_old_state(
    trained: RunFolder, tested: RunFolder
) -> None:
    cross(trained, tested, retrain=True)
    other = RunFolder(trained.folder, replace(trained.config, fit=replace(trained.config.fit, dim=16)))
    with pytest.raises(InputError, match="made from other data or settings"):
        cross(other, tested, retrain=True)


def test_nothing_in_common_is_named(trained: RunFolder, tmp_path: Path) -> None:
    other = begun_run(tmp_path / "c", 20, aspects=(Aspect.CORRESPONDENCE,))
    with pytest.raises(InputError, match="have no aspect in common"):
        cross(trained, other)


@pytest.mark.parametrize(("left", "retrain", "missing"), [("test", True, "train"), ("train", False, "test")])
def test_a_split_that_is_not_there_is_named(
    trained: RunFolder, tested: RunFolder, left: str, retrain: bool, missing: str
) -> None:
    path = tested.folder / "samples.jsonl"
    samples = [{**json.loads(line), "split": left} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    with pytest.raises(InputError, match=f"no images with scores in its (validation|{missing}) split"):
        cross(trained, RunFolder.open(tested.folder), retrain)
