"""Sharing a stage's work out over processes, on one machine or many, and how far it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import TypeVar

from tqdm import tqdm

from m3agiqa.errors import InputError
from m3agiqa.threads import follow_load

Item = TypeVar("Item")

STARTED_BY = "M3AGIQA_STARTED_BY"
SECONDS_TO_END = 10  # for processes that were asked to, before they are killed


@dataclass(frozen=True)
class Shard:
    """The part of the work that this process does: every `count`-th item, beginning with `index`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From INDEX/COUNT, the index beginning at 0. Raises InputError."""
        try:
            index, count = (int(part) for part in text.split("/"))
        except ValueError:
            index = count = -1
        if not 0 <= index < count:
            raise InputError(f"--share needs INDEX/COUNT with the index below the count, got {text!r}.")
        return cls(index, count)

    @classmethod
    def of_launcher(cls) -> Shard | None:
        """What `accelerate launch` or `torchrun` has given this process; None without one."""
        if "RANK" not in os.environ:
            return None
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))

    def of(self, items: Sequence[Item]) -> list[Item]:
        return list(items[self.index :: self.count])


def in_processes(command: Sequence[str], count: int) -> None:
    """Run `python -m training COMMAND --share I/COUNT` for all shares at once, on equal parts of the cores.

    Raises InputError when one of them fails; the others are stopped then, as they are on Ctrl-C and when
    this process is killed. What was done is kept, so that the same command goes on from there.
    """
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), STARTED_BY: str(os.getpid())}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "training", *command, "--share", f"{index}/{count}"],
            stdin=subprocess.PIPE,  # ends when this process does, which `follow_starter` waits for
            env=environment,
        )
        for index in range(count)
    ]
    with ThreadPoolExecutor(count) as pool:
        ends = {pool.submit(process.wait): process for process in running}
        try:
            failed = next((ends[end].args[-1] for end in as_completed(ends) if end.result() != 0), None)
        finally:
            for process in running:
                process.terminate()
            for end in wait(ends, timeout=SECONDS_TO_END).not_done:
                ends[end].kill()
    if failed:
        raise InputError(f"The share {failed!s} of this stage failed; its message stands above.")


def follow_starter() -> None:
    """In a process that `in_processes` has started: end with the one that did, even if it was killed."""
    if STARTED_BY in os.environ:

        def follow() -> None:
            while os.read(0, 1):  # until the starter's end of standard input is closed
                pass
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


class _LoadFollowingBar(tqdm):  # type: ignore[type-arg]  # only stubs know its parameter
    """With each step, the number of threads is adapted to what the machine has free."""

    def update(self, n: float | None = 1) -> bool | None:
        follow_load()
        return super().update(n)


def progress_bar(
    items: Iterable[Item] | None, label: str, total: int | None = None, start: int = 0
) -> tqdm[Item]:
    """A progress bar that also reads well in a log file; workers of a pool have none, as theirs would mix.

    Each `update` lets the number of threads follow the load of the machine.
    """
    return _LoadFollowingBar(
        items,
        desc=label,
        total=total,
        initial=start,
        mininterval=2.0,
        dynamic_ncols=True,
        disable=parent_process() is not None,
    )
