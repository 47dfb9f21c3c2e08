"""The sanity check compares what there is to compare, and leaves out the rest."""

from dataclasses import replace
from pathlib import Path

import pytest
from scripted_backbone import ScriptedBackbone, begun_run

from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.card import read_card
from training import pipeline
from training.evaluation.report.write import write_outcome
from training.evaluation.sanity import sanity
from training.run import RunFolder


@pytest.fixture
def shipped(scripted: type[ScriptedBackbone], tmp_path: Path) -> RunFolder:
    """A checkpoint that judges quality and correspondence."""
    run = begun_run(tmp_path, aspects=(Aspect.QUALITY, Aspect.CORRESPONDENCE), made_up=True)
    pipeline.describe(run)
    pipeline.fit(run)
    pipeline.ship(run)
    return run


def test_the_checkpoint_is_calibrated(shipped: RunFolder) -> None:
    card = read_card(shipped.folder / "checkpoint")
    counts = {part: [s for s in shipped.samples if s.split == part] for part in ("train", "validation")}
    for aspect in shipped.aspects:
        calibration = card.calibration[aspect]
        assert calibration.held_out == sum(aspect in sample.mos for sample in counts["validation"])
        assert calibration.training_images == sum(aspect in sample.mos for sample in counts["train"])
        assert calibration == shipped.calibration[aspect]
        assert 0 <= card.metrics["test"][str(aspect)]["interval_coverage"] <= 1
    measures = write_outcome(shipped)["quality"]
    assert measures["interval_coverage"] == card.metrics["test"]["quality"]["interval_coverage"]
    assert "Inside the 80 % interval" in (shipped.report_folder / "report.html").read_text()


def test_comparisons_without_images_are_left_out(shipped: RunFolder) -> None:
    test = [sample for sample in shipped.samples if sample.split == "test"]
    prompted = [sample for sample in test if sample.prompt]
    checkpoint = shipped.folder / "checkpoint"

    def compared(**changes: object) -> dict[str, int]:
        found = sanity([replace(sample, **changes) for sample in test], checkpoint, shipped.cache)
        assert all(0 <= each["lower"] <= 1 for each in found.values())
        return {name: each["n"] for name, each in found.items()}

    assert 0 < len(prompted) < len(test)
    wrong = dict.fromkeys(("unrelated_prompt", "changed_prompt"), len(prompted))
    assert compared() == {"blur": len(test), "noise": len(test), **wrong}
    assert compared(prompt=None) == {"blur": len(test), "noise": len(test)}
    assert compared(distorted=True) == {}
    assert compared(split="validation") == {}
