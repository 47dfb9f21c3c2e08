import threading
import time

import pytest
from waiting import run_async, wait_until

from annotation.ui.assess.runs import CLOCK_INTERVAL, Run, Runs, RunStage
from annotation.ui.images import Upload
from annotation.ui.model_service import ModelLoader, WaitingLine
from m3agiqa.aspects import Aspect
from m3agiqa.errors import WeightsError


def finish(run: Run) -> list:
    """All states that a page would have seen."""

    async def collect() -> list:
        return [state async for state in run.follow(CLOCK_INTERVAL)]

    return run_async(collect(), 10)


def wait_for(run: Run, stage: RunStage) -> None:
    wait_until(lambda: run.state.stage is stage)


def wait_for_text(run: Run) -> None:
    wait_until(lambda: len(run.state.descriptions) >= 3)


@pytest.fixture
def runs(loader) -> Runs:
    return Runs(loader, WaitingLine())


@pytest.fixture
def ann(runs, assessor, upload) -> Run:
    """A visitor's run, under way until the model may go on."""
    assessor.go.clear()
    run = runs.begin("ann", upload, "teal")
    wait_for(run, RunStage.ASSESSING)
    return run


def test_runs_to_the_end(loader, upload):
    run = Runs(loader, WaitingLine()).begin("ann", upload, " a  teal square ")
    *_, last = finish(run)
    assert last.stage is RunStage.FINISHED
    assert last.assessment.image == "teal square.png"
    assert last.assessment.prompt == "a teal square"
    assert {aspect: result.description for aspect, result in last.results.items()} == dict.fromkeys(
        Aspect, "one two three"
    )
    assert last.descriptions[Aspect.QUALITY] == "one two three"


def test_without_a_prompt_correspondence_is_left_out(loader, assessor, upload):
    *_, last = finish(Runs(loader, WaitingLine()).begin("ann", upload, "  \n "))
    assert last.stage is RunStage.FINISHED
    assert not last.has_prompt
    assert set(last.results) == {Aspect.QUALITY, Aspect.AUTHENTICITY}
    assert assessor.prompts == [None]


def test_stop_keeps_the_text_so_far(runs, ann):
    wait_for_text(ann)
    runs.stop("ann")
    *_, last = finish(ann)
    assert last.stage is RunStage.STOPPED
    assert last.descriptions == dict.fromkeys(Aspect, "one")
    assert last.results == {}
    assert len(runs.line) == 0


def test_stop_touches_only_the_visitors_own_run(runs, ann, assessor, upload):
    ben = runs.begin("ben", upload, "teal")
    wait_for(ben, RunStage.WAITING)
    assert ben.state.place == 2
    runs.stop("nobody")
    runs.stop("ann")
    wait_for(ann, RunStage.STOPPED)
    wait_for(ben, RunStage.ASSESSING)
    assessor.go.set()
    *_, last = finish(ben)
    assert last.stage is RunStage.FINISHED


def test_stop_works_in_the_line(runs, ann, upload):
    ben = runs.begin("ben", upload, "teal")
    wait_for(ben, RunStage.WAITING)
    runs.stop("ben")
    wait_for(ben, RunStage.STOPPED)
    assert ann.state.stage is RunStage.ASSESSING
    assert len(runs.line) == 1
    runs.stop("ann")


def test_stop_works_while_the_model_loads(assessor, upload):
    go = threading.Event()

    def load(name, progress):
        progress("Downloading weights", 0.5)
        go.wait(5)
        return assessor

    runs = Runs(ModelLoader("slow", load), WaitingLine())
    run = runs.begin("ann", upload, "teal")
    wait_until(lambda: run.state.load.message == "Downloading weights")
    assert run.state.stage is RunStage.LOADING
    runs.stop("ann")
    wait_for(run, RunStage.STOPPED)
    go.set()


def test_a_new_run_ends_the_visitors_older_one(runs, ann, assessor, upload):
    second = runs.begin("ann", upload, "teal")
    wait_for(ann, RunStage.STOPPED)
    assessor.go.set()
    *_, last = finish(second)
    assert last.stage is RunStage.FINISHED


def test_forgetting_an_old_run_leaves_the_new_one_alone(loader, assessor, upload):
    assessor.go.clear()
    runs = Runs(loader, WaitingLine())
    first = runs.begin("ann", upload, "teal")
    second = runs.begin("ann", upload, "teal")
    runs.forget("ann", first)
    wait_for(second, RunStage.ASSESSING)
    assert not second.state.over
    runs.stop("ann")
    wait_for(second, RunStage.STOPPED)


def test_bad_input_is_told_without_waiting_in_line(runs, ann, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"hello")
    *_, last = finish(runs.begin("ben", Upload(tmp_path / "bad.png", "bad.png"), "teal"))
    assert last.stage is RunStage.FAILED
    assert last.error.startswith("This is not an image")
    assert ann.state.stage is RunStage.ASSESSING
    runs.stop("ann")


def test_missing_weights_are_told(upload):
    def load(name, progress):
        raise WeightsError("The weight file x is missing. Install the model anew.")

    *_, last = finish(Runs(ModelLoader("nano", load), WaitingLine()).begin("ann", upload, "teal"))
    assert last.stage is RunStage.FAILED
    assert last.error == "The weight file x is missing. Install the model anew."


def test_a_bug_becomes_a_sentence_and_frees_the_line(loader, assessor, upload, monkeypatch, caplog):
    def stream(*_, **__):
        raise ZeroDivisionError("secret detail")
        yield

    monkeypatch.setattr(assessor, "stream", stream)
    runs = Runs(loader, WaitingLine())
    *_, last = finish(runs.begin("ann", upload, "teal"))
    assert last.stage is RunStage.FAILED
    assert "secret detail" not in last.error
    assert "secret detail" in caplog.text
    assert len(runs.line) == 0


def test_the_clock_stands_still_afterwards(loader, upload):
    run = Runs(loader, WaitingLine()).begin("ann", upload, "teal")
    finish(run)
    seconds = run.seconds
    time.sleep(0.05)
    assert run.seconds == seconds


def test_the_page_is_told_the_time_even_when_nothing_else_happens(runs, ann):
    wait_for_text(ann)

    async def two() -> list:
        watch = ann.follow(CLOCK_INTERVAL)
        return [await anext(watch), await anext(watch)]

    first, second = run_async(two(), 5)
    assert first is second
    runs.stop("ann")
