"""The predictor learns what is there to learn, in the right order, and resumes to the same result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m3agiqa.aspects import MosScale
from m3agiqa.metrics import srcc
from m3agiqa.samples import Sample
from training import fit as fit_module
from training.evaluate import agreement, leave_source_out, share_lower, source_groups, within_source
from training.fit import FitConfig, fit, predict
from training.targets import Target

CONFIG = FitConfig(dim=16, epochs=6, batch=8, lr=5e-3, dropout=0.1)
SCALE = MosScale(1.0, 5.0)


def planted(count: int, seed: int) -> list[Target]:
    """Sequences whose first channel carries the MOS; in the worse case it says 1."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        length = int(torch.randint(5, 9, (1,), generator=generator))
        mos = 1 + 4 * torch.rand(1, generator=generator).item()

        def states(score: float, length: int = length) -> torch.Tensor:
            noise = torch.randn(length, 6, generator=generator) * 0.3
            noise[:, 0] += score - 3
            return noise * torch.tensor([1.0, 100.0, 1.0, 0.01, 1.0, 1.0]) + 5

        split = "test" if number % 4 > 1 else "train"
        sample = Sample(f"{seed}-{number}", Path("x"), source="ab"[number % 2], split=split)
        found.append(Target(sample, states(mos), mos, states(1.0)))
    return found


def test_fit_finds_a_planted_signal_and_the_order(tmp_path: Path) -> None:
    train, validation = planted(64, 0), planted(32, 1)
    predictor, reached = fit(train, validation, CONFIG, tmp_path / "state", "test")
    predicted = predict(predictor, [target.states for target in validation])
    assert reached == pytest.approx(srcc(predicted, [target.mos for target in validation]), abs=0.01)
    assert reached > 0.9
    worse = predict(predictor, [target.worse for target in validation])
    high = [(p, w) for p, w, t in zip(predicted, worse, validation, strict=True) if t.mos > 2]
    assert share_lower(high) > 0.9


def test_fit_resumes_to_the_same_predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = planted(24, 0), planted(12, 1)
    whole, _ = fit(train, validation, CONFIG, tmp_path / "whole", "whole")

    saved = fit_module._save
    epochs = []

    def interrupted(state: Path, done: int, *rest: object) -> None:
        saved(state, done, *rest)
        epochs.append(done)
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(train, validation, CONFIG, tmp_path / "cut", "cut")
    resumed, _ = fit(train, validation, CONFIG, tmp_path / "cut", "resumed")
    assert epochs == [1, 2, 3, 4, 5, 6]
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, resumed.state_dict()[name], atol=1e-6), name


def test_leave_source_out_predicts_what_is_held_out_once(tmp_path: Path) -> None:
    every = planted(48, 0)
    groups = source_groups([target.sample for target in every])
    assert sorted(groups) == [["a"], ["b"]]
    frame = leave_source_out(every, groups, CONFIG, SCALE, tmp_path, "test")
    held_out = [target.sample.id for target in every if target.sample.split == "test"]
    assert sorted(frame["sample"]) == sorted(held_out)
    found = within_source(frame)
    assert found["mean"] == pytest.approx((found["a"] + found["b"]) / 2)
    assert found["mean"] > 0.7


def test_small_sources_are_left_out_together() -> None:
    names = ["big"] * 90 + ["small"] * 6 + ["tiny"] * 4
    samples = [Sample(str(i), Path("x"), source=name) for i, name in enumerate(names)]
    assert source_groups(samples) == [["big"], ["small", "tiny"]]


def test_agreement_of_perfect_and_reversed_scores() -> None:
    true = [1.0, 2.0, 3.0, 4.0, 4.9]
    perfect = agreement(true, true, SCALE)
    assert [perfect[name] for name in ("srcc", "plcc", "krcc")] == pytest.approx([1, 1, 1])
    assert perfect["rmse"] == 0
    assert perfect["accuracy"] == perfect["rough_accuracy"] == 1
    reversed_ = agreement(true[::-1], true, SCALE)
    assert reversed_["srcc"] == pytest.approx(-1)
    assert reversed_["rough_accuracy"] < 1
