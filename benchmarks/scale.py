"""`score --engine ray` on this machine: `python benchmarks/scale.py --images 500`.

The same small drawn images in one process, with one worker, and with two workers, of which one is killed
after a third: images per second, and whether all have the same rows. `--workers 2` leaves out the one worker.
Then the memory of the driver, which is the process of the command, for 1,000 and 100,000 rows of one image;
there a stand-in that judges nothing takes the place of the model, which would work in other processes.
Descriptions have two tokens, to save time.
"""

from __future__ import annotations

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
from score_memory import draw

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from m3agiqa import Assessor, InputError  # noqa: E402
from m3agiqa.backbones.nano import model as nano_model  # noqa: E402
from m3agiqa.batch_scoring import ScoreFile, score  # noqa: E402
from m3agiqa.ray_scoring import score_on_ray  # noqa: E402
from m3agiqa.score_inputs import read_rows  # noqa: E402
from m3agiqa.score_parts import PartedScores  # noqa: E402

MEMORY_ROWS = (1_000, 100_000)


def nano(tokens: int) -> Assessor:
    nano_model.MAX_NEW_TOKENS = tokens
    return Assessor.from_pretrained("nano")


def stand_in() -> Any:
    card = SimpleNamespace(title="stand-in", learned_from="nobody")
    return SimpleNamespace(card=card, assess_all=lambda subjects: [InputError("Not judged.")] * len(subjects))


class Watch:
    """Notes when the first and the last rows were done; kills a worker after a third, if wanted."""

    def __init__(self, kill: bool = False) -> None:
        self.kill = kill
        self.first = self.last = (0.0, 0)

    def __call__(self, done: int, total: int) -> None:
        if done > self.last[1]:
            self.last = time.perf_counter(), done
            self.first = self.first if self.first[1] else self.last
        if self.kill and done > total / 3:
            workers = [
                p
                for p in psutil.Process().children(recursive=True)
                if "PartScorer" in p.name() + "".join(p.cmdline())
            ]
            print(f"Killing one of {len(workers)} workers after {done} of {total} rows.", flush=True)
            workers[0].kill()
            self.kill = False

    def rate(self) -> float:
        """Images per second, once the models are loaded."""
        return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])


def in_one_process(table: Path, tokens: int) -> list[dict[str, str]]:
    assessor, watch = nano(tokens), Watch()
    out = table.with_name("scores.csv")
    with ScoreFile(out) as output:
        output.start(assessor.card.title)
        for done, _ in enumerate(score(read_rows(table), output, assessor), 1):
            watch(done, done)
    print(f"one process: {watch.rate():.2f} images/s", flush=True)
    return rows_of(out)


def on_workers(table: Path, tokens: int, workers: int, part_size: int, kill: bool) -> list[dict[str, str]]:
    out, watch, started = table.with_name(f"parts-{workers}"), Watch(kill), time.perf_counter()
    output = PartedScores(out, ".csv", part_size)
    score_on_ray(read_rows(table), output, partial(nano, tokens), watch, workers=workers)
    seconds = time.perf_counter() - started
    print(f"{workers} worker(s): {watch.rate():.2f} images/s, in all {seconds:.0f} s", flush=True)
    return [row for part in sorted(out.glob("part-*")) for row in rows_of(part)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def driver_memory(rows: int) -> None:
    """Of this process, which is to be a new one."""
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name), 1)
        table = Path(name, "rows.csv")
        with table.open("w") as file:
            file.write("image,prompt\n")
            file.writelines(f"0.png,a striped sheet numbered {number}\n" for number in range(rows))
        output, started = PartedScores(Path(name, "parts")), time.perf_counter()
        score_on_ray(read_rows(table), output, stand_in, Watch(), workers=1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"driver, {rows:,} rows: {peak:.0f} MB, {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=2, help="the longest description")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of several one is killed")
    parser.add_argument("--memory-rows", type=int, nargs="*", default=MEMORY_ROWS, help="numbers of rows")
    parser.add_argument("--part-size", type=int, default=64)
    parser.add_argument("--driver-memory", type=int, metavar="ROWS", help="measure nothing but this")
    args = parser.parse_args()
    if args.driver_memory:
        driver_memory(args.driver_memory)
        return
    with tempfile.TemporaryDirectory() as name:
        table = draw(Path(name), args.images)
        alone = in_one_process(table, args.tokens)
        for workers in args.workers:
            rows = on_workers(table, args.tokens, workers, args.part_size, kill=workers > 1)
            print(f"  the same {len(rows)} rows as one process: {rows == alone}", flush=True)
    for rows in args.memory_rows:
        subprocess.run([sys.executable, __file__, "--driver-memory", str(rows)], check=True)


if __name__ == "__main__":
    main()
