"""The Compare tab's handlers, without a browser."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sqlalchemy import select
from waiting import run_async

from annotation.store.models import Assessment, Preference
from annotation.store.preferences import current_preferences
from annotation.ui.assess.runs import RunStage
from annotation.ui.compare.comparison import ImageComparison
from annotation.ui.compare.tab import CompareHandlers
from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.checkpoint.calibration import Calibration
from m3agiqa.ranking import Difference

ANN = SimpleNamespace(session_hash="ann")


@pytest.fixture
def handlers(studio) -> CompareHandlers:
    return CompareHandlers(studio)


@pytest.fixture
def files(tmp_path: Path) -> list[dict]:
    made = []
    for number in range(3):
        path = tmp_path / f"upload-{number}.png"
        Image.new("RGB", (64, 64), (60 * number, 90, 90)).save(path)
        made.append({"path": str(path), "orig_name": f"{number}.png"})
    return made


def press(handlers: CompareHandlers, files: list[dict] | None, prompt: str | None = "a ball") -> list[tuple]:
    async def collect() -> list[tuple]:
        return [shown async for shown in handlers.compare(files, prompt, "overall", 1, 1, 1, ANN)]

    return run_async(collect(), 10)


def event(**data: object) -> SimpleNamespace:
    return SimpleNamespace(_data=data)


def test_images_that_cannot_be_judged_are_told_with_the_others(handlers, files, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    files += [{"path": str(broken), "orig_name": "broken.png"}, {**files[0], "orig_name": "again.png"}]
    *_, (comparison, grid, status, message, _, _) = press(handlers, files)
    assert [each.image.name for each in comparison.places()] == ["0.png", "1.png", "2.png"]
    assert grid.count('data-index="') == 3
    assert "<b>broken.png</b> is left out." in grid
    assert "The same picture as 0.png, pixel by pixel; it is ranked once." in grid
    assert "Done" in status and 'role="alert"></p>' in message
    assert 'download="compared.csv"' in grid and 'download="compared.json"' in grid


@pytest.mark.parametrize(
    ("count", "sentence"), [(0, "0 images were given"), (1, "1 image was"), (25, "25 images")]
)
def test_too_few_and_too_many(handlers, files, count: int, sentence: str) -> None:
    [(comparison, grid, _, message, _, stop)] = press(handlers, (files * 9)[:count])
    assert (comparison, grid, stop["visible"]) == (None, "", False)
    assert sentence in message and "2 to 24 can be compared at once." in message


def test_a_prompt_that_all_files_carry_is_filled_in(handlers, files, tmp_path: Path) -> None:
    info, foxes = PngInfo(), []
    info.add_text("parameters", "a red fox\nSteps: 20, Sampler: Euler a, Seed: 1")
    for number in range(2):
        Image.new("RGB", (64, 64), (255, 9 * number, 0)).save(tmp_path / f"{number}.png", pnginfo=info)
        foxes.append({"path": str(tmp_path / f"{number}.png"), "orig_name": f"{number}.png"})
    prompt, filled, status = handlers.offer_prompt(foxes, "", "")
    assert (prompt, filled) == ("a red fox", "a red fox") and "written their prompt" in status
    assert handlers.offer_prompt([*foxes, files[0]], prompt, filled)[:2] == ("", ""), "one carries none"
    typed, filled, _ = handlers.offer_prompt(foxes, "a fox", "a red fox")
    assert (typed, filled) == (gr.skip(), "")


def test_a_pick_keeps_images_assessments_and_preference_and_is_undone(handlers, studio, files) -> None:
    *_, (comparison, *_) = press(handlers, files)
    grid, message = handlers.pick(comparison, event(index=1, token="t1"), ANN)
    assert "You picked 1.png; saved as pick #1." in grid and 'role="alert"></p>' in message
    handlers.pick(comparison, event(index=1, token="t1"), ANN)  # sent twice
    handlers.pick(comparison, event(index=2, token="t2"), ANN)
    with studio.store.database.reading() as session:
        [current] = current_preferences(session)
        names = {each.item.image.name: each.preferred for each in current.compared}
        assert names == {"0.png": False, "1.png": False, "2.png": True}
        assert {each.item.prompt.text for each in current.compared} == {"a ball"}
        assert len(session.scalars(select(Assessment)).all()) == 3
        assert len(session.scalars(select(Preference)).all()) == 2
    grid, _ = handlers.undo(comparison, event(pick=2), ANN)
    assert "You picked 1.png" in grid
    grid, _ = handlers.undo(comparison, event(pick=1), ANN)
    assert "You picked" not in grid
    with studio.store.database.reading() as session:
        assert current_preferences(session) == []


def test_after_stop_no_image_is_offered_as_the_best(handlers, files) -> None:
    *_, (comparison, *_) = press(handlers, files)
    card = handlers.show(comparison)[1].split("<li ")[1]
    comparison.run.state = replace(comparison.run.state, stage=RunStage.STOPPED)
    assert "Pick as best" in card and "Pick as best" not in handlers.show(comparison)[1].split("<li ")[1]
    assert "Not all images are judged" in handlers.pick(comparison, event(index=1, token="t"), ANN)[1]


def test_pages_without_a_comparison_and_wrong_messages(handlers, files) -> None:
    assert "compare the images again" in handlers.pick(None, event(index=0, token="t"), ANN)[1]
    *_, (comparison, *_) = press(handlers, files)
    for data, sentence in (
        ({"index": 7, "token": "t"}, "not among those that were judged"),
        ({"index": "0", "token": "t"}, "The image must be a whole number"),
        ({"index": 0}, "The token must be text"),
    ):
        assert sentence in handlers.pick(comparison, event(**data), ANN)[1]
    assert (
        "give quality, correspondence or authenticity" in handlers.arrange(comparison, "overall", 0, 0, 0)[1]
    )


def test_files_to_download_follow_the_order(handlers, files) -> None:
    *_, (comparison, *_) = press(handlers, files, None)
    assert isinstance(comparison, ImageComparison)
    _, message = handlers.arrange(comparison, "correspondence", 1, 1, 1)
    assert "Correspondence is not judged without a prompt; this is the overall order." in message
    grid, _ = handlers.arrange(comparison, "quality", 2, 0, 1)
    [encoded] = re.findall(r"data:application/json;base64,([^\"]+)", grid)
    told = json.loads(base64.b64decode(encoded))
    assert (told["order"], told["weights"]) == (
        "quality",
        {"quality": 2, "correspondence": 0, "authenticity": 1},
    )
    assert set(told["images"][0]["aspects"]) == {str(Aspect.QUALITY), str(Aspect.AUTHENTICITY)}
    assert told["images"][0]["to_next"] == Difference.UNKNOWN


def test_cards_say_what_is_sure(handlers, files) -> None:
    *_, (comparison, *_) = press(handlers, files)
    calibration, state = Calibration(0.5, 100, (2.0, 4.0), 3827), comparison.run.state
    mos = iter((4.0, 3.5, 2.5))
    images = tuple(
        replace(image, assessment=replace(image.assessment, aspects={
            aspect: replace(result, mos=score, calibration=calibration, scale=MosScale(0, 5))
            for aspect, result in image.assessment.aspects.items()
        }))
        for image in state.ranking.images
        for score in [next(mos)]
    )  # fmt: skip
    comparison.run.state = replace(state, ranking=replace(state.ranking, images=images))
    shown = handlers.show(comparison)[1]
    assert "Scores are on a scale from 0 to 5" in shown
    first, second, third = shown.split("<li ")[1:4]
    assert "3.5 to 4.5" in first and "about equal to the next" in first
    assert "clearly better than the next" in second and "about equal to the first" in second
    assert "next" not in third and "about equal" not in third.partition("</li>")[0]
