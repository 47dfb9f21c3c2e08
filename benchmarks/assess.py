"""Time and memory of one assessment with the default model: `python benchmarks/assess.py`."""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from m3agiqa import Assessor, DescriptionDelta  # noqa: E402

PICTURES = sorted((ROOT / "annotation" / "examples").glob("*.webp"))
PROMPT = "a lighthouse on a cliff at dusk, calm sea, oil painting"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano", help="shipped name or checkpoint folder")
    parser.add_argument("--runs", type=int, default=5, help="assessments to time, after one to warm up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    started = time.perf_counter()
    assessor = Assessor.from_pretrained(args.model)
    loading = time.perf_counter() - started
    first, whole = [], []
    for run in range(args.runs + 1):
        image = Image.open(PICTURES[run % len(PICTURES)]).resize((512, 512))
        started = time.perf_counter()
        words = None
        for event in assessor.stream(image, PROMPT):
            if words is None and isinstance(event, DescriptionDelta):
                words = time.perf_counter() - started
        if run:
            first.append(words)
            whole.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    print(f"{assessor.card.title}, {args.threads} threads, {args.runs} runs, 512 x 512, three aspects")
    print(f"loading           {loading:6.1f} s")
    print(f"first words       {statistics.median(first):6.2f} s median, {max(first):.2f} s slowest")
    print(f"all three done    {statistics.median(whole):6.2f} s median, {max(whole):.2f} s slowest")
    print(f"peak memory       {peak:6.0f} MB")


if __name__ == "__main__":
    main()
