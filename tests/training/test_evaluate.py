"""Agreement is measured on one table of predictions, in all, by group and inside prompts."""

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.checkpoint.calibration import Calibration
from m3agiqa.metrics import plcc_logistic, rmse, srcc
from m3agiqa.predictor.config import PredictorConfig
from m3agiqa.predictor.model import Predictor
from m3agiqa.samples import Sample
from training.evaluation.evaluate import (
    NO_PROMPT,
    NOT_GIVEN,
    PREDICTION_COLUMNS,
    by_group,
    by_prompt_length,
    evaluate,
    interval_coverage,
    prediction_table,
    summary,
    within_prompts,
)
from training.stages.fit_data import Target

SCALE = MosScale(1.0, 5.0)
CARD = {"n", "srcc", "srcc_low", "srcc_high", "plcc", "krcc", "rmse", "accuracy", "rough_accuracy"}
SPOKEN = {"spoken_srcc", "spoken_is_predicted", "spoken_is_near_predicted"}


def table(mos: list[float], predicted: list[float], **columns: object) -> pd.DataFrame:
    """A table of the quality of images 0, 1, …; columns that are not given are missing."""
    known = {
        "sample": [f"s{number}" for number in range(len(mos))],
        "aspect": "quality",
        "mos": mos,
        "predicted": predicted,
        "raw": predicted,
        **columns,
    }
    return pd.DataFrame({name: known.get(name) for name in PREDICTION_COLUMNS})


def noisy(count: int, seed: int = 0) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    true = rng.uniform(1, 5, count)
    return list(true), list(np.clip(true + rng.normal(0, 0.6, count), 1, 5))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    made = Predictor(PredictorConfig(6, dim=16)).eval()
    torch.nn.init.constant_(made.regression[2].bias, 6.0)  # above the scale
    return made


def target(number: int, rating: Rating | None = Rating.GOOD) -> Target:
    states = torch.randn(7, 6, generator=torch.Generator().manual_seed(number))
    sample = Sample(
        f"s{number}",
        Path(f"{number}.png"),
        prompt=f"prompt {number}",
        descriptions={Aspect.AUTHENTICITY: "by the teacher", Aspect.QUALITY: "about something else"},
        split="test",
        generator="pen",
    )
    mos = 1 + number % 5
    return Target(sample, Aspect.AUTHENTICITY, states, mos, rating=rating, description="by the model")


def test_a_table_has_what_was_said_beside_what_is_true(predictor: Predictor) -> None:
    found = prediction_table(predictor, [target(0), target(1, None)], SCALE)
    assert tuple(found.columns) == PREDICTION_COLUMNS
    first, second = found.to_dict("records")
    assert (first["sample"], first["image"], first["prompt"]) == ("s0", "0.png", "prompt 0")
    assert (first["aspect"], first["split"], first["generator"]) == ("authenticity", "test", "pen")
    assert (first["description"], first["reference"]) == ("by the model", "by the teacher")
    assert (first["rating"], first["spoken_rating"]) == ("excellent", "good")
    assert pd.isna(second["spoken_rating"]) and pd.isna(second["source"])
    assert first["raw"] > 5 and first["predicted"] == 5, "the scale's bounds hold for predicted alone"
    assert (first["mos"], second["mos"]) == (1, 2)


def test_a_card_says_the_same_as_the_summary(predictor: Predictor) -> None:
    targets = [target(number, list(Rating)[number % 5]) for number in range(12)]
    card = evaluate(predictor, targets, SCALE)
    assert set(card) == CARD | SPOKEN
    found = summary(prediction_table(predictor, targets, SCALE), SCALE)["authenticity"]
    assert {name: found[name] for name in card} == pytest.approx(card, nan_ok=True)
    assert card["spoken_srcc"] == pytest.approx(1)
    silent = [target(number, None) for number in range(12)]
    assert set(evaluate(predictor, silent, SCALE)) == CARD


def test_how_many_scores_lie_inside_their_intervals() -> None:
    calibration = Calibration(0.5, 100, (1.0, 5.0), 9, {"drawn": 1.0})
    predicted, true = [2.0, 3.0, 4.0, 4.9], [2.4, 3.6, 2.0, 5.0]
    found = interval_coverage(calibration, predicted, true, ["drawn", "drawn", None, "else"], SCALE)
    assert found == {
        "interval_coverage": 0.5,
        "interval_half_width": 0.5,
        "interval_coverage_by_source": 1.0,
    }


def test_a_summary_has_intervals_classes_and_what_was_spoken() -> None:
    mos, predicted = noisy(60)
    words = [str(SCALE.rating(score)) for score in mos]
    words[0] = None
    found = summary(table(mos, predicted, spoken_rating=words), SCALE)["quality"]
    for name in ("srcc", "plcc", "plcc_logistic", "krcc", "rmse"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert found["plcc_logistic"] == plcc_logistic(predicted, mos)
    assert np.sum(found["confusion"]) == found["n"] == 60
    assert np.trace(found["confusion"]) / 60 == pytest.approx(found["accuracy"])
    assert np.sum(found["spoken_confusion"]) == 59, "no word is nowhere"
    assert (found["spoken_n"], found["spoken_unparsed"]) == (60, 1)
    assert found["spoken_accuracy"] == pytest.approx(59 / 60)
    assert found["spoken_srcc"] > 0.95
    assert 0 < found["spoken_is_predicted"] < found["spoken_is_near_predicted"] <= 1
    assert found["precision_weighted"] > 0 and found["f1_macro"] > 0


def test_each_aspect_is_summed_up_by_itself_in_the_usual_order() -> None:
    mos, predicted = noisy(20)
    both = pd.concat([table(mos, mos[::-1], aspect="authenticity"), table(mos, predicted)])
    found = summary(both, SCALE)
    assert list(found) == ["quality", "authenticity"]
    assert found["quality"]["srcc"] == srcc(predicted, mos)
    assert found["authenticity"]["srcc"] == srcc(mos[::-1], mos)
    assert not [name for name in found["quality"] if name.startswith("spoken")]


def test_few_or_equal_images_give_no_numbers_and_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = summary(table([2.0], [3.0], spoken_rating=["good"]), SCALE)["quality"]
        equal = summary(table([2.0] * 4, [3.0] * 4), SCALE)["quality"]
    assert alone["n"] == 1 and math.isnan(alone["srcc"]) and math.isnan(alone["spoken_srcc"])
    assert alone["rmse"] == 1
    assert math.isnan(equal["plcc_logistic"]) and math.isnan(equal["srcc_low"])


def test_groups_have_their_own_agreement_and_bias() -> None:
    mos, predicted = noisy(30)
    shifted = [score + 0.5 for score in mos[:20]]
    drawn = table(mos, shifted + predicted[20:], generator=["pen"] * 20 + ["brush"] * 6 + [None] * 4)
    found = by_group(drawn, "generator").set_index("group")
    assert list(found.index) == ["pen", "brush", NOT_GIVEN], "largest first"
    assert list(found["n"]) == [20, 6, 4]
    assert found.loc["pen", "bias"] == pytest.approx(0.5)
    assert found.loc["pen", "srcc"] == pytest.approx(1)
    assert found.loc["brush", "srcc"] == pytest.approx(srcc(predicted[20:26], mos[20:26]))
    assert found.loc["brush", "srcc_low"] <= found.loc["brush", "srcc"] <= found.loc["brush", "srcc_high"]
    assert math.isnan(found.loc[NOT_GIVEN, "srcc"]), "four images are too few"
    assert found.loc[NOT_GIVEN, "rmse"] == pytest.approx(rmse(predicted[26:], mos[26:]))


def test_groups_of_one_aspect_do_not_meet_those_of_another() -> None:
    mos, predicted = noisy(12)
    both = pd.concat(  # with the same row labels twice
        [table(mos, predicted, source="a"), table(mos[:6], mos[:6], aspect="correspondence", source="a")]
    )
    found = by_group(both, "source")
    assert list(found["aspect"]) == ["quality", "correspondence"]
    assert list(found["n"]) == [12, 6]
    assert found["srcc"][1] == pytest.approx(1)


def test_prompts_are_short_middling_long_or_none() -> None:
    counts = [0, 1, 5, 6, 15, 16, 90]
    prompts = [" ".join(["word"] * count) for count in counts] + [None]
    found = by_prompt_length(table([1.0] * 8, [2.0] * 8, prompt=prompts))
    assert dict(zip(found["group"], found["n"], strict=True)) == {
        "1 to 5 words": 2,
        "6 to 15 words": 2,
        "16 words and more": 2,
        NO_PROMPT: 2,
    }
    assert list(found["group"])[-1] == NO_PROMPT


def test_only_prompts_with_three_different_images_are_looked_into() -> None:
    prompts = ["A cat", "a  cat", "a cat ", "dog", "dog", "dog", "owl", "owl", "ant", "ant", "ant", None]
    mos = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 4.0, 4.0, 4.0, 5.0]
    predicted = [1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 1.0, 2.0, 1.0, 2.0, 3.0, 5.0]
    (found,) = within_prompts(table(mos, predicted, prompt=prompts)).to_dict("records")
    assert (found["prompts"], found["n"]) == (2, 6)
    assert found["srcc"] == pytest.approx(0), "1 for the cat and -1 for the dog"
    (alike,) = within_prompts(table(mos[:3], [2.0] * 3, prompt=prompts[:3])).to_dict("records")
    assert alike["srcc"] == 0
    (none,) = within_prompts(table(mos[6:8], predicted[6:8], prompt=prompts[6:8])).to_dict("records")
    assert none["prompts"] == 0 and math.isnan(none["srcc"])
