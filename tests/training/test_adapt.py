"""A predictor in service moves as far as people's scores carry it, and never where they do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawings import draw

from m3agiqa.aspects import Aspect
from m3agiqa.metrics import rmse, srcc
from m3agiqa.predictor.config import PredictorConfig
from m3agiqa.predictor.model import Predictor
from m3agiqa.samples import Sample
from training.stages.adapt import adapt
from training.stages.fit import pooled_states, predict
from training.stages.fit_data import Target

WIDTH, POOLED = 8, 6
NOISE = 0.3  # standard deviation of people's scores, in units


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("drawn")
    paths = [folder / f"{number}.png" for number in range(20)]
    for number, path in enumerate(paths):
        draw("circle", "red", 16, number).save(path)
    return paths


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    made = Predictor(PredictorConfig(WIDTH, extractor="none", dim=POOLED, regression_dim=16)).eval()
    return made.with_linear_change(5.0, 3.0)


def judged(predictor: Predictor, image: list[Path], count: int, taste: str, seed: int) -> list[Target]:
    """Images that people score as the predictor does, or with a habit or a taste of their own, and noise."""
    rng = torch.Generator().manual_seed(seed)
    states = [torch.randn(5, WIDTH, generator=rng) for _ in range(count)]
    pooled, scores = pooled_states(predictor, states).numpy(), np.array(predict(predictor, states))
    people = {
        "alike": scores,
        "habit": 0.6 * scores + 2.2,
        "taste": scores + 2.0 * pooled[:, 0],
    }[taste] + NOISE * torch.randn(count, generator=rng).numpy()
    samples = [Sample(f"{seed}-{n}", image[n % 20], f"prompt {n // 2}-{n % 20}") for n in range(count)]
    return [
        Target(sample, Aspect.QUALITY, own, float(mos))
        for sample, own, mos in zip(samples, states, people, strict=True)
    ]


def after(predictor: Predictor, image: list[Path], count: int, taste: str, unit: float = 1.0) -> list[float]:
    """SRCC and RMSE on images that were not judged: before, after."""
    train, test = (judged(predictor, image, n, taste, seed) for n, seed in ((count, 1), (400, 2)))
    if unit != 1.0:
        predictor = predictor.with_linear_change(unit, 0.0)
        train, test = ([replace(t, mos=unit * t.mos) for t in part] for part in (train, test))
    true = [each.mos for each in test]
    models = predictor, adapt(predictor, train, unit).predictor
    scores = [predict(model, [each.states for each in test]) for model in models]
    return [metric(each, true) for metric in (srcc, rmse) for each in scores]


@pytest.mark.parametrize("count", [8, 20, 100])
def test_nothing_moves_where_people_agree_with_the_model(
    predictor: Predictor, image: list[Path], count: int
) -> None:
    adapted = adapt(predictor, judged(predictor, image, count, "alike", 1))
    assert adapted.predictor is predictor and adapted.moved.startswith("stays as it was")
    assert np.std(adapted.errors) == pytest.approx(NOISE, rel=0.5) and len(adapted.errors) == count


@pytest.mark.parametrize("unit", [1.0, 25.0])
def test_a_few_scores_correct_level_and_gain(predictor: Predictor, image: list[Path], unit: float) -> None:
    old_srcc, new_srcc, old_rmse, new_rmse = after(predictor, image, 40, "habit", unit)
    assert new_rmse < 0.8 * old_rmse and new_srcc > old_srcc - 0.01


def test_more_scores_move_the_regression_head(predictor: Predictor, image: list[Path]) -> None:
    old_srcc, new_srcc, old_rmse, new_rmse = after(predictor, image, 200, "taste")
    assert new_srcc > old_srcc + 0.02 and new_rmse < 0.8 * old_rmse


def test_a_linear_change_is_exact(predictor: Predictor) -> None:
    states = [torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    weight = torch.linspace(-1, 1, POOLED)
    wanted = 0.5 * torch.tensor(predict(predictor, states)) + pooled_states(predictor, states) @ weight + 2
    changed = predictor.with_linear_change(0.5, 2.0, weight)
    again = changed.with_linear_change(1.0, 0.0, torch.zeros(POOLED))
    assert predict(changed, states) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert predict(again, states) == pytest.approx(wanted.tolist(), abs=1e-5)
