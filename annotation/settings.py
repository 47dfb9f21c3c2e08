"""What a server is told by its environment; the one place where the app's variables are read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from m3agiqa.backbones.placement import Quantization
from m3agiqa.checkpoint.revisions import Revision, parse_revision
from m3agiqa.errors import InputError

MOST_ANNOTATORS = 100  # of an image: more are a slip of the finger
QUANTIZATIONS = get_args(Quantization)


@dataclass(frozen=True)
class Settings:
    """Each field's first line names its variable."""

    data: Path = Path("data")
    """M3AGIQA_DATA: folder of database, images and models."""
    database_url: str = ""
    """DATABASE_URL: any of SQLAlchemy's (default: annotations.db in the data folder)."""
    model: str = "nano"
    """M3AGIQA_MODEL: a model's name or a checkpoint folder; a promoted model goes before it."""
    revision: Revision | None = None
    """M3AGIQA_REVISION: branch, tag or commit of this model on the Hugging Face Hub; where it is made of
    several repositories, REPOSITORY=REVISION of each, with commas."""
    quantize: Quantization | None = None
    """M3AGIQA_QUANTIZE: 4bit or 8bit, to serve a model in less memory."""
    device: str | None = None
    """M3AGIQA_DEVICE: cpu, cuda, cuda:N or auto (default: the GPU if there is one)."""
    auth: Path | None = None
    """M3AGIQA_AUTH: file of users, made by `users add` (default: one local user)."""
    admins: frozenset[str] = frozenset()
    """M3AGIQA_ADMINS: on Spaces, names of admins, separated by commas."""
    runs: Path = Path("runs")
    """M3AGIQA_RUNS: training runs for the Failure cases tab."""
    overlap: int = 1
    """M3AGIQA_OVERLAP: annotators per image (1 to 100), unless an import says otherwise."""
    gold_every: int = 10
    """M3AGIQA_GOLD_EVERY: one in about so many is a calibration image; 0: none."""
    retrain_after: int = 0
    """M3AGIQA_RETRAIN_AFTER: new corrections that start a retraining; 0: never."""
    backup: str = ""
    """M3AGIQA_BACKUP: organisation/name of a private data set on the Hub, for copies of database, images and
    models; a server without a database begins with them."""
    backup_minutes: int = 5
    """M3AGIQA_BACKUP_MINUTES: minutes between two copies."""
    blind: bool = False
    """M3AGIQA_BLIND=1: blind mode for all annotators (else they may choose)."""
    keep: bool = True
    """M3AGIQA_KEEP=0: assessments without a correction are not stored."""
    quota: int = 0
    """M3AGIQA_QUOTA: images judged for one user's programs in an hour; 0: any number."""
    mcp: bool = False
    """M3AGIQA_MCP=1: tools for agents at /gradio_api/mcp/."""

    def __post_init__(self) -> None:
        if not self.database_url:
            object.__setattr__(self, "database_url", f"sqlite:///{self.data / 'annotations.db'}")

    @property
    def images(self) -> Path:
        """Folder of the image files, named by content."""
        return self.data / "images"

    @property
    def models(self) -> Path:
        """Folder of registered checkpoints (m3agiqa.checkpoint.registry)."""
        return self.data / "models"

    def revision_of(self, name: str) -> Revision | None:
        """Of a model by its name: the settings' own has theirs."""
        return self.revision if name == self.model else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Raises InputError naming the variable that is wrong."""

        def number(name: str, default: int, least: int, most: int) -> int:
            text = environment.get(name) or str(default)
            if not re.fullmatch(r"\s*\d{1,9}\s*", text) or not least <= int(text) <= most:
                raise InputError(f"{name} is {text[:40]!r}; give a whole number from {least} to {most:,}.")
            return int(text)

        def switch(name: str, default: bool) -> bool:
            text = (environment.get(name) or str(int(default))).strip().lower()
            if text not in ("0", "1", "true", "false", "yes", "no"):
                raise InputError(f"{name} is {text!r}; give 1 or 0.")
            return text in ("1", "true", "yes")

        def one_of(name: str, pattern: str, choices: str) -> str | None:
            text = (environment.get(name) or "").strip().lower()
            if not re.fullmatch(f"{pattern}|", text):
                raise InputError(f"{name} is {text[:40]!r}; give {choices}, or leave it out.")
            return text or None

        try:
            revision = parse_revision(environment.get("M3AGIQA_REVISION"))
        except InputError as error:
            raise InputError(f"M3AGIQA_REVISION: {error}") from error
        backup = (environment.get("M3AGIQA_BACKUP") or "").strip()
        if backup and not re.fullmatch(r"[\w.-]+/[\w.-]+", backup):
            raise InputError(f"M3AGIQA_BACKUP is {backup[:40]!r}; give a data set as organisation/name.")
        if backup and environment.get("DATABASE_URL"):
            raise InputError(
                "M3AGIQA_BACKUP copies the database in the data folder; leave out DATABASE_URL or it."
            )
        admins = (name.strip() for name in environment.get("M3AGIQA_ADMINS", "").split(","))
        auth = environment.get("M3AGIQA_AUTH")
        return cls(
            data=Path(environment.get("M3AGIQA_DATA") or cls.data),
            database_url=environment.get("DATABASE_URL") or "",
            model=environment.get("M3AGIQA_MODEL") or cls.model,
            revision=revision,
            quantize=one_of("M3AGIQA_QUANTIZE", "|".join(QUANTIZATIONS), " or ".join(QUANTIZATIONS)),
            device=one_of(
                "M3AGIQA_DEVICE", r"cpu|auto|cuda(:\d+)?", "cpu, cuda, cuda:0 (or another number) or auto"
            ),
            auth=Path(auth) if auth else None,
            admins=frozenset(filter(None, admins)),
            runs=Path(environment.get("M3AGIQA_RUNS") or cls.runs),
            overlap=number("M3AGIQA_OVERLAP", cls.overlap, 1, MOST_ANNOTATORS),
            gold_every=number("M3AGIQA_GOLD_EVERY", cls.gold_every, 0, 1_000_000),
            retrain_after=number("M3AGIQA_RETRAIN_AFTER", cls.retrain_after, 0, 1_000_000),
            backup=backup,
            backup_minutes=number("M3AGIQA_BACKUP_MINUTES", cls.backup_minutes, 1, 10_000),
            blind=switch("M3AGIQA_BLIND", cls.blind),
            keep=switch("M3AGIQA_KEEP", cls.keep),
            quota=number("M3AGIQA_QUOTA", cls.quota, 0, 1_000_000),
            mcp=switch("M3AGIQA_MCP", cls.mcp),
        )


def as_variable(option: str, value: str) -> str:
    """How an option that an error advises is set on a server (m3agiqa.errors.M3AgiqaError.worded)."""
    return f"M3AGIQA_{option.upper()}" + (f"={value}" if value else "")
