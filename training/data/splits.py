"""Which samples are for training, validation and test: drawn by image, prompt or generator, or published."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from m3agiqa.errors import InputError
from m3agiqa.grouping import connected_groups, fold_prompt
from m3agiqa.json_lines import read_json_lines
from m3agiqa.samples import Sample
from m3agiqa.tables import TABLE_SUFFIXES, read_table

SPLIT_PARTS = ("train", "test", "validation")
"""In the order of the paper's ratios."""
HELD_OUT = ("train", "validation", "test")
"""The further back, the less may be learned from it."""
OTHER_WORDS = {"training": "train", "testing": "test", "val": "validation", "valid": "validation"}
LIST_FILES = ("train.txt", "test.txt", "validation.txt", "val.txt")


@dataclass(frozen=True)
class SplitConfig:
    """How samples are split into parts."""

    by: Literal["given", "image", "prompt", "generator"] = "given"
    """What stays in one part: given leaves the parts as the data has them, image draws each image by itself
    (as the paper does), prompt and generator keep their images together. All samples of one image file are
    drawn together, and so are prompts that share an image."""
    ratios: tuple[float, float, float] = (4.0, 1.0, 0.0)
    """Train : test : validation, in the paper's order; a part with 0 is not drawn."""
    seed: int = 0
    """Of the draw, which depends on it and on the samples' ids alone."""
    file: Path | None = None
    """A published split: CSV or JSON Lines with `id` or `image` and `split`, or a folder with train.txt,
    test.txt and validation.txt. These list ids or images."""
    holdout: float = 0.1
    """Share of the training images set aside for validation where the split has no validation part; 0: none.
    Whole prompts, or generators when drawn by generator; single images when by image."""

    def __post_init__(self) -> None:
        # From a YAML file these come as a list and a text.
        object.__setattr__(self, "ratios", tuple(self.ratios))
        object.__setattr__(self, "file", None if self.file is None else Path(self.file))
        if self.by not in ("given", "image", "prompt", "generator"):
            raise InputError(f"Splits are by given, image, prompt or generator, not by {self.by}.")
        if len(self.ratios) != len(SPLIT_PARTS) or min(self.ratios) < 0 or self.ratios[0] <= 0:
            raise InputError(
                f"The ratios of a split are three numbers (train, test, validation), not {self.ratios}."
            )
        if not 0 <= self.holdout < 1:
            raise InputError(f"The holdout is a share of the training images below 1, not {self.holdout}.")


def part(word: str, place: str) -> str:
    """train, test or validation for a word that means it. Raises InputError naming the place."""
    name = OTHER_WORDS.get(word.strip().lower(), word.strip().lower())
    if name not in SPLIT_PARTS:
        raise InputError(f"{place}: {word!r} is no part of a split. Write train, test or validation.")
    return name


def assign(samples: Sequence[Sample], config: SplitConfig) -> list[Sample]:
    """The samples, in their order, with the `split` that the config gives them. Ids must be unique.

    Raises InputError where there is too little to split, an image is said to be of two generators, or a
    published split does not cover a sample.
    """
    by = config.by if config.file is None else "given"
    if config.file is not None:
        parts = _published(samples, config.file)
    elif by == "given":
        parts = _given(samples, config)
    else:
        parts = _drawn(samples, config.ratios, by, config.seed)
    train = [sample for sample in samples if parts[sample.id] == "train"]
    if config.holdout and train and "validation" not in parts.values():
        parts |= _drawn(train, (1 - config.holdout, 0, config.holdout), by, config.seed)
    return [replace(sample, split=parts[sample.id]) for sample in samples]


def keep_together(samples: Sequence[Sample], marks: Callable[[Sample], Iterable[Hashable]]) -> list[Sample]:
    """The samples, in their order, where those that share a mark are in one part, directly or by a chain.

    That is test if any of them is there, else validation if any is, else train.
    """
    groups = connected_groups(map(marks, samples))
    parts: dict[int, str] = {}
    for sample, group in zip(samples, groups, strict=True):
        parts[group] = max(parts.get(group, "train"), sample.split, key=HELD_OUT.index)
    return [replace(sample, split=parts[group]) for sample, group in zip(samples, groups, strict=True)]


def write_split(samples: Sequence[Sample], path: Path) -> None:
    """Publish a split as CSV: id, file name of the image, part. `SplitConfig.file` reads it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "image", "split"))
        writer.writerows((sample.id, sample.image.name, sample.split) for sample in samples)


def apportion(count: int, ratios: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `count`, as near to the ratios as possible (largest remainder)."""
    exact = [count * ratio / sum(ratios) for ratio in ratios]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(ratios)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


def shuffled(ids: Sequence[str], seed: int) -> list[str]:
    """The ids in an order that depends on the seed and on themselves, not on the order they came in."""
    return sorted(ids, key=lambda each: hashlib.sha256(f"{seed} {each}".encode()).digest())


# --- drawn ---------------------------------------------------------------------------------------


def _drawn(samples: Sequence[Sample], ratios: Sequence[float], by: str, seed: int) -> dict[str, str]:
    """Id -> part."""
    if by == "image":
        images = _groups(samples, lambda sample: sample.id, seed)
        order, shares = iter(images), zip(SPLIT_PARTS, apportion(len(images), ratios), strict=True)
        return {each: name for name, share in shares for _ in range(share) for each in next(order)}
    if by == "generator":
        _one_generator_each(samples)
    key, what = (_generator, "generators") if by == "generator" else (_prompt, "prompts")
    groups = _groups(samples, key, seed)
    wanted = [name for name, ratio in zip(SPLIT_PARTS, ratios, strict=True) if ratio]
    if len(groups) < len(wanted):
        raise InputError(
            f"{len(samples):,} samples must be split into {', '.join(wanted)}, but have too few {what} "
            f"({len(groups)}). Change `by`, the ratios or the holdout of the split."
        )
    return _whole_groups(groups, ratios)


def _prompt(sample: Sample) -> str:
    """Samples of one prompt go together; those without a prompt go on their own."""
    text = fold_prompt(sample.prompt)
    return f"prompt {text}" if text else f"id {sample.id}"


def _generator(sample: Sample) -> str:
    if sample.generator is None:
        raise InputError(f"The sample {sample.id} has no generator. Name it, or split by prompt or image.")
    return sample.generator


def _file(sample: Sample) -> str:
    """The image file, however its path is written."""
    return str(sample.image.resolve())


def _one_generator_each(samples: Sequence[Sample]) -> None:
    """Raises InputError for an image that two samples say is of different generators."""
    first: dict[str, Sample] = {}
    for sample in samples:
        other = first.setdefault(_file(sample), sample)
        if _generator(sample) != _generator(other):
            raise InputError(
                f"The image {sample.image} is of the generator {other.generator} in the sample {other.id}, "
                f"but of {sample.generator} in {sample.id}. Correct one, or split by prompt or image."
            )


def _groups(samples: Sequence[Sample], key: Callable[[Sample], str], seed: int) -> list[list[str]]:
    """Ids by group, in seeded order. Samples of one key or of one image are in one group."""
    groups = connected_groups((("key", key(sample)), ("image", _file(sample))) for sample in samples)
    members = defaultdict(list)
    for sample, group in zip(samples, groups, strict=True):
        members[group].append(sample.id)
    by_first = {min(group): group for group in members.values()}
    return [by_first[each] for each in shuffled(list(by_first), seed)]


def _whole_groups(groups: list[list[str]], ratios: Sequence[float]) -> dict[str, str]:
    """Whole groups to each part, as near to the ratios as they get; no wanted part stays empty."""
    shares = apportion(sum(len(group) for group in groups), ratios)
    wanted = sorted(
        (share, name) for share, name, ratio in zip(shares, SPLIT_PARTS, ratios, strict=True) if ratio > 0
    )
    parts: dict[str, str] = {}
    while len(wanted) > 1:  # smaller parts choose first; the largest gets what is left
        share, name = wanted.pop(0)
        chosen = set(_nearest([len(group) for group in groups], share)[: len(groups) - len(wanted)])
        parts |= {each: name for i in chosen for each in groups[i]}
        groups = [group for i, group in enumerate(groups) if i not in chosen]
    return parts | {each: wanted[0][1] for group in groups for each in group}


def _nearest(sizes: Sequence[int], target: int) -> list[int]:
    """Indices of groups, not all of them and at least one, whose sizes add up nearest to the target.

    Where several choices do, earlier groups are chosen.
    """
    reachable = np.zeros(sum(sizes) + 1, dtype=bool)  # sums of some of the groups so far
    reachable[0] = True
    last_group = np.zeros(sum(sizes) + 1, dtype=int)  # by sum: the first group with which it can be reached
    for group, size in enumerate(sizes):
        new = reachable[:-size] & ~reachable[size:]
        last_group[size:][new] = group
        reachable[size:] |= new
        if target and reachable[target]:
            break
    sums = np.flatnonzero(reachable[1:-1]) + 1
    total = int(sums[np.abs(sums - target).argmin()])
    chosen = []
    while total:
        chosen.append(int(last_group[total]))
        total -= sizes[chosen[-1]]
    return chosen[::-1]


# --- given and published -------------------------------------------------------------------------


def _given(samples: Sequence[Sample], config: SplitConfig) -> dict[str, str]:
    """The parts as they are.

    Some data calls its test part validation (the paper's AIGCIQA2023 does): where the ratios want a test
    part and no validation part, and the data has it the other way round, its validation is the test part.
    """
    parts = {sample.id: part(sample.split, f"Sample {sample.id}") for sample in samples}
    given_parts, (_, test, validation) = set(parts.values()), config.ratios
    if given_parts == {"train"} and test:
        raise InputError(
            "The data comes without a split: all samples are for training. "
            "Split it by image, prompt or generator, or give a split file."
        )
    if "validation" in given_parts and "test" not in given_parts and test and not validation:
        return {each: "test" if name == "validation" else name for each, name in parts.items()}
    return parts


def _published(samples: Sequence[Sample], path: Path) -> dict[str, str]:
    """Id -> part, found by id or else by the image's file name."""
    ids: dict[str, str] = {}
    images: dict[str, str | None] = {}
    for place, each, image, name in _lists(path) if path.is_dir() else _listed(path):
        if each and ids.setdefault(each, name) != name:
            raise InputError(f"{place}: {each} is in {name}, but was in {ids[each]} before.")
        if image and images.setdefault(image, name) != name:
            images[image] = None  # several images of this name; only ids tell them apart
    parts = {sample.id: ids.get(sample.id) or images.get(sample.image.name) for sample in samples}
    missing = [each for each, name in parts.items() if name is None]
    if missing:
        raise InputError(
            f"{path} does not say, or says twice, in which part {len(missing):,} of {len(samples):,} samples "
            f"are; the first is {missing[0]}."
        )
    return {each: name for each, name in parts.items() if name}


def _listed(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Place, id, file name of the image (one of them may be empty) and part of each row."""
    if path.suffix.lower() in TABLE_SUFFIXES:
        table = read_table(path).select(("id", "image", "split"), needed=())
        rows = [(row.place, row.cells) for row in table.sound_rows()]
    else:
        rows = [(f"{path}, line {number}", row) for number, row in read_json_lines(path)]
    for place, row in rows:
        cells = row if isinstance(row, dict) else {}
        each, image = cells.get("id"), cells.get("image") or cells.get("name")
        if not (each or image) or not cells.get("split"):
            raise InputError(f"{place} needs id or image, and split.")
        yield place, str(each or ""), Path(str(image or "")).name, part(str(cells["split"]), place)


def _lists(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """The same for lists, whose lines may be ids or images."""
    there = [folder / name for name in LIST_FILES if (folder / name).is_file()]
    if not there:
        raise InputError(f"{folder} has none of {', '.join(LIST_FILES)}.")
    for path in there:
        name = part(path.stem, str(path))
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Cannot read {path} as text: {error}.") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path}, line {number}", line.strip(), Path(line.strip()).name, name
