"""Waiting with a limit for what other threads and processes do, so that no test hangs for ever."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

T = TypeVar("T")


def run_async(coroutine: Coroutine[Any, Any, T], seconds: float = 60) -> T:
    """The coroutine's result. In a thread, since Playwright keeps an event loop running in the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, asyncio.wait_for(coroutine, seconds)).result()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Returns once the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def kill_once(process: BaseProcess, condition: Callable[[], object], seconds: float = 300) -> None:
    """SIGKILL as soon as the condition holds, which must be before the process ends by itself."""
    try:
        wait_until(lambda: not process.is_alive() or condition(), seconds)
        assert process.is_alive(), "it ended before"
    finally:
        process.kill()
        process.join(60)
