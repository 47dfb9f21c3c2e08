"""A predictor in service moves as far as people's scores carry it, and never where they do not."""

import math
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
from training.stages.adapt_to_preferences import adapt_to_preferences
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


def picked(predictor: Predictor, image: list[Path], count: int, taste: str, seed: int) -> list[Target]:
    """Pairs of images, in the order in which people with this taste like them."""
    liked = []
    for number, target in enumerate(judged(predictor, image, 2 * count, taste, seed)):
        path = image[0].parent / f"{seed} {number}"
        path.write_text(path.name)
        liked.append(
            replace(target, sample=replace(target.sample, image=path, prompt=f"prompt {number // 2}"))
        )
    pairs = [
        sorted(pair, key=lambda target: target.mos) for pair in zip(liked[::2], liked[1::2], strict=True)
    ]
    return [replace(better, mos=math.nan, worse=worse) for worse, better in pairs]


def in_order(predictor: Predictor, pairs: list[Target]) -> float:
    """The share of pairs whose better one gets the higher score."""
    better = predict(predictor, [each.states for each in pairs])
    worse = predict(predictor, [each.worse.states for each in pairs])
    return float(np.mean(np.array(better) > np.array(worse)))


@pytest.mark.parametrize("unit", [1.0, 25.0])
def test_picks_move_a_predictor_so_that_it_orders_unseen_pairs_better(
    predictor: Predictor, image: list[Path], unit: float
) -> None:
    """Eight scores are too few to learn a taste from."""
    scored = [replace(t, mos=unit * t.mos) for t in judged(predictor, image, 8, "taste", 1)]
    before = adapt(predictor.with_linear_change(unit, 0.0), scored, unit)
    after = adapt_to_preferences(before, picked(predictor, image, 150, "taste", 2), scored, unit)
    assert "150 pairs of picks are followed" in after.moved
    unseen = picked(predictor, image, 300, "taste", 3)
    assert in_order(after.predictor, unseen) > in_order(before.predictor, unseen) + 0.03
    told = [predict(each.predictor, [target.states for target in scored]) for each in (before, after)]
    assert np.mean(told[0]) == pytest.approx(np.mean(told[1]), abs=0.01 * unit), "the level stays"
    wrong = np.array(told[1]) - [target.mos for target in scored]
    assert after.errors == pytest.approx(wrong.tolist(), abs=0.01 * unit)


@pytest.mark.parametrize(
    ("count", "taste", "why"),
    [(8, "taste", "too few to follow"), (100, "alike", "would not clearly help")],
)
def test_picks_that_are_few_or_as_the_model_orders_change_nothing(
    predictor: Predictor, image: list[Path], count: int, taste: str, why: str
) -> None:
    scored = judged(predictor, image, 40, "alike", 1)
    before = adapt(predictor, scored)
    after = adapt_to_preferences(before, picked(predictor, image, count, taste, 2), scored)
    assert after.predictor is before.predictor and after.errors == before.errors
    assert why in after.moved


def test_picks_do_not_move_a_predictor_away_from_scores(predictor: Predictor, image: list[Path]) -> None:
    scored, liked = judged(predictor, image, 200, "alike", 1), picked(predictor, image, 150, "alike", 2)
    upside_down = [replace(each.worse, worse=replace(each, worse=None)) for each in liked]
    before = adapt(predictor, scored)
    after = adapt_to_preferences(before, upside_down, scored)
    assert after.predictor is before.predictor and "further from people's" in after.moved


def test_a_linear_change_is_exact(predictor: Predictor) -> None:
    states = [torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    weight = torch.linspace(-1, 1, POOLED)
    wanted = 0.5 * torch.tensor(predict(predictor, states)) + pooled_states(predictor, states) @ weight + 2
    changed = predictor.with_linear_change(0.5, 2.0, weight)
    again = changed.with_linear_change(1.0, 0.0, torch.zeros(POOLED))
    assert predict(changed, states) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert predict(again, states) == pytest.approx(wanted.tolist(), abs=1e-5)
