"""Threads follow the load: counters of a pretended machine, and limits of pretended containers."""

import time
from pathlib import Path

import pytest
import torch

from m3agiqa import threads
from m3agiqa.threads import CpuTimes, ThreadGovernor, free_threads, group_limits

GROUP = Path("/group")


@pytest.mark.parametrize(
    ("cores", "others", "limit", "in_group", "expected"),
    [
        (2, 0.0, None, 0, 2),
        (2, 0.3, None, 0, 2),  # a desktop that does this and that
        (2, 0.67, None, 0, 1),  # one busy process beside two threads that spin
        (2, 2.0, None, 0, 1),
        (16, 3.1, None, 0, 13),
        (16, 0.0, 2.0, 0, 2),
        (16, 0.0, 4.0, 1.0, 3),  # another process in the same container
        (16, 15.0, 4.0, 0, 1),
        (16, 0.0, 0.5, 0, 1),
    ],
)
def test_threads_take_the_cores_that_are_free(
    cores: int, others: float, limit: float | None, in_group: float, expected: int
) -> None:
    before = CpuTimes(100.0, 7.0, {GROUP: 3.0})
    after = CpuTimes(102.0, 7.0 + 2 * others, {GROUP: 3.0 + 2 * in_group})
    assert free_threads(before, after, cores, {} if limit is None else {GROUP: limit}) == expected


def test_limits_of_containers_are_read(tmp_path: Path) -> None:
    groups, own = tmp_path / "groups", tmp_path / "own"
    for name, text in {
        "pod/cpu.max": "300000 100000",
        "pod/app/cpu.max": "max 100000",
        "cpu/cpu.cfs_quota_us": "50000",
        "cpu/cpu.cfs_period_us": "100000",
    }.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(f"{text}\n")
    own.write_text("0::/pod/app\n")
    assert group_limits(groups, own) == {groups / "pod": 3.0}
    own.write_text("4:cpu,cpuacct:/on/the/host\n")
    assert group_limits(groups, own) == {groups / "cpu": 0.5}


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the number of threads, two at first, is set to since."""
    numbers = [2]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(threads, "_usable_cores", lambda count: {0, 1})
    monkeypatch.setattr(threads, "group_limits", dict)
    return numbers


def test_the_number_follows_the_load(two_threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    clock, others, waits = [0.0], [0.0], []
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock[0])

    def pass_time(seconds: float, busy: float) -> None:
        clock[0] += seconds
        others[0] += busy * seconds

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        pass_time(seconds, 0.9)

    governor = ThreadGovernor(lambda: CpuTimes(clock[0], others[0], {}), sleep)
    governor.follow()  # a busy process is there from the beginning
    assert two_threads == [2, 1] and len(waits) == 1
    pass_time(0.2, 0)
    governor.follow()
    assert two_threads == [2, 1], "too soon to look again"
    pass_time(1, 0)
    governor.follow()
    assert two_threads == [2, 1, 2] and len(waits) == 1, "the time since the last look is enough"
    pass_time(3600, 0)
    governor.follow()
    assert two_threads == [2, 1, 2, 1] and len(waits) == 2, "an hour's mean says nothing of now"


def test_an_environment_variable_fixes_the_number(
    two_threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    ThreadGovernor(lambda: pytest.fail("the load does not matter")).follow()
    assert two_threads == [2]


def test_counters_tell_own_work_from_that_of_others() -> None:
    """Whatever the load of the machine: both together are no more than its cores."""
    before, own = threads.cpu_times(), time.process_time()
    while time.process_time() < own + 0.2:
        pass
    after = threads.cpu_times()
    seconds = after.now - before.now
    others = (after.others - before.others) / seconds
    cores = len(threads._usable_cores(threads.psutil.cpu_count()))
    assert -0.2 <= others <= cores - 0.2 / seconds + 0.2
