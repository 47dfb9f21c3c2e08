"""PyTorch's threads follow what other processes leave of the processor, and what a container is allowed.

Its threads wait for each other in loops that keep a core busy: with more threads than free cores each step
takes as long as the others are interrupted, which is many times as long as with one thread.
"""

from __future__ import annotations

import math
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from m3agiqa.control_groups import CONTROL_GROUPS, OWN_GROUPS, own_groups

FIXED_BY = "OMP_NUM_THREADS"
"""With this environment variable the number of threads is what it says, however busy the machine is."""
INTERVAL_SECONDS = 0.5  # between two looks while the model is at work
MAX_AGE_SECONDS = 5.0  # of the look before, from which on the load is measured anew
SAMPLE_SECONDS = 0.05  # for which it is measured then
CPU_FACTS = Path("/proc/cpuinfo")  # of Linux
CORE_TOLERANCE = 0.4  # cores that others use, or that counters are wrong by, without costing a thread


def sum_alike() -> None:
    """Matrix products of 32 bits add up in one order, whatever the number of threads and where tensors lie.

    Of Intel's library, on Intel's processors alone: on others this would choose its slowest kernels. To be
    called before the first product.
    """
    facts = CPU_FACTS.read_text() if CPU_FACTS.exists() else ""
    if "GenuineIntel" in platform.processor() + facts:
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


sum_alike()


@dataclass(frozen=True)
class CpuTimes:
    """Counters in seconds, each of which means something in comparison with an earlier one only."""

    now: float
    others: float
    """Used by other processes, on the cores that this one may run on."""
    by_group: Mapping[Path, float]
    """Used by other processes of each control group with a limit."""


def cpu_times() -> CpuTimes:
    """As they are now."""
    now, own = time.monotonic(), time.process_time()
    cores = psutil.cpu_times(percpu=True)
    usable = _usable_cores(len(cores))
    idle = sum(cores[i].idle + getattr(cores[i], "iowait", 0.0) for i in usable if i < len(cores))
    groups = {folder: used - own for folder, used in _used_by_groups().items()}
    return CpuTimes(now, len(usable) * now - idle - own, groups)


def group_limits(groups: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS) -> dict[Path, float]:
    """Cores that each limit of Linux' control groups allows all of its processes together."""
    limits = {}
    for version, folder in own_groups("cpu", groups, own):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # without a limit it is no number, or -1
                limits[folder] = int(quota) / int(period)
        except (OSError, ValueError):
            continue
    return limits


def _used_by_groups() -> dict[Path, float]:
    """Seconds; for groups of version 1 they are not known, nor needed where these have no limit."""
    used = {}
    for folder in group_limits():
        try:
            facts = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
            used[folder] = int(facts["usage_usec"]) / 1e6
        except (OSError, ValueError, KeyError):
            continue
    return used


def _usable_cores(count: int) -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(count))


def free_threads(before: CpuTimes, after: CpuTimes, cores: int, limits: Mapping[Path, float]) -> int:
    """How many threads have a core of their own, as far as can be told from two looks; at least 1."""
    seconds = after.now - before.now
    free = cores - (after.others - before.others) / seconds
    for folder, limit in limits.items():
        others = after.by_group.get(folder, 0.0) - before.by_group.get(folder, 0.0)
        free = min(free, limit - max(others, 0.0) / seconds)
    return max(1, math.floor(free + CORE_TOLERANCE))


class ThreadGovernor:
    """Sets the number of PyTorch's threads for the calling thread; one for the whole process.

    Never more than there were at first: that is PyTorch's own choice, or what `torch.set_num_threads` was
    called with before.
    """

    def __init__(
        self, look: Callable[[], CpuTimes] = cpu_times, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._look, self._sleep = look, sleep
        self._lock = threading.Lock()
        self._last: CpuTimes | None = None
        self._most = self._free = 0

    def follow(self) -> None:
        """Look at the machine, if the last look is some time ago."""
        if FIXED_BY in os.environ:
            return
        with self._lock:
            self._update()
        if torch.get_num_threads() != self._free:
            torch.set_num_threads(self._free)

    def _update(self) -> None:
        if not self._most:
            self._most = self._free = torch.get_num_threads()
        if self._most == 1:
            return
        age = math.inf if self._last is None else time.monotonic() - self._last.now
        if age < INTERVAL_SECONDS:
            return
        if self._last is None or age > MAX_AGE_SECONDS:
            self._last = self._look()
            self._sleep(SAMPLE_SECONDS)
        now, cores = self._look(), len(_usable_cores(psutil.cpu_count() or 1))
        self._free = min(self._most, free_threads(self._last, now, cores, group_limits()))
        self._last = now


follow_load = ThreadGovernor().follow
"""To be called before each piece of work, by the thread that does it."""
