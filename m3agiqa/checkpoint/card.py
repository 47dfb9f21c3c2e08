"""Checkpoints: a folder of safetensors files and one small JSON that says what they are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.checkpoint.calibration import Calibration
from m3agiqa.errors import InputError, WeightsError
from m3agiqa.files import sha256
from m3agiqa.predictor.config import PredictorConfig

CARD_FILE = "checkpoint.json"
SHIPPED_FOLDER = Path(__file__).parents[1] / "checkpoints"


@dataclass(frozen=True)
class Card:
    """What a checkpoint is and what it learned from; travels with every result."""

    name: str
    version: str
    backbone: str
    learned_from: str
    """For people, as it stands after "Learned from": which data, and whose scores these are."""
    fingerprint: str
    """SHA-256 of the training data (training.data.fingerprint)."""
    scales: dict[Aspect, MosScale]
    predictors: dict[Aspect, PredictorConfig]
    metrics: dict[str, object] = field(default_factory=dict)
    seeds: int = 1
    """Predictors of each aspect, trained with as many seeds. The first one's MOS counts; how far all of them
    spread says how sure it is."""
    calibration: dict[Aspect, Calibration] = field(default_factory=dict)
    """Intervals and percentiles; none in checkpoints of before."""
    digest: str = field(default="", compare=False)
    """SHA-256 of the card's file, and so of all the files that it names; "" for one that is in no folder."""

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"


def predictor_file(aspect: Aspect, number: int = 0) -> str:
    """Name of an aspect's predictor within a checkpoint folder; from 1 on, those of other seeds."""
    return f"predictor-{aspect}-{number}.safetensors" if number else f"predictor-{aspect}.safetensors"


def write_card(card: Card, folder: Path) -> None:
    """Write the card with the SHA-256 of every other file in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD_FILE)
    hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    facts = {**asdict(card), "files": hashes}
    del facts["digest"]
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")


def shipped() -> list[str]:
    """Names of the checkpoints that come with this package."""
    return sorted(path.parent.name for path in SHIPPED_FOLDER.glob(f"*/{CARD_FILE}"))


def local_checkpoint(name_or_path: str | Path) -> Path | None:
    """The folder of a shipped checkpoint's name, or of a local path; None if there is no checkpoint."""
    folders = (SHIPPED_FOLDER / str(name_or_path), Path(name_or_path))
    return next((folder for folder in folders if (folder / CARD_FILE).is_file()), None)


def find_checkpoint(name_or_path: str | Path) -> Path:
    """As local_checkpoint, but raises InputError if there is none."""
    folder = local_checkpoint(name_or_path)
    if folder is None:
        known = ", ".join(shipped()) or "(none is shipped)"
        raise InputError(
            f"There is no model {str(name_or_path)!r}. Give one of {known}, or a folder with a {CARD_FILE}."
        )
    return folder


def read_card(folder: Path, *, verify: bool = True) -> Card:
    """Read a card and verify every file it names. Raises WeightsError naming the file that is wrong.

    Without `verify` the card alone is read, which is enough to list a checkpoint.
    """
    path = folder / CARD_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        files = facts.pop("files")
        seeds = range(facts.get("seeds", 1))
        named = {predictor_file(Aspect(aspect), n) for aspect in facts["predictors"] for n in seeds}
        for name in sorted(named - files.keys()):
            raise ValueError(f"it does not list {name}")
        for name, expected in files.items() if verify else ():
            _verify(folder / name, expected)
        facts["scales"] = {Aspect(k): MosScale(**v) for k, v in facts["scales"].items()}
        facts["predictors"] = {Aspect(k): PredictorConfig(**v) for k, v in facts["predictors"].items()}
        facts["calibration"] = {
            Aspect(k): Calibration(**{**v, "quantiles": tuple(v["quantiles"])})
            for k, v in facts.get("calibration", {}).items()
        }
        if facts["scales"].keys() != facts["predictors"].keys():
            raise ValueError("each predictor needs its scale")
        return Card(**facts, digest=sha256(path))
    except OSError as error:
        raise WeightsError(f"{error.filename} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged or of another version: {error}. Install it anew.") from error


def _verify(path: Path, expected: str) -> None:
    if not path.is_file():
        raise WeightsError(f"The weight file {path} is missing. Install the model anew.")
    if sha256(path) != expected:
        raise WeightsError(
            f"The weight file {path} is damaged or has been changed (its SHA-256 is not the one in "
            f"{CARD_FILE}). Install the model anew."
        )
