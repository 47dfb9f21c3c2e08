"""AIGCIQA2023 (Wang et al., arXiv 2307.00211): 2,400 images with all three aspects on [0, 100].

Layouts, known from documentation, from public code that reads them and (order of images) from the published
conversations of the paper's authors, not from the files themselves:
- The release: `Image/allimg/0.png` to `2399.png`, and `DATA/MOS/mosz1.mat` (quality), `mosz2.mat`
  (authenticity), `mosz3.mat` (correspondence), each with a variable `MOSz` of 2,400 z-scores that were
  rescaled to [0, 100]. Six models drew each of 100 prompts four times; image n is of model n // 400 and
  prompt n % 400 // 4. The prompts are in `AIGCIQA2023_Prompts` (.xlsx without a header, prompts in the third
  column; or .csv with a column `prompt`) or in a .txt with one a line. Without such a file, the authors'
  conversation files in the folder do.
- One table: `data.csv` (name, prompt, mos_quality, mos_authenticity, mos_correspondence), images in a folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample
from m3agiqa.tables import read_records
from training.data.checks import ImageFinder, LocatedSample
from training.data.conversations import cited_prompt, read_conversations
from training.data.csv_table import table_entries

MOS_SCALE = MosScale(0.0, 100.0)
IMAGE_FOLDERS = ("Image/allimg", "allimg", "images", "image", "Image", "")
SCORE_FILES = {
    Aspect.QUALITY: "mosz1.mat",
    Aspect.AUTHENTICITY: "mosz2.mat",
    Aspect.CORRESPONDENCE: "mosz3.mat",
}
SCORE_FOLDERS = ("DATA/MOS", "MOS", "")
PROMPT_FOLDERS = ("", "DATA", "DATA/MOS", "MOS")
N_MODELS, IMAGES_PER_PROMPT = 6, 4  # each model drew each prompt so often


def aigciqa2023_entries(path: Path, images: ImageFinder, scale: MosScale) -> Iterator[LocatedSample]:
    """Samples of the release (a folder) or of one table (`data.csv` or its folder).

    The release does not name the models with the scores; they are called `model 1` to `model 6`. Raises
    InputError naming file and row.
    """
    table = path / "data.csv" if path.is_dir() else path
    if table.is_file():
        return table_entries(table, images, scale, generator=_generator)
    return _release_entries(path, images)


def _release_entries(folder: Path, images: ImageFinder) -> Iterator[LocatedSample]:
    files = {aspect: _score_file(folder, name) for aspect, name in SCORE_FILES.items()}
    scores = {aspect: _scores(file) for aspect, file in files.items()}
    count = len(scores[Aspect.QUALITY])
    for aspect, values in scores.items():
        if len(values) != count:
            raise InputError(
                f"{files[aspect]} has {len(values):,} scores, {files[Aspect.QUALITY]} {count:,}."
            )
    for number, prompt in enumerate(_prompts(folder, count)):
        sample = Sample(
            id=f"{number}.png",
            image=images.path(f"{number}.png"),
            prompt=prompt,
            mos={aspect: float(values[number]) for aspect, values in scores.items()},
            generator=f"model {number // (count // N_MODELS) + 1}",
        )
        yield LocatedSample(f"{files[Aspect.QUALITY].parent}, score {number + 1}", sample)


def _score_file(folder: Path, name: str) -> Path:
    for within in SCORE_FOLDERS:
        if (folder / within / name).is_file():
            return folder / within / name
    raise InputError(
        f"{folder} has neither {SCORE_FOLDERS[0]}/{name}, as the release of AIGCIQA2023 has, nor data.csv "
        "(name, prompt, mos_quality, mos_authenticity, mos_correspondence)."
    )


def _scores(path: Path) -> np.ndarray:
    """Scores [N] of a MATLAB file, from its variable MOSz."""
    try:
        values = loadmat(path, variable_names=["MOSz"]).get("MOSz")
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise InputError(f"{path} cannot be read as a MATLAB file: {error}") from error
    if values is None or not np.issubdtype(values.dtype, np.number) or not values.size:
        raise InputError(f"{path} has no numbers in a variable MOSz.")
    return values.astype(float).ravel()


def _prompts(folder: Path, count: int) -> list[str]:
    """The prompt of each image."""
    file = _prompt_file(folder)
    if file is None:
        return _conversation_prompts(folder, count)
    prompts = _listed_prompts(file)
    expected = N_MODELS * IMAGES_PER_PROMPT * len(prompts)
    if count != expected:
        raise InputError(
            f"{file} has {len(prompts)} prompts and there are {count:,} scores; {N_MODELS} models with "
            f"{IMAGES_PER_PROMPT} images of each prompt would make {expected:,}."
        )
    return [prompt for prompt in prompts for _ in range(IMAGES_PER_PROMPT)] * N_MODELS


def _prompt_file(folder: Path) -> Path | None:
    for suffix in (".csv", ".xlsx", ".txt"):
        for within in PROMPT_FOLDERS:
            for file in sorted((folder / within).glob("*")):
                if "prompt" in file.stem.lower() and file.suffix.lower() == suffix:
                    return file
    return None


def _listed_prompts(file: Path) -> list[str]:
    if file.suffix.lower() == ".txt":
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Cannot read {file} as text: {error}.") from error
        return [line.strip() for line in lines if line.strip()]
    records, _ = read_records(file.read_bytes(), str(file), short_rows=True)
    names = [cell.strip().lower() for cell in records[0].cells] if records else []
    column, records = (names.index("prompt"), records[1:]) if "prompt" in names else (2, records)
    for record in records:
        if record.problem or not "".join(record.cells[column : column + 1]).strip():
            lack = record.problem or f"There is no prompt in column {column + 1}."
            raise InputError(f"{file}, line {record.line}: {lack}")
    return [record.cells[column].strip() for record in records]


def _conversation_prompts(folder: Path, count: int) -> list[str]:
    cited: dict[str, str] = {}
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
        for _, row in read_conversations(file):
            asked = str(row["conversations"][0]["content"])
            prompt = next((text for aspect in Aspect if (text := cited_prompt(asked, aspect))), None)
            if prompt:
                cited[Path(str(row["image"])).name] = prompt
    names = [f"{number}.png" for number in range(count)]
    missing = [name for name in names if name not in cited]
    if missing:
        raise InputError(
            f"{folder} has no prompts for {len(missing):,} of {count:,} images (the first is {missing[0]}). "
            "Put AIGCIQA2023_Prompts.xlsx or .csv (column prompt) there, or prompts.txt with one a line."
        )
    return [cited[name] for name in names]


def _generator(name: str) -> str | None:
    """Of an image of the whole set, whose number tells its model."""
    stem = Path(name).stem
    return f"model {int(stem) // 400 + 1}" if stem.isdecimal() and int(stem) < 2400 else None
