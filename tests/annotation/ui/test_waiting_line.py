from __future__ import annotations

import threading

import pytest
from waiting import wait_until

from annotation.ui.model_service import WaitingLine
from m3agiqa.errors import Stopped


def never() -> bool:
    return False


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
