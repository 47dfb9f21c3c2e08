"""Registered checkpoints are whole, known by their content, and listed with how they compare."""

import json
import math
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m3agiqa import Aspect, InputError, MosScale, WeightsError
from m3agiqa.checkpoint.card import Card, predictor_file, write_card
from m3agiqa.checkpoint.comparison import (
    Agreement,
    ChangedImage,
    ChangedScore,
    Compared,
    Comparison,
    rmse_fall,
)
from m3agiqa.checkpoint.predictor_weights import save_predictor
from m3agiqa.checkpoint.registry import REGISTRATION_FILE, candidates, find, register
from m3agiqa.predictor.config import PredictorConfig
from m3agiqa.predictor.model import Predictor

CONFIG = PredictorConfig(input_size=4, dim=8, blocks=1, heads=2, context_length=8, extractor="none")
CARD = Card(
    name="small",
    version="0.3+people",
    backbone="nano",
    learned_from="four drawings",
    fingerprint="abc",
    scales={Aspect.QUALITY: MosScale(1, 5)},
    predictors={Aspect.QUALITY: CONFIG},
)
COMPARISON = Comparison(
    "nano 0.2.0",
    "small 0.3+people",
    (
        Compared("people", Aspect.QUALITY, 12, Agreement(0.4, 0.5, 1.25, -0.5), Agreement(0.7, 0.8, 0.5, 0)),
        Compared("data", Aspect.QUALITY, 2, None, Agreement(math.nan, math.nan, 0.5, 0.25)),
    ),
)


def checkpoint(folder: Path, card: Card = CARD) -> Path:
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_predictor(Predictor(CONFIG), folder, Aspect.QUALITY)
    write_card(card, folder)
    return folder


def test_a_registered_checkpoint_is_listed_and_found(tmp_path: Path) -> None:
    models = tmp_path / "data" / "models"
    made = register(checkpoint(tmp_path / "run"), models, COMPARISON)
    assert made.name.startswith("small-0.3+people-")
    assert candidates(models) == [made]
    assert made.card == CARD
    told = made.comparison
    assert told.rows[0] == COMPARISON.rows[0]
    assert told.rows[1].before is None and math.isnan(told.rows[1].after.srcc)
    assert find(made.name, models) == made.folder
    assert find("nano", models).name == "nano", "shipped ones are found by the same way"
    with pytest.raises(InputError, match="There is no model 'small'"):
        find("small", models)


def test_the_same_checkpoint_is_one_candidate_and_another_one_is_a_second(tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = register(checkpoint(tmp_path / "a"), models)
    again = register(tmp_path / "a", models, COMPARISON)
    assert (again.name, again.registered_at) == (first.name, first.registered_at)
    assert again.comparison.before == "nano 0.2.0", "what is measured later is added"
    second = register(checkpoint(tmp_path / "b", replace(CARD, fingerprint="def")), models)
    assert [each.name for each in candidates(models)] == [second.name, first.name], "the newest first"


def test_names_of_models_are_no_paths(tmp_path: Path) -> None:
    odd = replace(CARD, name="../../etc/my model", version="")
    made = register(checkpoint(tmp_path / "a", odd), tmp_path / "models")
    assert made.folder.parent == tmp_path / "models"
    assert [each.card.name for each in candidates(tmp_path / "models")] == ["../../etc/my model"]


def test_a_damaged_checkpoint_is_not_registered(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "a")
    (made / predictor_file(Aspect.QUALITY)).write_bytes(b"cut off")
    with pytest.raises(WeightsError, match="damaged or has been changed"):
        register(made, tmp_path / "models")
    assert candidates(tmp_path / "models") == []


def test_what_is_no_candidate_is_passed_over(tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert candidates(models) == []
    good = register(checkpoint(tmp_path / "a"), models)
    bad = register(checkpoint(tmp_path / "b", replace(CARD, version="9")), models)
    (bad.folder / REGISTRATION_FILE).write_text(json.dumps({"registered_at": 3}))
    checkpoint(models / ".half-copied.1234")
    (models / "notes.txt").write_text("mine")
    assert [each.name for each in candidates(models)] == [good.name]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(InputError, match="cannot be registered in"):
        register(checkpoint(tmp_path / "a"), tmp_path / "models")


def test_two_processes_may_register_the_same_one_at_once(tmp_path: Path) -> None:
    made, models, found = checkpoint(tmp_path / "a"), tmp_path / "models", []
    both = [threading.Thread(target=lambda: found.append(register(made, models))) for _ in range(8)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(60)
    assert len(found) == 8 and len({each.name for each in found}) == 1
    assert [path.name for path in models.iterdir()] == [found[0].name], "nothing half-copied is left"


def test_the_interval_of_a_gain_is_of_the_same_images() -> None:
    true = [1.0 + number % 5 for number in range(40)]
    before = [mos + (0.8 if number % 2 else -1.2) for number, mos in enumerate(true)]
    after = [mos + (0.1 if number % 2 else -0.3) for number, mos in enumerate(true)]
    low, high = rmse_fall(before, after, true)
    fall = math.sqrt((0.8**2 + 1.2**2) / 2) - math.sqrt((0.1**2 + 0.3**2) / 2)
    assert 0.7 < low < fall < high < 0.9
    assert rmse_fall(before, before, true) == (0, 0)
    assert rmse_fall(before[:4], after[:4], true[:4]) is None


def test_of_images_whose_scores_change_alike_that_with_more_new_words_has_changed_more() -> None:
    score = ChangedScore(Aspect.QUALITY, 3.0, 3.0, None, ("fair", "fair"))
    told = {
        "score": replace(score, after=3.2),
        "all words": replace(score, after=3.001, texts=("It is sharp.", "Noise everywhere")),
        "a word": replace(score, texts=("It is sharp.", "It is blurred.")),
        "nothing": score,
    }
    images = [ChangedImage(name, None, True, (each,)) for name, each in reversed(told.items())]
    ordered = sorted(images, key=lambda image: image.change, reverse=True)
    assert [image.image for image in ordered] == list(told)
    assert images[0].change == (0.0, 0.0)
