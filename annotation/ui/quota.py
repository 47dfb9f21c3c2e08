"""How many images each user's programs may have judged in an hour, so that none keeps the model to itself."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime

from m3agiqa.errors import M3AgiqaError

WINDOW_SECONDS = 3600


class QuotaUsedUp(M3AgiqaError):
    """`seconds`: after which as many images as were asked for are free; never where these are too many."""

    def __init__(self, sentence: str, seconds: float) -> None:
        super().__init__(sentence)
        self.seconds = seconds


class Quota:
    """Images of the past hour by user, in this process's memory: a restart forgets them."""

    def __init__(self, per_hour: int, clock: Callable[[], float] = time.time) -> None:
        """`per_hour` 0: as many as they like."""
        self._per_hour, self._clock = per_hour, clock
        self._lock = threading.Lock()
        self._taken: defaultdict[str, deque[tuple[float, int]]] = defaultdict(deque)
        """Moments and numbers of images, oldest first."""

    def check(self, user: str) -> None:
        """Raises QuotaUsedUp where nothing is left to a user."""
        self.take(user, 1, reserve=False)

    def take(self, user: str, images: int, reserve: bool = True) -> None:
        """Count images that are about to be judged. Raises QuotaUsedUp where not as many are left."""
        if not self._per_hour:
            return
        with self._lock:
            taken, now = self._taken[user], self._clock()
            while taken and taken[0][0] <= now - WINDOW_SECONDS:
                taken.popleft()
            used = sum(number for _, number in taken)
            if used + images > self._per_hour:
                raise self._used_up(taken, used, images)
            if reserve:
                taken.append((now, images))

    def _used_up(self, taken: deque[tuple[float, int]], used: int, images: int) -> QuotaUsedUp:
        hourly = f"{self._per_hour:,} images an hour may be judged for the programs of one user"
        if images > self._per_hour:
            return QuotaUsedUp(f"{hourly}, and these are {images:,}; give fewer at once.", math.inf)
        free, moments = self._per_hour - used, iter(taken)
        while free < images:
            moment, number = next(moments)
            free += number
        again = moment + WINDOW_SECONDS
        left = f"{self._per_hour - used:,} of them are left" if used < self._per_hour else "they are used up"
        at = datetime.fromtimestamp(math.ceil(again / 60) * 60, UTC)
        return QuotaUsedUp(f"{hourly}, and {left}; it goes on at {at:%H:%M} UTC.", again - self._clock())
