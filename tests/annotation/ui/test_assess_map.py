"""Where the assessed image looks bad: the choice on the Assess tab, and the map."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from waiting import run_async

from annotation.ui.access import Person, Role
from annotation.ui.assess.correct import AssessedImage
from annotation.ui.assess.quality_map import NO_MAP, MapHandlers
from annotation.ui.assess.runs import Run, Runs
from annotation.ui.context import Studio
from annotation.ui.images import Upload
from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError, Stopped
from m3agiqa.quality_map import QualityMap, even_parts

ANN = SimpleNamespace(session_hash="ann")


@pytest.fixture
def maps(assessor: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The scripted model gets a map, whose lower left part is the worst; a number for each that was made."""
    made: list[int] = []

    def quality_map(image: Any, assessment: Any, report: Any, stop: Any) -> QualityMap:
        made.append(len(made))
        assert assessment.aspects
        report(3, 4)
        while not assessor.go.wait(0.01):
            if stop():
                raise Stopped("Stopped on request.")
        scores = {Aspect.QUALITY: [0.5, 0.25, -1.5, 0.5]}
        return QualityMap.of(image.size, even_parts(image.size, (2, 2)), scores, "By <hand>.", 1.0)

    monkeypatch.setattr(assessor, "quality_map", quality_map, raising=False)
    return made


@pytest.fixture
def handlers(studio: Studio) -> MapHandlers:
    return MapHandlers(Runs(studio.loader, studio.line))


@pytest.fixture
def assessed(studio: Studio, upload: Upload) -> AssessedImage:
    run = Run(upload, "a square", studio.loader, studio.line)
    run.start()

    async def end() -> None:
        async for _ in run.follow():
            pass

    run_async(end())
    return AssessedImage(studio, Person("ann", Role.ANNOTATOR), upload, run.state)


def shown(handlers: MapHandlers, choice: str, assessed: AssessedImage | None) -> list[str]:
    async def collect() -> list[str]:
        return [html async for html in handlers.show(choice, assessed, ANN)]

    return run_async(collect(), 10)


def test_a_map_is_made_once_and_shown_with_its_worst_part(
    handlers: MapHandlers, assessed: AssessedImage, maps: list[int], upload: Upload
) -> None:
    assert handlers.offer(None)[0]["interactive"] is False
    assert handlers.offer(assessed)[0] == {**handlers.offer(None)[0], "interactive": True}
    *_, html = shown(handlers, "quality", assessed)
    width, height = upload.image().size
    assert f'aria-label="Map of quality: worst at the lower left" viewBox="0 0 {width} {height}"' in html
    assert f'<rect x="0" y="{height // 2}" width="{width // 2}" height="{height // 2}"/>' in html
    assert "-1.88. By &lt;hand&gt;." in html
    [other] = shown(handlers, "authenticity", assessed)
    assert "This model does not judge authenticity." in other
    assert shown(handlers, NO_MAP, assessed) == shown(handlers, NO_MAP, None) == [""]
    assert "assess it again" in shown(handlers, "quality", None)[0]
    assert maps == [0]


def test_while_it_is_made_it_says_how_far_it_is_and_can_be_left(
    handlers: MapHandlers, assessed: AssessedImage, maps: list[int], assessor: Any
) -> None:
    assessor.go.clear()

    async def watch() -> list[str]:
        seen = []
        async for html in handlers.show("quality", assessed, ANN):
            seen.append(html)
            if 'value="3"' in html:
                handlers.runs.stop("ann")
        return seen

    seen = run_async(watch(), 10)
    assert any(re.search(r'3 of 4 parts judged <progress max="4" value="3">', html) for html in seen)
    assert "Stopped" in seen[-1] and assessed.quality_map is None
    assessor.go.set()
    assert "Map of quality" in shown(handlers, "quality", assessed)[-1]


def test_a_newer_choice_ends_the_answer_to_an_older_one(
    handlers: MapHandlers, assessed: AssessedImage, maps: list[int], assessor: Any
) -> None:
    assessor.go.clear()

    async def change_ones_mind() -> list[str]:
        seen = []
        async for html in handlers.show("quality", assessed, ANN):
            seen.append(html)
            if 'value="3"' in html:
                assert [html async for html in handlers.show(NO_MAP, assessed, ANN)] == [""]
                assessor.go.set()
        return seen

    seen = run_async(change_ones_mind(), 10)
    assert 'value="3"' in seen[-2] and seen[-1] == gr.skip(), "nothing after the newer answer"
    assert "Map of quality" in shown(handlers, "quality", assessed)[-1]


def test_another_model_and_what_cannot_be_mapped_are_told(
    handlers: MapHandlers, assessed: AssessedImage, assessor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_small(*_: object) -> QualityMap:
        raise InputError("The image has 20 × 20 pixels.")

    monkeypatch.setattr(assessor, "quality_map", too_small, raising=False)
    assert "The image has 20 × 20 pixels." in shown(handlers, "quality", assessed)[-1]
    monkeypatch.setattr(assessor, "card", replace(assessor.card, fingerprint="other"))
    assert "Another model is in service by now" in shown(handlers, "quality", assessed)[-1]
