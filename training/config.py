"""The settings of a run, all in one place, and YAML files of them, which are in training/configs.

Errors name the file and the setting.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from m3agiqa.errors import InputError
from training.data import DataConfig
from training.nano.align import AlignConfig
from training.nano.fit_words import WordsConfig
from training.stages.curriculum import CurriculumConfig
from training.stages.describe_remote import ServerConfig
from training.stages.distill import DistillConfig
from training.stages.finetune import FinetuneConfig
from training.stages.fit import FitConfig

Settings = TypeVar("Settings")

SHIPPED_BACKBONE = "shipped"


@dataclass(frozen=True)
class TeacherConfig:
    """Who puts the scores into words, and how hard they may be pressed."""

    names: tuple[str, ...] = ("gemini", "openai")
    """gemini, openai (either with :MODEL) or recorded:FILE; each is asked what the one before refuses."""
    limits: DistillConfig = field(default_factory=DistillConfig)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run makes. Stages that are null are left out."""

    data: DataConfig
    """The data set and its split."""
    annotations: Path | None = None
    """Folder of an export of annotations, which goes before the data: people's descriptions and scores
    replace others, and count by the number of people."""
    before: str | None = None
    """Checkpoint that the new one is compared with where there are annotations; null: that of `start`, or
    nano."""
    name: str = "nano"
    """Name of the checkpoint that comes out."""
    version: str = "0.1.0"
    """Of the checkpoint."""
    learned_from: str = "{count:,} images with mean opinion scores"
    """What it learned from and whose scores these are, for users; {count} is the number of training
    images."""
    backbone: str = "nano"
    """nano, minicpm, or hf:organisation/name (or a folder) for an image-text-to-text model of
    transformers."""
    start: str | None = SHIPPED_BACKBONE
    """Checkpoint whose backbone is used or tuned further; null: base weights; shipped: that of nano, base
    weights for other backbones."""
    teacher: TeacherConfig | None = None
    """Stage distill; null where the data has descriptions already, or none are wanted."""
    extras: Path | None = None
    """Folder with captions/, agi-unlabelled/ and m3-agiqa-conversations/ for align and the warm-up."""
    align: AlignConfig | None = None
    """Stage align, for backbones with a connector of their own (nano); null: as `start` has it."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    finetune: FinetuneConfig | None = None
    """Stage finetune; null: the backbone of `start` is used as it is."""
    words: WordsConfig | None = None
    """Stage words, with annotations: learn from people's descriptions where there are enough; null: left
    out."""
    server: ServerConfig | None = None
    """Server whose model describes the images, so that the backbone only encodes; null: the backbone
    itself."""
    made_up: bool = False
    """Whether synthetic negatives (damaged copies, wrong prompts) are described too, for the losses of
    predictors and the sanity check. Adds about a half to describe."""
    described_limit: int | None = None
    """Only so many training images are described and train the predictors; null: all. Describing takes
    longest by far, and the predictors need fewer images than the backbone."""
    processes: int = 1
    """Processes that share describe and encode on this machine."""
    encode: bool = False
    """Stage encode: also read the data's own descriptions, to see what better ones would gain. What a server
    said is read in any case."""
    fit: FitConfig = field(default_factory=FitConfig)
    adapt: bool = False
    """Move the predictors of `start` as far as the scores carry them, by cross-validation
    (training.stages.adapt); false, or for an aspect that `start` has no predictor of: train one from random
    weights."""
    seeds: tuple[int, ...] = (0,)
    """Of predictors; the best by validation is kept."""
    ship_seeds: bool = False
    """Whether the checkpoint has the predictors of all seeds: their spread says how sure a MOS is."""
    select_on: Literal["validation", "test"] = "validation"
    """Where the best epoch and seed are chosen; test repeats the paper, whose data has no validation part,
    and flatters the numbers."""
    transfer: FitConfig | None = None
    """Stage transfer: settings of refits without a source of images; null: left out."""
    seed: int = 0
    """Of what is drawn outside of the other seeds' reach: prompts, damages, the order of lessons."""

    @property
    def learns_words(self) -> bool:
        """Whether stage words is wanted."""
        return self.words is not None and self.annotations is not None

    def __post_init__(self) -> None:
        if self.start == SHIPPED_BACKBONE:
            object.__setattr__(self, "start", "nano" if self.backbone == "nano" else None)
        if not self.seeds:
            raise InputError("seeds: give at least one.")
        if self.ship_seeds and len(self.seeds) < 2:
            raise InputError("ship_seeds needs several seeds; one alone has no spread.")
        if self.adapt and (len(self.seeds) > 1 or self.fit.joint):
            raise InputError("adapt moves one predictor an aspect: give one seed, and fit.joint: false.")
        if self.processes < 1:
            raise InputError(f"processes must be at least 1, not {self.processes}.")
        try:
            self.learned_from.format(count=0)
        except (LookupError, ValueError, AttributeError) as error:
            raise InputError(
                "learned_from: {count} or {count:,} stands for the number of training images; "
                "write all other braces twice."
            ) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping; one named as `base` is read first. Raises InputError.

    `training/configs/NAME.yaml` is the shipped file in any working folder that has no such file.
    """
    shipped = Path(__file__).parents[1] / path
    return _read_based(shipped if shipped.is_file() and not path.exists() else path, ())


def _read_based(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """With the files that name this one as their base."""
    if path.resolve() in above:
        raise InputError(f"{path} is its own base.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} needs settings like `name: value`, one a line.")
    if "base" not in settings:
        return settings
    base = settings.pop("base")
    if not isinstance(base, str):
        raise InputError(f"{path}: base is the name of another settings file (found {base!r}).")
    return merged(_read_based(path.parent / base, (*above, path.resolve())), settings)


def build(kind: type[Settings], settings: Mapping[str, Any], source: object) -> Settings:
    """An instance of a dataclass, nested ones included; what is left out keeps its default.

    `source` (a file, usually) is named in errors. Raises InputError for an unknown name or a wrong value.
    """
    try:
        made = TypeAdapter(kind).validate_python(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).endswith("Config"))
        if first["type"] == "missing":
            raise InputError(f"{source}: the setting {where} is missing.") from error
        raise InputError(f"{source}: {where}: {first['msg']} (found {first['input']!r}).") from error
    except InputError as error:  # of a dataclass that checks itself
        raise InputError(f"{source}: {error}") from error
    _check_names(settings, made, source, "")
    return made


def field_docs(kind: type) -> dict[str, str]:
    """The sentences below the fields of a dataclass, each on one line; fields without any are left out."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
    }


def described_settings(kind: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Name, default and explanation of each setting of a dataclass; names of nested ones have dots."""
    docs, types = field_docs(kind), get_type_hints(kind)
    for setting in fields(kind):
        name = prefix + setting.name
        choices = (types[setting.name], *get_args(types[setting.name]))
        nested = next((choice for choice in choices if is_dataclass(choice)), None)
        default = "" if nested and setting.default is MISSING else default_text(setting)
        if default or setting.name in docs:
            yield name, default, docs.get(setting.name, "")
        if isinstance(nested, type):
            yield from described_settings(nested, f"{name}.")


def default_text(setting: Field[Any]) -> str:
    """A field's default as YAML has it; empty where there is none."""
    if setting.default is not MISSING:
        return _as_yaml(setting.default)
    return "" if setting.default_factory is MISSING else _as_yaml(setting.default_factory())


def _as_yaml(value: Any) -> str:
    if value is None or value == "" or value == frozenset():
        return "" if value is not None else "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with some settings changed; nested mappings are merged likewise."""
    result = dict(base)
    for name, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if nested else value
    return result


def plain(settings: Any) -> Any:
    """A dataclass as what YAML and JSON can hold, to be read back by `build`."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def _check_names(given: Mapping[str, Any], made: Any, source: object, place: str) -> None:
    known = asdict(made)
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
            raise InputError(f"{source}: there is no setting {place}{name}; {hint}")
        if isinstance(value, Mapping) and is_dataclass(getattr(made, name)):
            _check_names(value, getattr(made, name), source, f"{place}{name}.")
