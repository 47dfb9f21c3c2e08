"""All stages on a handful of drawn images, with the real base weights, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from m3agiqa import Aspect, Assessor
from m3agiqa.checkpoint import CARD_FILE, read_card

STEPS = """
import sys
from pathlib import Path
from training.align import AlignConfig
from training.curriculum import CurriculumConfig
from training.finetune import FinetuneConfig
from training.fit import FitConfig
from training.run import Run, RunConfig
from m3agiqa.aspects import Aspect
import m3agiqa.backbones.nano.backbone as nano

nano.MAX_NEW_TOKENS = 8
fit = FitConfig(dim=16, epochs=2, batch=8)
config = RunConfig(
    align=AlignConfig(epochs=2, batch=8),
    curriculum=CurriculumConfig(warmup_ratings=4, warmup_texts=2, warmup_batch=16, batch=4),
    finetune=FinetuneConfig(rank=2, save_every=1),
    fit=fit,
    transfer=FitConfig(dim=16, epochs=1, batch=8),
)
data, folder, out = map(Path, sys.argv[1:])
run = Run(folder, config)
run.datasets(data)
run.align(data)
run.finetune(data)
run.describe()
for aspect in Aspect:
    run.fit(aspect)
    run.transfer(aspect)
run.ship(out)
"""


def stages(data: Path, run: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", STEPS, str(data), str(run), str(out)], stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path, pattern: str, process: subprocess.Popen, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{pattern} did not appear"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shipped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint made by a run that was killed in three stages and then left to finish."""
    run, out = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("shipped") / "tiny"
    for reached in ("align/state/state.pt", "finetune/state/step.json", "fit-state/quality/state/epoch.json"):
        process = stages(data, run, out)
        wait_for(run, reached, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not out.exists()
    steps_before = len((run / "finetune" / "log.jsonl").read_text().splitlines())
    process = stages(data, run, out)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    steps = [json.loads(line)["step"] for line in (run / "finetune" / "log.jsonl").read_text().splitlines()]
    assert len(steps) == steps_before, "fine-tuning was finished and must not run again"
    assert sorted(set(steps)) == list(range(max(steps) + 1))
    return out


def test_card_says_what_the_model_is_and_what_was_measured(shipped: Path) -> None:
    card = read_card(shipped)
    assert "not by people" in card.learned_from
    assert set(card.predictors) == set(Aspect)
    assert card.metrics["test"]["quality"]["n"] == 4
    assert set(card.metrics["sanity"]) == {"blur", "noise", "unrelated_prompt"}
    assert set(card.metrics["source_left_out"]["quality"]) == {"left", "right", "mean"}
    assert len(card.fingerprint) == 64


def test_checkpoint_holds_no_pickle(shipped: Path) -> None:
    names = {path.suffix for path in shipped.rglob("*") if path.is_file()}
    assert names <= {".safetensors", ".json"}
    assert (shipped / CARD_FILE).stat().st_size < 20_000


def test_checkpoint_assesses(shipped: Path) -> None:
    assessor = Assessor.from_pretrained(shipped)
    assessment = assessor.assess(Image.new("RGB", (64, 64), "red"), "a red square")
    assert set(assessment.aspects) == set(Aspect)
    for result in assessment.aspects.values():
        assert 1 <= result.mos <= 5
