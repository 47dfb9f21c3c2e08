"""A fair line for one model: visitors take turns in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from m3agiqa.errors import Stopped

POLL = 0.1  # seconds between looks at `stop` while waiting


class WaitingLine:
    """First come, first served; whoever stops waiting leaves the line."""

    def __init__(self) -> None:
        self._tickets: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, stop: Callable[[], bool], on_place: Callable[[int], None]) -> Iterator[None]:
        """Wait until it is one's turn and keep it for the `with` block.

        `on_place` hears the place in the line (2 is next) while waiting, whenever it may have changed.
        Raises Stopped once `stop` answers True.
        """
        ticket = object()
        with self._changed:
            self._tickets.append(ticket)
        try:
            self._wait(ticket, stop, on_place)
            yield
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._tickets)

    def _wait(self, ticket: object, stop: Callable[[], bool], on_place: Callable[[int], None]) -> None:
        with self._changed:
            while True:
                if stop():
                    raise Stopped("Stopped while waiting.")
                place = self._tickets.index(ticket) + 1
                if place == 1:
                    return
                on_place(place)
                self._changed.wait(POLL)
