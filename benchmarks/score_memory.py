"""Memory of `score` as it goes on: `python benchmarks/score_memory.py --rows 2000`.

Small drawn images, each another one, through the command's own loop into a CSV. Two tokens a description
instead of up to 96 save most of the time; `--tokens 96` is the command as it is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from m3agiqa import Assessor  # noqa: E402
from m3agiqa.backbones.nano import model as nano_model  # noqa: E402
from m3agiqa.batch_scoring import ScoreFile, score  # noqa: E402
from m3agiqa.score_inputs import read_rows  # noqa: E402

SIDE = 64  # pixels


def draw(folder: Path, count: int) -> Path:
    """A table of so many images, with a prompt of other words each."""
    gradient = Image.linear_gradient("L").resize((SIDE, SIDE))
    lines = ["image,prompt"]
    for number in range(count):
        shift = gradient.point(lambda value, number=number: (value * 3 + number) % 256)
        Image.merge("RGB", [gradient, shift, gradient.rotate(number)]).save(folder / f"{number}.png")
        lines.append(f"{number}.png,a striped sheet numbered word{number}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return folder / "rows.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=2, help="the longest description")
    parser.add_argument("--every", type=int, default=100, help="rows between two lines")
    args = parser.parse_args()
    nano_model.MAX_NEW_TOKENS = args.tokens
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as name:
        table = draw(Path(name), args.rows)
        assessor = Assessor.from_pretrained("nano")
        started = time.perf_counter()
        with ScoreFile(table.with_name("scores.csv")) as output:
            output.start(assessor.card.title)
            errors = 0
            for done, error in enumerate(score(read_rows(table), output, assessor), 1):
                errors += bool(error)
                if done % args.every == 0 or done == args.rows:
                    resident = process.memory_info().rss / 2**20
                    seconds = time.perf_counter() - started
                    print(f"{done:6} rows {resident:7.0f} MB {seconds:7.0f} s, {errors} errors", flush=True)


if __name__ == "__main__":
    main()
