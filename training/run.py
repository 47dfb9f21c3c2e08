"""One training run: a folder in which every stage finds what the stage before it left."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.nano import ADAPTER_FOLDER, CONNECTOR_FILE
from m3agiqa.checkpoint import Card, load_predictor, save_predictor, write_card
from m3agiqa.errors import InputError
from m3agiqa.predictor import PredictorConfig
from m3agiqa.samples import Sample, read_samples, write_samples
from training.align import DONE_FILE, AlignConfig, align
from training.cases import Case, all_cases
from training.curriculum import CurriculumConfig, curriculum
from training.datasets import TEACHER_SCALE, fingerprint, load_teacher
from training.describe import backbone_id, describe
from training.encode import encode
from training.evaluate import evaluate, leave_source_out, source_groups, within_source
from training.finetune import FinetuneConfig, finetune
from training.fit import FitConfig, fit
from training.hidden_cache import HiddenCache
from training.progress import claim, replace_folder
from training.sanity import sanity
from training.targets import Target, targets

LEARNED_FROM = (
    "{count:,} AI-generated and real images (generators of 2019-2025) whose scores (1 to 5) and descriptions "
    "were written by a multimodal LLM, not by people"
)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run makes."""

    backbone: str = "nano"
    version: str = "0.2.0"
    """Version of the checkpoint that comes out."""
    align: AlignConfig = field(default_factory=AlignConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    transfer: FitConfig = field(default_factory=lambda: FitConfig(epochs=2))
    """Settings of the refits that leave a source out; fewer epochs, as there are many of them."""
    seed: int = 0


class Run:
    """Stages as methods, in the order in which they are run; each resumes and skips what is done."""

    def __init__(self, folder: Path, config: RunConfig | None = None) -> None:
        self.folder = folder
        self.config = config or RunConfig()
        self.scale: MosScale = TEACHER_SCALE

    @cached_property
    def samples(self) -> list[Sample]:
        path = self.folder / "samples.jsonl"
        if not path.exists():
            raise InputError(f"There is no {path}. Run `python -m training datasets` for this run first.")
        return read_samples(path)

    @cached_property
    def cases(self) -> list[Case]:
        return all_cases(self.samples, self.config.seed)

    @cached_property
    def cache(self) -> HiddenCache:
        return HiddenCache(self.folder / "hidden")

    @property
    def aligned(self) -> Path:
        return self.folder / "align"

    @property
    def finetuned(self) -> Path:
        return self.folder / "finetune"

    @property
    def speaker(self) -> Path:
        """The folder of the fine-tuned backbone. Raises InputError while there is none."""
        if not (self.finetuned / CONNECTOR_FILE).exists():
            raise InputError(f"There is no fine-tuned backbone in {self.finetuned}. Run `finetune` first.")
        return self.finetuned

    @cached_property
    def identity(self) -> str:
        """What the fine-tuned backbone is called in keys of the cache."""
        return backbone_id(self.config.backbone, self.speaker)

    # --- stages ------------------------------------------------------------------------------

    def datasets(self, data: Path) -> None:
        """Read the teacher's data set into samples.jsonl."""
        write_samples(load_teacher(data), self.folder / "samples.jsonl")

    def align(self, data: Path) -> None:
        """Teach the connector alone; `data` also holds captions and unlabelled images."""
        claim(self.aligned, *self._aligned_from)
        if not (self.aligned / DONE_FILE).exists():
            align(self.samples, data, self.scale, self.aligned, self.config.align)

    def finetune(self, data: Path) -> None:
        """Teach the backbone; `data` also holds captions and texts for the warm-up."""
        claim(self.finetuned, self._aligned_from, self.config.curriculum, self.config.finetune)
        if (self.finetuned / "finetune.json").exists():
            return
        if not (self.aligned / CONNECTOR_FILE).exists():
            raise InputError(f"There is no aligned connector in {self.aligned}. Run `align` first.")
        lessons = curriculum(self.samples, data, self.scale, self.config.curriculum, self.config.seed)
        finetune(lessons, self.aligned, self.finetuned, self.config.finetune)

    def describe(self) -> None:
        """Let the backbone speak about all cases, and keep its hidden states."""
        describe(self.cases, self.config.backbone, self.speaker, self.cache)

    def encode(self) -> None:
        """Hidden states for the teacher's own descriptions (for comparison; nothing else needs it)."""
        encode(self.samples, self.config.backbone, self.speaker, self.cache)

    def fit(self, aspect: Aspect) -> None:
        """Train an aspect's predictor."""
        out, state = self.folder / "fit" / aspect, self.folder / "fit-state" / aspect
        made_from = (self.identity, self._aligned_from, self.config.fit)
        for folder in (state, *([out] if out.exists() else [])):
            claim(folder, *made_from)
        if out.exists():
            return
        train, validation = self.targets(aspect, "train"), self.targets(aspect, "validation")
        predictor, reached = fit(train, validation, self.config.fit, state / "state", f"fit {aspect}")

        def write(folder: Path) -> None:
            claim(folder, *made_from)
            save_predictor(predictor, folder, aspect)
            facts = {"validation_srcc": reached, "fit": asdict(self.config.fit)}
            (folder / "fit.json").write_text(json.dumps({**facts, "predictor": asdict(predictor.config)}))

        replace_folder(out, write)

    def evaluate(self) -> dict[str, dict]:
        """Agreement with the teacher's scores on the test split."""
        found = {}
        for aspect in Aspect:
            predictor = load_predictor(self.folder / "fit" / aspect, aspect, self._shape(aspect))
            found[str(aspect)] = evaluate(predictor, self.targets(aspect, "test"), self.scale)
        return found

    def transfer(self, aspect: Aspect) -> None:
        """Refit an aspect's predictor without each group of sources, and predict just those."""
        path = self._transfer(aspect)
        claim(path.parent, self.identity, self._aligned_from, self.config.transfer)
        if path.exists():
            return
        every = targets(self.cases, self.cache, self.identity, aspect)
        groups, states = source_groups(self.samples), path.parent / "states"
        frame = leave_source_out(every, groups, self.config.transfer, self.scale, states, aspect)
        partial = path.with_suffix(".partial")
        frame.to_csv(partial, index=False)
        partial.replace(path)

    def transferred(self) -> dict[str, dict[str, float]]:
        """Agreement inside the left-out sources, for the aspects that `transfer` has done."""
        done = {aspect: self._transfer(aspect) for aspect in Aspect if self._transfer(aspect).exists()}
        return {str(aspect): within_source(pd.read_csv(path)) for aspect, path in done.items()}

    def ship(self, out: Path) -> Card:
        """Put a checkpoint together in `out`, measure it, and write its card."""
        train = [sample for sample in self.samples if sample.split == "train"]

        def card(metrics: dict) -> Card:
            return Card(
                name=self.config.backbone,
                version=self.config.version,
                backbone=self.config.backbone,
                learned_from=LEARNED_FROM.format(count=len(train)),
                fingerprint=fingerprint(self.samples),
                scales=dict.fromkeys(Aspect, self.scale),
                predictors={aspect: self._shape(aspect) for aspect in Aspect},
                metrics=metrics,
            )

        def write(folder: Path) -> None:
            shutil.copy(self.finetuned / CONNECTOR_FILE, folder)
            shutil.copytree(self.finetuned / ADAPTER_FOLDER, folder / ADAPTER_FOLDER)
            for aspect in Aspect:
                for file in (self.folder / "fit" / aspect).glob("*.safetensors"):
                    shutil.copy(file, folder)
            write_card(card({}), folder)
            metrics = {
                "test": self.evaluate(),
                "source_left_out": self.transferred(),
                "sanity": sanity(self.samples, folder, self.cache, self.config.seed),
            }
            write_card(card(metrics), folder)

        replace_folder(out, write)
        return card({})

    # --- parts -------------------------------------------------------------------------------

    def _transfer(self, aspect: Aspect) -> Path:
        return self.folder / "transfer" / aspect / "predicted.csv"

    @property
    def _aligned_from(self) -> tuple:
        return fingerprint(self.samples), self.config.align, self.config.seed

    def targets(self, aspect: Aspect, split: str) -> list[Target]:
        """Cached targets of a split. Raises InputError if nothing was described yet."""
        chosen = [case for case in self.cases if case.sample.split == split]
        found = targets(chosen, self.cache, self.identity, aspect)
        if not found:
            raise InputError(f"No hidden states for {aspect} in {self.cache.folder}. Run `describe` first.")
        return found

    def _shape(self, aspect: Aspect) -> PredictorConfig:
        path = self.folder / "fit" / aspect / "fit.json"
        if not path.exists():
            raise InputError(f"There is no predictor for {aspect} in {self.folder}. Run `fit` first.")
        return PredictorConfig(**json.loads(path.read_text())["predictor"])
