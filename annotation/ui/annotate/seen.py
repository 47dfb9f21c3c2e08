"""What people have seen of the model's answers, so that a blind score is known to be one."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

from m3agiqa.aspects import Aspect

REMEMBERED = 20_000  # people times items; far more than are ever being worked on


class Seen:
    """Kept in memory. After a restart of the server what people have saved still tells that they know an
    answer; who had merely looked at it passes for blind, unless their page knows better.

    A blind score stays blind when the answer is shown afterwards, and no longer once it is changed.
    """

    def __init__(self) -> None:
        self._scores: OrderedDict[tuple[str, int], dict[Aspect, float]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, person: str, item: int, aspect: Aspect, score: float = math.nan) -> None:
        """The answer is shown from now on; `score` is what the person had given before, NaN for nothing."""
        with self._lock:
            self._scores.setdefault((person, item), {}).setdefault(aspect, score)
            self._scores.move_to_end((person, item))
            if len(self._scores) > REMEMBERED:
                self._scores.popitem(last=False)

    def aspects(self, person: str, item: int) -> frozenset[Aspect]:
        """The aspects whose answers this person may have seen."""
        return frozenset(self._scores.get((person, item), ()))

    def was_blind(self, person: str, item: int, aspect: Aspect, score: float) -> bool:
        """Whether this very score was given before the answer was shown."""
        before = self._scores.get((person, item), {}).get(aspect, score)
        return math.isclose(before, score)
