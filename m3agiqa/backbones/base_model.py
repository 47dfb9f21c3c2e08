"""The published model that a backbone is made of, and where its files are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from m3agiqa.backbones.base import BASE_FILE
from m3agiqa.download.hub import commit, folder_version, snapshot
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import WeightsError
from m3agiqa.json_lines import write_json

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""No weights that need unpickling, and no code."""


@dataclass(frozen=True)
class BaseModel:
    """A model on the Hugging Face Hub, or in a folder."""

    model: str
    """Organisation/name, or the path of a folder."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; None: its main branch."""
    dtype: str | None = None
    """Precision of the weights, such as "bfloat16"; None: that of the files."""

    @classmethod
    def parse(cls, text: str) -> BaseModel:
        """ "organisation/name", "organisation/name@revision" or a folder. Raises WeightsError."""
        model, _, revision = (text, "", "") if Path(text).expanduser().is_dir() else text.partition("@")
        if not model:
            raise WeightsError(
                'Name the model behind "hf:", as in hf:HuggingFaceTB/SmolVLM2-500M-Video-Instruct, or give '
                "its folder."
            )
        return cls(model, revision or None)

    @classmethod
    def read(cls, folder: Path) -> BaseModel | None:
        """The model that a checkpoint records, if any. Raises WeightsError for a damaged file."""
        path = folder / BASE_FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise WeightsError(f"{path} does not name a model and its revision: {error}.") from error

    def write(self, folder: Path) -> None:
        """Record it in a checkpoint's folder."""
        write_json(folder / BASE_FILE, asdict(self))

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}" if self.revision else self.model

    @property
    def title(self) -> str:
        """Its name without a path of this machine."""
        return Path(self.model).name if Path(self.model).expanduser().is_dir() else self.model

    def files(self, progress: Progress | None = None, fetch: bool = True) -> Path:
        """The folder of its files, downloaded if they are not here and `fetch` is set; WeightsError."""
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            return folder
        if folder.is_absolute() or len(folder.parts) != 2:
            raise WeightsError(
                f"There is no folder {self.model}, and a model on the Hugging Face Hub is called "
                "organisation/name."
            )
        return snapshot(self.model, MODEL_FILES, progress, self.revision, fetch=fetch)

    def pinned(self, folder: Path) -> BaseModel:
        """With the commit that its files in a folder are of, so that it stays what it is."""
        if Path(self.model).expanduser().is_dir():
            return self
        return replace(self, revision=commit(folder_version(folder)) or self.revision)
