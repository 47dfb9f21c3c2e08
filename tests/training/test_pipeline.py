"""The whole chain on a few drawn images with a tiny nano: killed at random, it ends the same."""

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from accelerate.state import AcceleratorState
from drawings import COLOURS, SHAPES, draw
from forked_training import start
from PIL import Image
from tiny_nano import tiny_nano
from waiting import wait_until

from m3agiqa import Aspect, Assessor
from m3agiqa.backbones.nano import NanoBackbone
from m3agiqa.checkpoint.card import CARD_FILE, read_card
from training.__main__ import main

LONGEST_RUN = 900  # seconds, on a busy machine

pytestmark = pytest.mark.timeout(3 * LONGEST_RUN)  # the first test waits for all runs

COUNT = 9
SPLIT = (4, 3, 2)  # training, test, validation
SETTINGS = {
    "name": "tiny",
    "learned_from": "{count} drawings, whose scores are not by people",
    "start": None,
    "teacher": {"limits": {"per_minute": 6000}},
    "align": {"epochs": 2, "batch": 16},
    "curriculum": {"warmup_captions": 2, "warmup_ratings": 2, "warmup_batch": 2, "epochs": 0.75, "batch": 2},
    "finetune": {"tune": ["connector", "language"], "rank": 2, "save_every": 2},
    "encode": True,
    "fit": {"dim": 8, "extractor": "lstm", "blocks": 1, "epochs": 2, "batch": 16, "lr": 0.005},
    "seeds": [0, 1],
}


def use_tiny_nano(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NanoBackbone, "from_base", classmethod(lambda cls, progress=None: tiny_nano()))


def train(*arguments: str) -> None:
    """In a process of its own."""
    use_tiny_nano(pytest.MonkeyPatch())
    sys.exit(main(list(arguments)))


@pytest.fixture(scope="module", autouse=True)
def _tiny_nano() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_nano(patch)
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A settings file for a CSV of drawings: large ones are good, and a recorded teacher says so."""
    folder = tmp_path_factory.mktemp("drawings")
    rng = random.Random(0)
    rows, told = [], []
    for i in range(COUNT):
        shape, colour, size = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice((48, 96, 160))
        draw(shape, colour, size, i).save(folder / f"{i}.png")
        prompt = f"a {colour} {shape} number {i}"
        mos = {"quality": size / 40 + rng.uniform(0, 1), "correspondence": rng.uniform(1, 5)}
        mos["authenticity"] = 5 - mos["quality"] / 2
        rows.append(
            {"id": f"d{i}", "image": f"{i}.png", "prompt": prompt, "generator": f"pen {i % 2}", **mos}
        )
        told.append({"id": f"d{i}", **dict.fromkeys(Aspect, f"A {colour} {shape} on plain grey.")})
    pd.DataFrame(rows).to_csv(folder / "images.csv", index=False)
    (folder / "told.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    data = {"format": "table", "path": str(folder / "images.csv"), "scale": [1, 5]}
    data["split"] = {"by": "prompt", "ratios": list(SPLIT)}
    teacher = {**SETTINGS["teacher"], "names": [f"recorded:{folder / 'told.jsonl'}"]}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "data": data, "teacher": teacher}))
    return path


def finish(settings: Path, run: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["run", str(settings), "--run", str(run)]) == 0


@pytest.fixture(scope="module")
def whole(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing interrupts, and its seconds."""
    run, began = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    finish(settings, run)
    return run, time.monotonic() - began


@pytest.fixture(scope="module")
def killed(settings: Path, whole: tuple[Path, float], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed while the backbone learns and after that, both times at a random moment."""
    run = tmp_path_factory.mktemp("killed") / "run"
    seed = random.randrange(10**6)
    print(f"kills drawn with seed {seed}")  # noqa: T201 - shown when the test fails
    rng = random.Random(seed)
    for file in ("align/made_from.sha256", "finetune/finetune.json"):
        process = start(train, "run", str(settings), "--run", str(run))
        try:
            wait_until(lambda file=file: (run / file).exists(), LONGEST_RUN)
            time.sleep(rng.uniform(0, 0.3) * whole[1])
        finally:
            process.kill()
            process.join(60)
    assert not (run / "checkpoint").exists()
    finish(settings, run)
    return run


def summary(run: Path) -> dict:
    return json.loads((run / "report" / "metrics.json").read_text())["summary"]


def test_kills_change_nothing(whole: tuple[Path, float], killed: Path) -> None:
    expected = summary(whole[0])
    assert set(expected) == set(Aspect)
    assert expected["quality"]["n"] > 2
    assert len(expected["quality"]["srcc_of_seeds"]) == 2
    assert summary(killed) == expected
    steps = [
        json.loads(line)["step"] for line in (killed / "finetune" / "log.jsonl").read_text().splitlines()
    ]
    assert sorted(set(steps)) == list(range(max(steps) + 1))


def test_finished_stages_are_skipped(
    settings: Path, killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {
        path: path.stat().st_mtime_ns
        for path in killed.rglob("*.safetensors")
        if "checkpoint" not in path.parts
    }
    began = time.monotonic()
    finish(settings, killed)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert time.monotonic() - began < 120
    capsys.readouterr()
    assert main(["run", "--run", str(killed), "--plan"]) == 0
    plan = capsys.readouterr().out
    for stage in ("datasets", "distill", "align", "finetune", "describe", "fit"):
        assert f"{stage:9} done" in plan


def test_report_and_records_are_there(killed: Path) -> None:
    page = (killed / "report" / "report.html").read_text()
    assert "A red " in page or "A blue " in page or "A green " in page or "A yellow " in page
    assert yaml.safe_load((killed / "config.yaml").read_text())["name"] == "tiny"
    log = (killed / "log.txt").read_text()
    assert all(f"{stage}: done in" in log for stage in ("distill", "align", "finetune", "describe", "ship"))
    facts = json.loads((killed / "report" / "metrics.json").read_text())["facts"]
    assert len(facts["data fingerprint"]) == 64 and facts["git revision"]


def test_checkpoint_assesses(killed: Path) -> None:
    folder = killed / "checkpoint"
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".safetensors", ".json"}
    assert (folder / CARD_FILE).stat().st_size < 20_000
    card = read_card(folder)
    assert "not by people" in card.learned_from and set(card.predictors) == set(Aspect)
    assessment = Assessor.from_pretrained(folder).assess(Image.new("RGB", (64, 64), "red"), "a red square")
    assert set(assessment.aspects) == set(Aspect)
    for result in assessment.aspects.values():
        assert 1 <= result.mos <= 5
