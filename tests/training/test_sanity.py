"""The sanity check compares what there is to compare, and leaves out the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scripted_backbone import ScriptedBackbone, begun_run

from m3agiqa.aspects import Aspect
from training import pipeline
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
