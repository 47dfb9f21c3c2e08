"""An assessment beside busy processes, in one run: `python benchmarks/busy.py`.

For three aspects, alone and beside one, two and four processes that do nothing but count. With
OMP_NUM_THREADS set, the number of threads is fixed, which shows what following the load is worth.
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
from pathlib import Path

import psutil
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from m3agiqa import Assessor  # noqa: E402
from m3agiqa.images import open_image  # noqa: E402

PICTURES = sorted((ROOT / "annotation" / "ui" / "assess" / "examples").glob("*.webp"))
PROMPT = "a lighthouse on a cliff at dusk, calm sea, oil painting"
MAX_TIMES = {0: 1.0, 1: 2.0, 2: 3.0, 4: 5.0}
"""By the number of busy processes: how many times as long as alone an assessment may take."""
SETTLE_SECONDS = 1.0


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that take all they can get; they end with the block."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="assessments of each kind")
    args = parser.parse_args()
    assessor = Assessor.from_pretrained("nano")
    images = [open_image(path).resize((512, 512)) for path in PICTURES]
    turned = iter(range(10_000))

    def next_image() -> Image.Image:
        number = next(turned)  # another one each time, as the latest ones are remembered
        return images[number % len(images)].rotate(1 + number // len(images))

    seconds_of(assessor, next_image())  # to warm up
    fixed = os.environ.get("OMP_NUM_THREADS")
    print(f"{assessor.card.title}, {os.cpu_count()} cores, threads {fixed or 'follow the load'}")
    print(f"{psutil.cpu_percent(1):.0f} % of the processor was in use by others before")
    alone, held = 0.0, True
    for count, limit in MAX_TIMES.items():
        with busy_processes(count):
            taken = [seconds_of(assessor, next_image()) for _ in range(args.runs)]
        median = statistics.median(taken)
        alone = alone or median
        held = held and median <= limit * alone
        print(
            f"beside {count} busy: {median:6.2f} s median, {max(taken):6.2f} s slowest, "
            f"{median / alone:4.1f} times alone (at most {limit:g}), "
            f"{torch.get_num_threads()} threads at last",
            flush=True,
        )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
