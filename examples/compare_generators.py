"""Which of two image generators is better in what, and by how much: a check to run every night.

`python examples/compare_generators.py yesterday/ today/ > report.md` judges two folders with images of the
same prompts, prints a report in Markdown, and exits with 1 if the second folder is worse in anything. Prompts
stand in .txt files of the images' names or in the images; images without a prompt are matched by their names.
There may be several images of a prompt: their mean counts.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3agiqa import Aspect, Assessment, Assessor, InputError, M3AgiqaError
from m3agiqa.batch_scoring import BATCH_SIZE
from m3agiqa.metrics import bootstrap_interval
from m3agiqa.score_inputs import read_rows

FEW_PROMPTS = 20  # below, the interval of a bootstrap is too narrow
LARGEST_DROPS = 5  # prompts that the report names for each aspect

MosByPrompt = dict[str, dict[Aspect, float]]
"""Mean MOS of the images of a prompt; the key is a file name where there is no prompt."""


@dataclass(frozen=True)
class Shift:
    """Mean MOS of one aspect in both folders, over the prompts that both have."""

    aspect: Aspect
    prompts: Sequence[str]
    before: np.ndarray
    """[prompts]"""
    after: np.ndarray

    @property
    def mean(self) -> float:
        """Of the second folder's MOS less the first's."""
        return float(np.mean(self.after - self.before))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean, by paired bootstrap: prompts are drawn, each with both folders."""
        return bootstrap_interval(lambda a, b: float(np.mean(np.subtract(a, b))), self.after, self.before)

    @property
    def verdict(self) -> str:
        """About the second folder."""
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def judged(assessor: Assessor, folder: Path) -> tuple[MosByPrompt, list[str]]:
    """Scores of a folder's images, and a sentence on each that cannot be judged. Raises InputError."""
    rows = [row.complete() for row in read_rows(folder)]
    left_out = [f"{folder / row.image}: {row.error}" for row in rows if row.error]
    rows = [row for row in rows if not row.error]
    mos: dict[str, dict[Aspect, list[float]]] = defaultdict(lambda: defaultdict(list))
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        answers = assessor.assess_all([(row.source(), row.prompt) for row in batch])
        for row, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Assessment):
                for aspect, result in answer.aspects.items():
                    mos[answer.prompt or Path(row.image).stem][aspect].append(result.mos)
            else:
                left_out.append(f"{folder / row.image}: {answer}")
    means = {key: {a: float(np.mean(v)) for a, v in by_aspect.items()} for key, by_aspect in mos.items()}
    return means, left_out


def shifts(before: MosByPrompt, after: MosByPrompt) -> list[Shift]:
    """One for each aspect that is judged in both folders for two prompts at least."""
    compared = []
    for aspect in Aspect:
        shared = [key for key in before if aspect in before[key] and aspect in after.get(key, {})]
        if len(shared) > 1:
            mos = ([folder[key][aspect] for key in shared] for folder in (before, after))
            compared.append(Shift(aspect, shared, *map(np.array, mos)))
    return compared


def report(folders: Sequence[Path], compared: Sequence[Shift], notes: Sequence[str]) -> str:
    """In Markdown."""
    lines = [f"# {folders[1]} against {folders[0]}", ""]
    lines += ["| aspect | prompts | before | after | change | 95 % interval | after is |", "|---" * 7 + "|"]
    for each in compared:
        low, high = each.interval
        cells = [each.aspect, len(each.prompts), f"{each.before.mean():.2f}", f"{each.after.mean():.2f}"]
        cells += [f"{each.mean:+.2f}", f"{low:+.2f} to {high:+.2f}", each.verdict]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for each in compared:
        change = each.after - each.before
        drops = [index for index in np.argsort(change)[:LARGEST_DROPS] if change[index] < 0]
        if drops:
            lines += ["", f"Largest losses in {each.aspect}:", ""]
            lines += [f"- {change[index]:+.2f}: {' '.join(each.prompts[index].split())}" for index in drops]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def compare(assessor: Assessor, folders: Sequence[Path]) -> tuple[str, bool]:
    """The report, and whether the second folder is worse in an aspect. Raises InputError."""
    (before, unread), (after, unread_after) = (judged(assessor, folder) for folder in folders)
    compared = shifts(before, after)
    if not compared:
        raise InputError(f"{folders[0]} and {folders[1]} share fewer than two prompts or file names.")
    notes = [f"Left out: {each}" for each in [*unread, *unread_after]]
    notes += [f"Only in {folders[0]}: {key}" for key in before.keys() - after.keys()]
    notes += [f"Only in {folders[1]}: {key}" for key in after.keys() - before.keys()]
    if any(len(each.prompts) < FEW_PROMPTS for each in compared):
        notes.append(f"Fewer than {FEW_PROMPTS} prompts: the intervals are too narrow.")
    return report(folders, compared, notes), any(each.verdict == "worse" for each in compared)


def main() -> None:
    """Exit code: 0 not worse, 1 worse, 2 wrong input."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path, metavar="FOLDER", help="images of the generator as it was")
    parser.add_argument("after", type=Path, metavar="FOLDER", help="images of the generator as it is")
    parser.add_argument("--model", default="nano", help="as for `m3agiqa assess`")
    args = parser.parse_args()
    try:
        text, worse = compare(Assessor.from_pretrained(args.model), [args.before, args.after])
    except M3AgiqaError as error:
        parser.exit(2, f"{error}\n")
    print(text)
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
