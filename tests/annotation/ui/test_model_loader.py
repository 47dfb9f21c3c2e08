from __future__ import annotations

import threading

import pytest

from annotation.ui.model_loader import ModelLoader
from m3agiqa.errors import Stopped, WeightsError


def never() -> bool:
    return False


def test_loads_once_and_reports_progress(assessor):
    go, calls, seen = threading.Event(), [], []

    def load(name, progress):
        calls.append(name)
        progress("Downloading weights", 0.25)
        go.wait(5)
        return assessor

    def report(state):
        seen.append((state.message, state.fraction))
        if state.fraction:
            go.set()

    loader = ModelLoader("nano", load)
    loader.start()
    loader.start()
    assert loader.wait(never, report) is assessor
    assert loader.wait(never, report) is assessor
    assert calls == ["nano"]
    assert ("Downloading weights", 0.25) in seen


def test_waiting_can_be_stopped_without_stopping_the_load(assessor):
    go = threading.Event()

    def load(name, progress):
        go.wait(5)
        return assessor

    loader = ModelLoader("nano", load)
    with pytest.raises(Stopped):
        loader.wait(lambda: True, lambda state: None)
    go.set()
    assert loader.wait(never, lambda state: None) is assessor


def test_failure_is_raised_for_all_and_the_next_wait_tries_again(assessor):
    outcomes = [WeightsError("The weight file x is missing."), assessor]

    def load(name, progress):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    loader = ModelLoader("nano", load)
    with pytest.raises(WeightsError, match="The weight file x is missing"):
        loader.wait(never, lambda state: None)
    assert str(loader.state.error) == "The weight file x is missing."
    assert loader.wait(never, lambda state: None) is assessor
    assert loader.state.error is None


def test_an_unexpected_error_becomes_a_sentence(caplog):
    def load(name, progress):
        raise RuntimeError("CUDA kernel 0x7f is on fire")

    loader = ModelLoader("nano", load)
    with pytest.raises(WeightsError) as raised:
        loader.wait(never, lambda state: None)
    assert "0x7f" not in str(raised.value)
    assert "nano" in str(raised.value)
    assert "0x7f" in caplog.text
