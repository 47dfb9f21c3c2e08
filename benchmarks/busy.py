"""An assessment beside busy processes, in one run: `python benchmarks/busy.py`.

For three aspects, alone and beside one, two and four processes that do nothing but count. With
OMP_NUM_THREADS set, the number of threads is fixed, which shows what following the load is worth.
`--pairs 20` measures instead what following costs on an idle machine: each image with PyTorch's own number of
threads and with threads that follow the load, in turn. Pairs that others disturb are done again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from m3agiqa import Assessor  # noqa: E402
from m3agiqa.images import open_image  # noqa: E402
from m3agiqa.threads import FIXED_BY, cpu_times  # noqa: E402

PICTURES = sorted((ROOT / "annotation" / "ui" / "assess" / "examples").glob("*.webp"))
PROMPT = "a lighthouse on a cliff at dusk, calm sea, oil painting"
MAX_TIMES = {0: 1.0, 1: 2.0, 2: 3.0, 4: 5.0}
"""By the number of busy processes: how many times as long as alone an assessment may take."""
MAX_SLOWDOWN = 0.05
"""On an idle machine, by looking at the load and following it."""
MAX_DISTURBANCE = 0.1
"""Cores that other processes may use during a pair that counts."""
SETTLE_SECONDS = 1.0


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """So many processes that take all they can get; they end with the block."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        time.sleep(SETTLE_SECONDS)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def seconds_of(assessor: Assessor, image: Image.Image) -> float:
    started = time.perf_counter()
    assessor.assess(image, PROMPT)
    return time.perf_counter() - started


def slowdown_by_following(assessor: Assessor, images: Iterator[Image.Image], pairs: int) -> float:
    """How much longer an assessment takes when threads follow the load: the median over pairs, as a share.

    Pairs that others disturbed do not count.
    """
    fixed, ratios = torch.get_num_threads(), []
    while len(ratios) < pairs:
        image, seconds, before = next(images), {}, cpu_times()
        for follows in (True, False) if len(ratios) % 2 else (False, True):
            image.putpixel((0, 0), (255 * follows, 0, 0))  # as the latest images are remembered
            if follows:
                os.environ.pop(FIXED_BY, None)
            else:
                os.environ[FIXED_BY] = str(fixed)
                torch.set_num_threads(fixed)
            seconds[follows] = seconds_of(assessor, image)
        after = cpu_times()
        others = (after.others - before.others) / (after.now - before.now)
        if others > MAX_DISTURBANCE:
            time.sleep(SETTLE_SECONDS)
            continue
        ratios.append(seconds[True] / seconds[False])
        print(f"{seconds[False]:.3f} s with {fixed} threads, {seconds[True]:.3f} s following", flush=True)
    os.environ.pop(FIXED_BY, None)
    return statistics.median(ratios) - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="assessments of each kind")
    parser.add_argument("--pairs", type=int, default=0, help="with and without following the load, in turn")
    args = parser.parse_args()
    assessor = Assessor.from_pretrained("nano")
    images = [open_image(path).resize((512, 512)) for path in PICTURES]
    # Another one each time, as the latest ones are remembered.
    turned = (images[number % len(images)].rotate(1 + number // len(images)) for number in count())

    seconds_of(assessor, next(turned))  # to warm up
    fixed = os.environ.get("OMP_NUM_THREADS")
    print(f"{assessor.card.title}, {os.cpu_count()} cores, threads {fixed or 'follow the load'}")
    print(f"{psutil.cpu_percent(1):.0f} % of the processor was in use by others before")
    if args.pairs:
        slowdown = slowdown_by_following(assessor, turned, args.pairs)
        print(f"following the load: {slowdown:+.1%} (at most {MAX_SLOWDOWN:+.0%})")
        return 0 if slowdown <= MAX_SLOWDOWN else 1
    alone, held = 0.0, True
    for neighbours, limit in MAX_TIMES.items():
        with busy_processes(neighbours):
            taken = [seconds_of(assessor, next(turned)) for _ in range(args.runs)]
        median = statistics.median(taken)
        alone = alone or median
        held = held and median <= limit * alone
        print(
            f"beside {neighbours} busy: {median:6.2f} s median, {max(taken):6.2f} s slowest, "
            f"{median / alone:4.1f} times alone (at most {limit:g}), "
            f"{torch.get_num_threads()} threads at last",
            flush=True,
        )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
