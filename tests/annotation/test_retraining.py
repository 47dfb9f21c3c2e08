"""One retraining at a time: the second is told who was first, and none that has died is in the way."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from seeded_cases import add, pick, say
from sqlalchemy import func, select
from waiting import wait_until

from annotation import retraining as module
from annotation.retraining import OUT_OF_SPACE, Busy, Retraining
from annotation.settings import Settings
from annotation.store import Store
from annotation.store.corrections import AspectResponse, NewSubmission, save
from annotation.store.items import add_item
from annotation.store.models import Correction
from annotation.ui.access import Access
from annotation.ui.context import Studio
from annotation.ui.models.tab import ModelsHandlers
from m3agiqa.aspects import COMMON_SCALE, Aspect
from m3agiqa.errors import InputError

ENDLESS = "import sys; print('at work', flush=True); sys.stdin.read()"  # until whoever started it ends
Png = Callable[[int], bytes]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", runs=tmp_path / "runs")


@pytest.fixture
def corrected(store: Store, png: Png) -> Store:
    """A store with two images that ann has scored."""
    stored = [store.images.add(png(number), f"{number}.png") for number in range(2)]

    def correct(session) -> None:
        for number, image in enumerate(stored):
            item, _ = add_item(session, image, f"prompt {number}", "pets")
            response = AspectResponse(Aspect.QUALITY, 2.0 + number, COMMON_SCALE, "Word")
            save(session, NewSubmission(f"token-{number}", item.id, "ann", (response,)))

    store.database.transact(correct)
    return store


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a script run in place of training, in a process of its own all the same."""

    def set_script(script: str) -> None:
        monkeypatch.setattr(Retraining, "_command", lambda *_: [sys.executable, "-c", script])
        monkeypatch.setattr(Retraining, "_registered", lambda self: "new-model")

    return set_script


def test_the_second_of_two_is_told_who_was_first_and_how_to_go_on(
    settings: Settings, corrected: Store, training: Callable[[str], None]
) -> None:
    training(ENDLESS)
    first, second = Retraining(settings), Retraining(settings)
    assert not second.is_running() and second.state() is None
    codes: list[int] = []
    running = Thread(target=lambda: codes.append(first.run(corrected, "lead")))
    running.start()
    wait_until(lambda: "at work" in second.log_tail())
    exported = sorted((settings.data / "retraining/export").rglob("*"))
    assert second.is_running()
    who = (
        rf"started by lead on 20.* UTC \(process {os.getpid()} on .+\)\. Wait .* cancel it on the Models tab"
    )
    for attempt in (lambda: second.run(corrected, "other"), lambda: second.start("other")):
        with pytest.raises(Busy, match=who):
            attempt()
    assert second.state().started_by == "lead" and "at work" in second.log_tail()
    assert sorted((settings.data / "retraining/export").rglob("*")) == exported
    second.cancel()
    running.join(20)
    assert codes == [130] and not second.is_running()
    assert second.state().error == "It was cancelled." and second.state().candidate is None
    assert second.material(corrected).new == 2, "what was not learned from is still new"

    training("print('fine')")
    assert second.run(corrected, "other") == 0
    state = first.state()
    assert (state.started_by, state.error, state.candidate) == ("other", "", "new-model")
    assert state.ended_at and "fine" in first.log_tail()
    assert first.material(corrected).new == 0


def test_one_that_was_killed_is_in_nobodys_way(
    settings: Settings, corrected: Store, training: Callable[[str], None]
) -> None:
    training(ENDLESS)
    retraining = Retraining(settings)
    killed = multiprocessing.get_context("fork").Process(target=retraining.run, args=(corrected, "lead"))
    killed.start()
    wait_until(lambda: "at work" in retraining.log_tail())
    assert retraining.is_running() and retraining.state().pid == killed.pid
    killed.kill()
    killed.join()
    wait_until(lambda: not retraining.is_running())
    assert retraining.state().ended_at is None and retraining.material(corrected).new == 2
    training("print('fine')")
    assert retraining.run(corrected, "lead") == 0 and retraining.state().candidate == "new-model"


TRAINING_THAT_LASTS = """
import sys
import annotation.__main__, annotation.retraining

command = [sys.executable, "-c", "import sys; print('at work', flush=True); sys.stdin.read()"]
annotation.retraining.Retraining._command = lambda *_: command
sys.exit(annotation.__main__.main())
"""


@pytest.mark.parametrize("is_killed_too", [False, True])
def test_a_server_that_was_killed_finds_its_retraining_as_it_is(
    corrected: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed_too: bool
) -> None:
    """Whether the retraining has outlived the server, or was killed with it."""
    (tmp_path / "python").write_text(
        f'#!/bin/sh\nshift 2\nexec {sys.executable} -c "$TRAINING_THAT_LASTS" "$@"\n'
    )
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("TRAINING_THAT_LASTS", TRAINING_THAT_LASTS)
    settings = Settings(data=tmp_path, runs=tmp_path / "runs")  # whose database `corrected` is
    studio = Studio(settings, corrected, Access(), SimpleNamespace())

    def serve() -> None:
        sys.executable = str(tmp_path / "python")
        ModelsHandlers(studio).start_or_cancel(None, "retrain")
        time.sleep(600)

    server = multiprocessing.get_context("fork").Process(target=serve)
    server.start()
    retraining = Retraining(settings)
    wait_until(lambda: "at work" in retraining.log_tail())
    server.kill()
    server.join()
    if is_killed_too:
        os.kill(retraining.state().pid, signal.SIGKILL)
        wait_until(lambda: not retraining.is_running())
    again = ModelsHandlers(studio)
    panel, asks_again = again.follow(None)
    if not is_killed_too:
        assert "Retraining, started by" in panel and "at work" in panel and asks_again.active
        again.start_or_cancel(None, "cancel")
        wait_until(lambda: not retraining.is_running())
        assert "has made no model: It was cancelled." in again.follow(None)[0]
    else:
        assert "was interrupted. The next one goes on from there." in panel and not asks_again.active


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("import sys; sys.exit('There is nothing to train.')", "There is nothing to train."),
        ("raise OSError(28, 'No space left on device')", "OSError: [Errno 28] No space left on device"),
        ("import os; os._exit(9)", "It ended without a word (exit code 9)."),
    ],
)
def test_a_failure_is_told_and_nothing_is_registered(
    settings: Settings, corrected: Store, training: Callable[[str], None], script: str, error: str
) -> None:
    training(script)
    retraining = Retraining(settings)
    assert retraining.run(corrected, "lead") != 0
    assert (retraining.state().error, retraining.state().candidate) == (error, None)
    assert not retraining.is_running() and retraining.material(corrected).new == 2


def test_picks_alone_are_too_few(settings: Settings, store: Store, training: Callable[[str], None]) -> None:
    training("raise SystemExit('never called')")
    scores = {add(store, number): 3.0 for number in range(2)}
    pick(store, min(scores), scores)
    retraining = Retraining(settings)
    for begin in (retraining.plan, lambda store: retraining.run(store, "lead")):
        with pytest.raises(
            InputError, match=r"too few to learn from alone \([01] prompts? .*; 10 are needed"
        ):
            begin(store)
    assert retraining.state().error.startswith("Nobody has scored an image yet")
    panel = ModelsHandlers(Studio(settings, store, Access(), SimpleNamespace())).follow(None)[0]
    assert "picks alone need ten prompts and one that is held out" in panel and "<button" not in panel


def test_picks_alone_start_a_retraining_and_are_new_once(
    settings: Settings, store: Store, training: Callable[[str], None], capfd: pytest.CaptureFixture
) -> None:
    for prompt in range(20):
        scores = {add(store, 2 * prompt + number, f"prompt {prompt}"): 3.0 for number in range(2)}
        pick(store, min(scores), scores)
    training("print('as told')")
    retraining = Retraining(settings)
    handlers = ModelsHandlers(Studio(settings, store, Access(), SimpleNamespace()))
    material = retraining.material(store)
    assert material.is_enough and (material.new, material.picks.new, material.images) == (0, 20, 40)
    assert material.picks.train + material.picks.test == 20 and material.picks.test > 0
    panel = handlers.follow(None)[0]
    assert "Retrain from 20 new picks</button>" in panel and "(learns from picks alone)" in panel
    assert f"{material.picks.train} prompts to learn from, {material.picks.test} held out" in panel
    assert retraining.plan(store) == 0
    told = capfd.readouterr().out
    assert "20 picks of the best image" in told and "It takes at most about 5 minutes." in told
    assert retraining.run(store, "lead") == 0
    assert retraining.material(store).picks.new == 0 and "Retrain again</button>" in handlers.follow(None)[0]
    say(store, 1, {Aspect.QUALITY: 3.0})
    pick(store, 1, {1: 3.0, 3: 3.0}, "ben")
    assert "Retrain from 1 new correction and 1 new pick</button>" in handlers.follow(None)[0]


def test_a_full_disk_is_told_in_words(
    settings: Settings, corrected: Store, training: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    training("print('fine')")
    retraining = Retraining(settings)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="disk is full"):
        patch.setattr(module, "export", full)
        retraining.run(corrected, "lead")
    assert retraining.state().error == OUT_OF_SPACE
    with monkeypatch.context() as patch, pytest.raises(InputError, match="disk is full"):
        patch.setattr(module, "write_atomically", full)
        retraining.run(corrected, "lead")
    assert retraining.run(corrected, "lead") == 0, "nothing is left locked"


def test_it_starts_by_itself_after_enough_corrections_and_never_twice_with_the_same(
    settings: Settings, corrected: Store, training: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    training("import sys; sys.exit('It cannot learn.')")

    def run(self: Retraining, person: str) -> None:
        assert (self.run(corrected, person), self.state().error) == (1, "It cannot learn.")

    monkeypatch.setattr(Retraining, "start", run)
    assert not Retraining(settings).start_if_due(corrected), "it is not asked for"
    assert not Retraining(replace(settings, retrain_after=3)).start_if_due(corrected)
    due = Retraining(replace(settings, retrain_after=2))
    assert due.start_if_due(corrected) and due.state().started_by == "this server"
    assert not due.start_if_due(corrected), "it would fail again"
    assert due.material(corrected).new == 2


@pytest.mark.parametrize("killed_in", ["its start", "its first step", "training"])
def test_one_that_started_by_itself_and_was_killed_does_not_start_again_with_the_same_corrections(
    settings: Settings,
    corrected: Store,
    training: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    killed_in: str,
) -> None:
    """As the kernel does where memory is lacking: no line of the process runs after it."""
    starts = []

    def killed(self: Retraining, person: str) -> None:
        starts.append(person)
        if killed_in != "its start":
            training("import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
            if killed_in == "its first step":
                monkeypatch.setattr(Retraining, "_write", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            process = multiprocessing.get_context("fork").Process(target=self.run, args=(corrected, person))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            wait_until(lambda: not self.is_running())
        monkeypatch.undo()
        monkeypatch.setattr(Retraining, "start", killed)

    monkeypatch.setattr(Retraining, "start", killed)
    settings = replace(settings, retrain_after=2)
    due = Retraining(settings)
    assert due.start_if_due(corrected) and "the same corrections do not start it again" in caplog.text
    assert not due.start_if_due(corrected) and starts == ["this server"]
    assert due.corrections_until_due(corrected) == 2 and due.material(corrected).new == 2
    panel = ModelsHandlers(Studio(settings, corrected, Access(), SimpleNamespace())).follow(None)[0]
    assert "was interrupted" in panel and 'data-action="retrain"' in panel
    assert "do not start it again by themselves: 2 more corrections, or the button, will." in panel
    for number in range(2):
        say(corrected, add(corrected, number + 50), {Aspect.QUALITY: 3.0})
        assert due.start_if_due(corrected) == (number == 1)
    training("print('fine')")
    assert due.run(corrected, "lead") == 0 and due.corrections_until_due(corrected) == 2


def test_what_would_be_used(settings: Settings, corrected: Store) -> None:
    material = Retraining(settings).material(corrected)
    assert (material.new, material.images, material.texts_left_out, material.seconds) == (2, 2, 2, 15.0)
    assert material.described + material.described_test == 0, "both texts tell nothing"
    (of_quality,) = material.aspects.values()
    assert (of_quality.opinions, of_quality.train + of_quality.test) == (2, 2)
    with corrected.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Correction)) == 2
