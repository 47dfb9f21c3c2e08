"""Asking models on servers: what may come back, patience with them, and many questions at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import TypeVar

from tqdm import tqdm

from m3agiqa.errors import M3AgiqaError

T = TypeVar("T")

Sleep = Callable[[float], object]
"""Waits for some seconds; answers something true where that was cut short, as threading.Event.wait does."""

MAX_WAIT = 60.0  # seconds, where the server names none


class ServerError(M3AgiqaError):
    """The server will answer nothing, however often it is asked; the message says what to mend."""


class RequestRejected(ServerError):
    """The server does not take this one request; it may take others."""


class ContentRefused(M3AgiqaError):
    """A safety filter will not let this sample pass; another model may."""


class TemporaryError(M3AgiqaError):
    """Worth asking again: overload, rate limit, time-out, an answer that makes no sense."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait, where the server named them."""


@dataclass(frozen=True)
class ChatReply:
    """What a model said, and what is paid for."""

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    cut: bool = False
    """Whether it ended because it was as long as it may be."""


def with_retries(ask: Callable[[], T], attempts: int, patience: float, sleep: Sleep) -> T:
    """What `ask` returns once the server is not busy any more; raises TemporaryError after the last attempt.

    `patience` seconds before the second attempt, twice as many before each further one, and more where the
    server says so.
    """
    for attempt in range(attempts - 1):
        try:
            return ask()
        except TemporaryError as error:
            backoff = min(MAX_WAIT, patience * 2**attempt) * random.uniform(0.5, 1.5)
            if sleep(max(backoff, error.retry_after or 0.0)):
                raise
    return ask()


def run_in_threads(
    work: Callable[[T], None], items: Iterable[T], count: int, stop: Event, progress: tqdm
) -> None:
    """Work through the items, `count` at a time in threads of their own.

    On any error and on Ctrl-C no more is begun, `stop` is set, and what is under way may finish.
    """
    running: set[Future] = set()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                running.add(pool.submit(work, item))
                if len(running) >= 2 * count:
                    running = _finish(running, progress)
            while running:
                running = _finish(running, progress)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _finish(running: set[Future], progress: tqdm) -> set[Future]:
    done, rest = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
        progress.update()
    return rest
