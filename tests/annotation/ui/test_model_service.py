"""Loading the model, taking turns at it, and the line on top of the page that says which model judges."""

import threading
from types import SimpleNamespace

import gradio as gr
import pytest
from waiting import wait_until

from annotation.settings import Settings
from annotation.ui import model_service
from annotation.ui.context import Studio
from annotation.ui.model_service import ModelLoader, WaitingLine, from_registry
from annotation.ui.server import build_page
from m3agiqa import Assessor
from m3agiqa.errors import InputError, Stopped, TooLittleMemory, WeightsError


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


def test_instead_of_a_promoted_model_that_cannot_be_loaded_another_is_served(assessor):
    def load(name, progress):
        if name == "promoted":
            raise TooLittleMemory("It needs 19.3 GB.")
        return assessor

    loader = ModelLoader("promoted", load, instead="nano")
    assert loader.wait(never, lambda state: None) is assessor
    assert loader.name == "nano"
    assert loader.state.notice == "promoted was promoted, but cannot be served. It needs 19.3 GB."
    loader.switch("nano")
    assert loader.state.notice == ""


def test_if_none_can_be_loaded_both_reasons_are_told():
    def load(name, progress):
        raise WeightsError(f"{name} is missing.")

    loader = ModelLoader("promoted", load, instead="nano")
    with pytest.raises(WeightsError, match="nano is missing"):
        loader.wait(never, lambda state: None)
    assert loader.state.notice == "promoted was promoted, but cannot be served. promoted is missing."


def test_a_promoted_model_is_tried_again_first(assessor):
    network: list[str] = []

    def load(name, progress):
        if not network:
            raise WeightsError(f"{name} is missing.")
        return assessor

    loader = ModelLoader("promoted", load, instead="nano")
    with pytest.raises(WeightsError):
        loader.wait(never, lambda state: None)
    network.append("is back")
    assert loader.wait(never, lambda state: None) is assessor
    assert (loader.name, loader.state.notice) == ("promoted", "")


def loading(monkeypatch, error, **settings) -> str:
    """What a server says of a model that cannot be loaded."""

    def from_pretrained(*given, **options):
        raise error

    monkeypatch.setattr(Assessor, "from_pretrained", from_pretrained)
    with pytest.raises(type(error)) as raised:
        from_registry(Settings(**settings))("large", lambda message, done: None)
    return str(raised.value)


def test_too_small_hardware_is_told_with_the_ways_out(monkeypatch):
    error = TooLittleMemory("It needs 19.3 GB. With {quantize} it needs 11.2 GB.", quantize="8bit")
    monkeypatch.delenv("SPACE_ID", raising=False)
    told = "It needs 19.3 GB. With M3AGIQA_QUANTIZE=8bit it needs 11.2 GB."
    assert loading(monkeypatch, error) == told
    assert loading(monkeypatch, error, model="large") == f"{told} Without M3AGIQA_MODEL, nano judges here."
    monkeypatch.setenv("SPACE_ID", "somebody/studio")
    assert loading(monkeypatch, error, model="large") == (
        f"{told} In this Space's Settings, larger hardware can be chosen, ZeroGPU among it. "
        "Without M3AGIQA_MODEL, nano judges here."
    )
    assert loading(monkeypatch, WeightsError("It is gone.")) == "It is gone."


def test_a_model_is_placed_as_the_settings_say(monkeypatch, assessor):
    def from_pretrained(name, progress, **told):
        return name, told

    monkeypatch.setattr(Assessor, "from_pretrained", from_pretrained)
    monkeypatch.setattr("annotation.ui.zero_gpu.on_demand", lambda loaded, device: loaded)
    load = from_registry(Settings(model="a/b", quantize="4bit", device="cuda:1", revision="v1"))
    placed = {"quantize": "4bit", "device": "cuda:1"}
    assert load("a/b", None) == ("a/b", {**placed, "revision": "v1"})
    assert load("c/d", None) == ("c/d", {**placed, "revision": None}), "the revision is of M3AGIQA_MODEL"


@pytest.mark.parametrize("settings", [{"quantize": "4bit"}, {"device": "cuda"}])
def test_nano_says_that_it_wants_no_such_settings(settings):
    with pytest.raises(InputError, match="Leave out M3AGIQA_QUANTIZE and M3AGIQA_DEVICE"):
        from_registry(Settings(**settings))("nano", lambda message, done: None)


# --- turns -------------------------------------------------------------------------------------


def test_alone_one_does_not_wait():
    places = []
    line = WaitingLine()
    with line.turn(never, places.append):
        assert len(line) == 1
    assert places == []
    assert len(line) == 0


def test_turns_come_in_order_and_one_at_a_time():
    line, order, inside = WaitingLine(), [], []
    release = threading.Event()

    def visitor(name: int) -> None:
        with line.turn(never, lambda place: None):
            inside.append(name)
            assert len(inside) == 1
            order.append(name)
            release.wait(5)
            inside.remove(name)

    threads = []
    for name in range(4):
        threads.append(threading.Thread(target=visitor, args=(name,)))
        threads[-1].start()
        wait_until(lambda expected=name + 1: len(line) == expected)
    release.set()
    for thread in threads:
        thread.join(5)
    assert order == [0, 1, 2, 3]


def test_place_is_told_and_counts_down():
    line, places = WaitingLine(), []
    leave = [threading.Event(), threading.Event()]

    def visitor(event: threading.Event) -> None:
        with line.turn(never, lambda place: None):
            event.wait(5)

    for i, event in enumerate(leave, start=1):
        threading.Thread(target=visitor, args=(event,)).start()
        wait_until(lambda expected=i: len(line) == expected)

    def third() -> None:
        with line.turn(never, places.append):
            pass

    thread = threading.Thread(target=third)
    thread.start()
    wait_until(lambda: 3 in places)
    leave[0].set()
    wait_until(lambda: 2 in places)
    leave[1].set()
    thread.join(5)
    assert not thread.is_alive()
    assert places == sorted(places, reverse=True)


def test_stopping_leaves_the_line_and_lets_the_next_one_move_up():
    line, stopped = WaitingLine(), threading.Event()
    with line.turn(never, lambda place: None):
        raised = []

        def impatient() -> None:
            try:
                with line.turn(stopped.is_set, lambda place: None):
                    raise AssertionError("it was not this visitor's turn")
            except Stopped as error:
                raised.append(error)

        thread = threading.Thread(target=impatient)
        thread.start()
        wait_until(lambda: len(line) == 2)
        stopped.set()
        line.wake()
        thread.join(5)
        assert len(raised) == 1
        assert len(line) == 1


def test_who_has_been_stopped_does_not_count_before_those_who_wait():
    line, stopped, places = WaitingLine(), threading.Event(), []

    def next_visitor() -> None:
        with line.turn(never, places.append):
            pass

    with line.turn(stopped.is_set, lambda place: None):
        waiting = threading.Thread(target=next_visitor)
        waiting.start()
        wait_until(lambda: places == [2])
        stopped.set()
        line.wake()
        wait_until(lambda: places == [2, 1])
        assert waiting.is_alive(), "the model is not free before the one who was stopped has left"
    waiting.join(5)
    assert not waiting.is_alive()


def test_stopped_before_the_turn_never_gets_it():
    line = WaitingLine()
    with pytest.raises(Stopped), line.turn(lambda: True, lambda place: None):
        raise AssertionError("it was stopped already")
    assert len(line) == 0


def test_an_error_gives_the_turn_back():
    line = WaitingLine()
    with pytest.raises(KeyError), line.turn(never, lambda place: None):
        raise KeyError
    with line.turn(never, lambda place: pytest.fail("there should be nobody before")):
        pass


# --- the line on top of the page ---------------------------------------------------------------


def test_an_open_page_hears_of_another_model_when_a_tab_is_opened(studio: Studio) -> None:
    def load(name: str, progress: object) -> SimpleNamespace:
        return SimpleNamespace(card=SimpleNamespace(title=name, learned_from="a test"))

    loader = ModelLoader("first", load)
    demo = build_page(Studio(studio.settings, studio.store, studio.access, loader))
    tabs = {block._id for block in demo.blocks.values() if isinstance(block, gr.Tab)}
    [follow] = [fn for fn in demo.fns.values() if tabs <= {block for block, _ in fn.targets}]
    assert {"load", "tick"} <= {event for _, event in follow.targets}, "and with the page, and while it loads"

    loader.wait(never, lambda load: None)
    banner, again = follow.fn()
    assert "<b>first</b>" in banner and not again.active
    loader.switch("second")
    assert "Model <b>second</b></summary><p>Learned from a test.</p>" in follow.fn()[0]


def test_pages_ask_again_while_a_model_loads(studio: Studio) -> None:
    go = threading.Event()
    loader = ModelLoader("slow", lambda name, progress: go.wait(5))
    demo = build_page(Studio(studio.settings, studio.store, studio.access, loader))
    ticking = [fn.fn for fn in demo.fns.values() if "tick" in {event for _, event in fn.targets}]
    [follow] = [each for each in ticking if each.__module__ == model_service.__name__]
    assert follow()[1].active
    go.set()


def test_no_choice_is_dropped_while_the_one_before_is_answered(studio: Studio) -> None:
    choosing = {"input", "change", "release"}
    for fn in build_page(studio).fns.values():
        if fn.fn and choosing & {event for _, event in fn.targets}:
            assert fn.trigger_mode != "once", fn.fn


def test_pages_hold_no_connection(studio: Studio) -> None:
    assert build_page(studio).config["connect_heartbeat"] is False
