"""Where nobody has scored an image, people's picks of the best one move the model, if they are enough."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import test_annotations
from test_annotations import CORRECTIONS, Q, write_export, write_picks

from m3agiqa.checkpoint.card import read_card
from m3agiqa.checkpoint.predictor_weights import load_predictor
from m3agiqa.checkpoint.registry import candidates
from m3agiqa.samples import Sample, read_samples
from training.__main__ import main
from training.run import RunFolder
from training.stages.fit import predict

config, before = test_annotations.config, test_annotations.before  # drawings, and a model that knows them


def picked_pairs(drawn: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Pairs of one prompt of which people pick the dark one; every fourth is held out."""
    pairs = []
    for number, pair in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
        split = "test" if number % 4 == 3 else "train"
        dark, light = sorted(pair, key=lambda sample: sample.mos[Q])
        about = [replace(each, prompt=f"pair {number}", mos={}, split=split) for each in (dark, light)]
        pairs.append((about[0], about[1]))
    return pairs


def of_picks(export: Path, before: Path, run: Path) -> list[str]:
    """The command for a run on an export of picks."""
    command = ["run", str(CORRECTIONS), "--run", str(run), "--add-annotations", str(export)]
    return [*command, "--set", f"start={before}", "--register", str(run.parent / "models")]


@pytest.mark.usefixtures("scripted")
def test_picks_alone_move_the_model_and_are_what_it_is_compared_by(
    config: Path, before: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    export = write_export(tmp_path / "export", [])
    write_picks(export, picked_pairs(read_samples(config.parent / "data" / "samples.jsonl")))
    command = of_picks(export, before, tmp_path / "run")
    assert main([*command, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert "quality without enough scores, so that picks alone count" in plan
    assert "18 pairs of picks (6 are held out)" in plan
    assert main(command) == 0
    (candidate,) = candidates(tmp_path / "models")
    (order,) = candidate.comparison.orders
    assert not candidate.comparison.rows and order.n == 6 and order.before <= 0.2 and order.after >= 0.8
    assert not candidate.comparison.doubt and "6 pairs of picks: 0% → 100%" in candidate.comparison.sentence
    assert "0 images" not in candidate.card.learned_from
    assert candidate.card.learned_from.startswith("18 pairs of images in the order of people's picks")
    assert candidate.card.calibration == read_card(before).calibration
    run = RunFolder.open(tmp_path / "run")
    images = [each.states for pair in run.preferred(Q, "train") for each in (pair, pair.worse)]
    means = [
        sum(predict(model, images)) / len(images)
        for model in (load_predictor(before, Q, read_card(before).predictors[Q]), run.best(Q))
    ]
    assert means[1] == pytest.approx(means[0], abs=0.02), "no score says that the level is wrong"
    assert main(command) == 0 and len(candidates(tmp_path / "models")) == 1, "nothing is done twice"


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(("which", "counts"), [(slice(8), "6 and 2"), (slice(0, 2), "2 and 0")])
def test_too_few_picks_alone_are_counted_out(
    config: Path, before: Path, tmp_path: Path, capsys: pytest.CaptureFixture, which: slice, counts: str
) -> None:
    export = write_export(tmp_path / "export", [])
    write_picks(export, picked_pairs(read_samples(config.parent / "data" / "samples.jsonl"))[which])
    for more in (["--plan"], []):
        assert main([*of_picks(export, before, tmp_path / "run"), *more]) == 2
        told = capsys.readouterr().err
        assert "Picks alone need 10 prompts to learn from and one that is held out" in told
        assert f"there are {counts}." in told
