"""Proxies for images that nobody trained on: what is measured has not been learned from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
import yaml
from drawings import COLOURS, SHAPES, draw
from PIL import Image

from m3agiqa.aspects import Aspect
from m3agiqa.samples import Sample, write_samples
from training.__main__ import main
from training.nano import held_out_groups
from training.nano.held_out_groups import (
    FULL_READERS,
    PLAIN_RIDGE,
    PROMPT_FOLDS,
    PROXY_COLUMNS,
    prompt_fold,
)


def noisy(folder: Path, count: int = 34) -> list[Sample]:
    """Drawings of two sources; the noisier, the worse. Fewer than 15 of a source would not be measured on."""
    rng, grain = Random(0), np.random.default_rng(0)
    samples = []
    for i in range(count):
        shape, colour, noise = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.random()
        pixels = np.asarray(draw(shape, colour, 96, i).convert("RGB"), dtype=float)
        pixels = np.clip(pixels + 90 * noise * grain.standard_normal(pixels.shape), 0, 255)
        path = folder / f"{i}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        mos = dict.fromkeys(Aspect, round(5 - 4 * noise, 2))
        prompt = f"a {colour} {shape}" if i % 9 else None
        if prompt is None:
            del mos[Aspect.CORRESPONDENCE]
        samples.append(
            Sample(str(i), path, prompt, mos, {}, "train", ("pen", "ink")[i // 2 % 2], f"source {i % 2}")
        )
    return samples


@pytest.mark.usefixtures("two_folds", "tiny_base")
def test_readers_agree_on_sources_that_they_were_fitted_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(held_out_groups, "PROMPT_FOLDS", 2)
    samples, settings, run = noisy(tmp_path), tmp_path / "noisy.yaml", tmp_path / "run"
    write_samples(samples, tmp_path / "samples.jsonl")
    data = {"format": "samples", "path": str(tmp_path / "samples.jsonl"), "scale": [1, 5]}
    data["split"] = {"by": "image", "ratios": [2, 1, 1]}
    settings.write_text(yaml.safe_dump({"name": "noisy", "data": data, "start": None}))
    assert main(["datasets", str(settings), "--run", str(run)]) == 0
    capsys.readouterr()
    assert main(["proxies", str(settings), "--run", str(run)]) == 0
    found = pd.read_csv(run / "proxies.csv")
    assert tuple(found.columns) == PROXY_COLUMNS
    assert set(found["left_out"]) == {"source", "generator", "prompt"}
    assert set(found["reads"]) == {FULL_READERS, PLAIN_RIDGE}
    looks = found[(found["reads"] == FULL_READERS) & (found["aspect"] == "quality")]
    assert (looks["srcc"] > 0.8).all() and looks["n"].eq(len(samples)).all()
    groups = {"source": 2, "generator": 2, "prompt": 1}
    assert dict(zip(looks["left_out"], looks["groups"], strict=True)) == groups
    known = found.dropna()
    assert ((known["low"] <= known["srcc"]) & (known["srcc"] <= known["high"])).all()
    assert not (run / "proxies").exists(), "features that are no longer needed"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(found) / 2 and "| source | quality | 34 |" in lines[2]


def test_images_of_one_prompt_are_left_out_together() -> None:
    sample = Sample("1", Path("1.png"), prompt="A red  house ")
    assert prompt_fold(sample) == prompt_fold(replace(sample, id="2", prompt="a red house"))
    folds = {prompt_fold(replace(sample, prompt=f"{i} houses")) for i in range(60)}
    assert len(folds) == PROMPT_FOLDS
    alone = {prompt_fold(replace(sample, id=str(i), prompt=None)) for i in range(60)}
    assert len(alone) == PROMPT_FOLDS


def test_nano_is_reproduced_by_its_settings(
    nano_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["reproduce-nano", str(nano_data), "--run", str(run), "--plan"]) == 0
    assert "checkpoint nano 0.4.2" in capsys.readouterr().out
    assert not run.exists(), "a plan does nothing"
    assert main(["reproduce-nano", str(nano_data), "--run", str(run), "--until", "datasets"]) == 0
    assert len((run / "samples.jsonl").read_text().splitlines()) == 48
    assert main(["reproduce-nano", str(tmp_path / "nowhere"), "--run", str(run)]) == 2
    assert "There is no data set" in capsys.readouterr().err
