"""Shares are all of the work and none of it twice; a share that fails ends the others."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3agiqa.errors import InputError
from training.parallel import STARTED_BY, Shard, in_processes


@given(st.lists(st.integers()), st.integers(1, 9))
def test_shares_are_a_partition_in_order(items: list[int], count: int) -> None:
    shares = [Shard(index, count).of(items) for index in range(count)]
    dealt = [share.pop(0) for _ in range(len(items)) for share in shares if share][: len(items)]
    assert dealt == items
    lengths = [len(Shard(index, count).of(items)) for index in range(count)]
    assert max(lengths) - min(lengths) <= 1
    assert Shard().of(items) == items


@given(st.integers(0, 99), st.integers(1, 99))
def test_parsing_reads_what_in_processes_writes(index: int, count: int) -> None:
    if index < count:
        assert Shard.parse(f"{index}/{count}") == Shard(index, count)
    else:
        with pytest.raises(InputError, match="index below the count"):
            Shard.parse(f"{index}/{count}")


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "a/b", "1/2/3", "-1/2", "0/0", "1.5/2", "2/2"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--share needs INDEX/COUNT with the index below the count"):
        Shard.parse(text)


def test_a_launchers_share_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert Shard.of_launcher() is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Shard.of_launcher() == Shard(1, 3)


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Has a shell script run instead of Python; its arguments are `-m training COMMAND --share I/COUNT`."""

    def write(lines: str) -> Path:
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\ncd "{tmp_path}"\nindex="${{5%/*}}"\n{lines}\n')
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return tmp_path

    return write


def test_all_shares_are_run_on_parts_of_the_cores(instead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    folder = instead('echo "$* $OMP_NUM_THREADS" > "said-$index"')
    in_processes(["describe"], 3)
    said = [(folder / f"said-{index}").read_text().strip() for index in range(3)]
    assert said == [f"-m training describe --share {index}/3 2" for index in range(3)]


def test_a_failing_share_is_named_and_ends_the_others(instead) -> None:
    folder = instead(
        'if [ "$index" = 1 ]; then while [ ! -e 0 -o ! -e 2 ]; do sleep 0.02; done; exit 2; fi\n'
        'echo $$ > "$index.new"; mv "$index.new" "$index"; exec sleep 60'
    )
    began = time.monotonic()
    with pytest.raises(InputError, match=r"share 1/3 of this stage failed"):
        in_processes(["describe"], 3)
    assert time.monotonic() - began < 20
    for index in (0, 2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((folder / str(index)).read_text()), 0)


def test_a_late_failure_counts_too(instead) -> None:
    instead('[ "$index" = 0 ] && exit 0; sleep 0.3; exit 1')
    with pytest.raises(InputError, match="share 1/2"):
        in_processes(["describe"], 2)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals of POSIX")
def test_ctrl_c_ends_all(instead) -> None:
    folder = instead('echo $$ > "$index.new"; mv "$index.new" "$index"; exec sleep 60')

    def interrupt() -> None:
        while not ((folder / "0").exists() and (folder / "1").exists()):
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        in_processes(["describe"], 2)
    for index in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((folder / str(index)).read_text()), 0)


@pytest.mark.parametrize("killed_early", [True, False])
def test_a_share_ends_with_its_starter(killed_early: bool) -> None:
    """Also if that was killed before the share came to follow it."""
    code = "import sys, time, training.parallel as p; p.follow_starter(); print(flush=True); time.sleep(90)"
    environment = {**os.environ, STARTED_BY: "1" if killed_early else str(os.getpid())}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=pipe, stdout=pipe) as share:
        try:
            if not killed_early:
                assert share.stdout.readline()
                assert share.poll() is None
            share.stdin.close()  # as if this process were no more
            assert share.wait(60) == 1
        finally:
            share.kill()
