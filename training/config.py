"""The settings of a run, all in one place; YAML files of them are in training/configs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from m3agiqa.errors import InputError
from training.data import DataConfig
from training.nano.align import AlignConfig
from training.stages.curriculum import CurriculumConfig
from training.stages.describe_remote import ServerConfig
from training.stages.distill import DistillConfig
from training.stages.finetune import FinetuneConfig
from training.stages.fit import FitConfig

SHIPPED = "shipped"


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
    """Folder of an export of annotations (`python -m annotation export`), which goes before the data:
    people's descriptions and scores replace others, and count by the number of people."""
    before: str | None = None
    """Checkpoint (shipped name or folder) that the new one is compared with where there are annotations;
    null: that of `start`, or the shipped nano."""
    name: str = "nano"
    """Name of the checkpoint that comes out."""
    version: str = "0.1.0"
    learned_from: str = "{count:,} images with mean opinion scores"
    """One sentence for people on what it learned from and whose scores these are; {count} is the number of
    training images."""
    backbone: str = "nano"
    """nano, minicpm, or hf:organisation/name (with @revision or not; or a folder) for a model of the Hugging
    Face Hub that writes text about images."""
    start: str | None = SHIPPED
    """Checkpoint (shipped name or folder) whose backbone is used or tuned further; null: base weights;
    "shipped": the shipped one of this backbone, which only nano has, else base weights."""
    teacher: TeacherConfig | None = None
    """Stage distill; null where the data has descriptions already, or none are wanted."""
    extras: Path | None = None
    """Folder with captions/, agi-unlabelled/ and m3-agiqa-conversations/ for align and the warm-up."""
    align: AlignConfig | None = None
    """Stage align, for backbones with a connector of their own (nano); null: as `start` has it."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    finetune: FinetuneConfig | None = None
    """Stage finetune; null: the backbone of `start` speaks as it is."""
    server: ServerConfig | None = None
    """Who speaks in stage describe: a model on a server, and stage encode then reads what it said; null: the
    backbone itself."""
    made_up: bool = False
    """Whether damaged copies and unrelated prompts are described as well: some of the training images' for
    the hinge (fit.losses.worse), the test images' for the sanity check. Adds about a half to describe."""
    processes: int = 1
    """Processes that share describe (without a server) and encode on this machine, each with its part of the
    cores."""
    encode: bool = False
    """Stage encode: also read the data's own descriptions, to see what better ones would gain. What a server
    said is read in any case."""
    fit: FitConfig = field(default_factory=FitConfig)
    seeds: tuple[int, ...] = (0,)
    """Of predictors; agreement is reported as mean and spread, and the best by validation is kept."""
    ship_seeds: bool = False
    """Whether the checkpoint has the predictors of all seeds: their spread says how sure a MOS is, and each
    costs a little time."""
    select_on: Literal["validation", "test"] = "validation"
    """Where the best epoch and seed are chosen. "test" repeats the paper, whose data has no validation part,
    and flatters the numbers."""
    transfer: FitConfig | None = None
    """Stage transfer: settings of refits without a source of images; null: left out."""
    seed: int = 0
    """Of what is drawn outside of the other seeds' reach: prompts, damages, the order of lessons."""

    def __post_init__(self) -> None:
        if self.start == SHIPPED:
            object.__setattr__(self, "start", "nano" if self.backbone == "nano" else None)
        if not self.seeds:
            raise InputError("seeds: give at least one.")
        if self.ship_seeds and len(self.seeds) < 2:
            raise InputError("ship_seeds needs several seeds; one alone has no spread.")
        if self.processes < 1:
            raise InputError(f"processes must be at least 1, not {self.processes}.")
        try:
            self.learned_from.format(count=0)
        except (LookupError, ValueError, AttributeError) as error:
            raise InputError(
                "learned_from: {count} or {count:,} stands for the number of training images; "
                "write all other braces twice."
            ) from error
