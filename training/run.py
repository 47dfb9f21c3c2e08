"""One training run: a folder in which every stage finds what the stage before it left."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from torch import Tensor

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones import backbone_class, load_backbone
from m3agiqa.checkpoint.card import Card, find_checkpoint, load_predictor, read_card, save_predictor
from m3agiqa.checkpoint.registry import Candidate, Comparison, register
from m3agiqa.errors import InputError
from m3agiqa.files import atomic_path, is_stamped, replace_folder, stamp, stamp_or_empty
from m3agiqa.predictor.model import Predictor, PredictorConfig
from m3agiqa.samples import Sample, read_samples, write_samples
from training.config import RunConfig, build, plain, read_yaml
from training.data import fingerprint, load
from training.data.human_feedback import Annotated, merge, read_annotations
from training.data.splits import write_split
from training.data.variants import Variant, all_variants, image_hash, own_variants
from training.evaluation.leave_source_out import leave_source_out, source_groups, with_interval
from training.evaluation.report import COMPARISON_FILE
from training.evaluation.report.write import is_written, write_outcome
from training.nano.align import DONE_FILE as ALIGNED_FILE
from training.nano.align import align
from training.parallel import Shard, in_processes
from training.remote.teachers import teacher
from training.ship import ship
from training.stages.curriculum import curriculum
from training.stages.describe import describe
from training.stages.describe_remote import RemoteDescriptions, remote_identity
from training.stages.distill import Replies, distill, plan
from training.stages.encode import Telling, encode, given
from training.stages.finetune import DONE_FILE as FINETUNED_FILE
from training.stages.finetune import finetune
from training.stages.fit import fit
from training.stages.fit_data import Target, targets
from training.stages.hidden_cache import HiddenCache
from training.stages.identity import backbone_id

CONFIG_FILE = "config.yaml"
FACTS_FILE = "dataset.json"
JOINT = "joint"


class Run:
    """Stages as methods, in the order in which they are run; each resumes and skips what is done."""

    STAGES = (
        "datasets",
        "distill",
        "align",
        "finetune",
        "describe",
        "encode",
        "fit",
        "transfer",
        "evaluate",
        "ship",
    )

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config

    @classmethod
    def open(cls, folder: Path) -> Run:
        """A run by its folder, with the settings that it was begun with. Raises InputError."""
        path = folder / CONFIG_FILE
        if not path.exists():
            raise InputError(f"There is no run in {folder}: it has no {CONFIG_FILE}. Give a settings file.")
        return cls(folder, build(RunConfig, read_yaml(path), path))

    def begin(self) -> None:
        """Write down the settings. Raises InputError where no folder can be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be the folder of a run: {error.strerror}.") from error
        (self.folder / CONFIG_FILE).write_text(
            yaml.safe_dump(plain(self.config), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )

    # --- what there is -----------------------------------------------------------------------

    @cached_property
    def samples(self) -> list[Sample]:
        """With the teacher's descriptions, once there are any. Raises InputError before stage datasets."""
        told = self.folder / "distill" / "samples.jsonl"
        return read_samples(told) if self.config.teacher and told.exists() else self._undistilled()

    @cached_property
    def scale(self) -> MosScale:
        return MosScale(*json.loads((self.folder / FACTS_FILE).read_text())["scale"])

    @cached_property
    def annotated(self) -> Annotated | None:
        """What people said of the samples; None without annotations."""
        facts = json.loads((self.folder / FACTS_FILE).read_text()).get("annotations")
        return None if facts is None else Annotated(**facts)

    @property
    def version(self) -> str:
        """Of the checkpoint: the settings', and the annotations' after a plus."""
        return f"{self.config.version}+{self.annotated.version}" if self.annotated else self.config.version

    @property
    def unit(self) -> float:
        """Points of MOS in which predictors are trained: a quarter of the scale, 1 for 1 to 5."""
        return (self.scale.high - self.scale.low) / 4

    @property
    def aspects(self) -> list[Aspect]:
        """Aspects that have MOS."""
        return [aspect for aspect in Aspect if any(aspect in sample.mos for sample in self.samples)]

    @cached_property
    def cases(self) -> list[Variant]:
        if self.config.made_up:
            return all_variants(self.samples, self.aspects, self.config.seed)
        return own_variants(self.samples, self.aspects)

    @cached_property
    def content(self) -> str:
        """Hash of the samples and of what is in their image files."""
        images = [image_hash(sample.image) for sample in self.samples]
        return hashlib.sha256(repr((fingerprint(self.samples), images)).encode()).hexdigest()

    @cached_property
    def cache(self) -> HiddenCache:
        return HiddenCache(self.folder / "hidden")

    @property
    def started(self) -> Path | None:
        """The checkpoint that the backbone comes from."""
        return None if self.config.start is None else find_checkpoint(self.config.start)

    @property
    def before(self) -> Path:
        """The checkpoint that the new one is compared with."""
        return find_checkpoint(self.config.before or self.config.start or "nano")

    @property
    def aligned(self) -> Path:
        return self.folder / "align"

    @property
    def finetuned(self) -> Path:
        return self.folder / "finetune"

    @property
    def untuned(self) -> Path:
        """The folder of the backbone before fine-tuning. Raises InputError while it is not aligned."""
        if self.config.align is not None:
            if not (self.aligned / ALIGNED_FILE).exists():
                raise InputError(f"There is no aligned connector in {self.aligned}. Run `align` first.")
            return self.aligned
        return self.started or self.folder / "base"  # a folder that is not there: nothing but base weights

    @property
    def speaker(self) -> Path:
        """The folder of the backbone that speaks. Raises InputError while it is not fine-tuned."""
        if self.config.finetune is None:
            return self.untuned
        if not (self.finetuned / FINETUNED_FILE).exists():
            raise InputError(f"There is no fine-tuned backbone in {self.finetuned}. Run `finetune` first.")
        return self.finetuned

    @cached_property
    def reader(self) -> str:
        """Identity of the backbone, which holds in mind what is said."""
        return backbone_id(self.config.backbone, self.speaker)

    @property
    def identity(self) -> str:
        """Who speaks and who reads it, in keys of the cache. Raises InputError while that is not known."""
        return self.reader if self.served is None else remote_identity(self.reader, self.served.model)

    @cached_property
    def served(self) -> RemoteDescriptions | None:
        """What a server's model has said; None where the backbone speaks itself."""
        server = self.config.server
        return None if server is None else RemoteDescriptions(server, self.folder / "served")

    def targets(self, aspect: Aspect, split: str) -> list[Target]:
        """Cached targets of a split. Raises InputError if there are none, or some are not described yet."""
        chosen = [case for case in self.cases if case.sample.split == split]
        if not any(aspect in case.sample.mos for case in chosen):
            raise InputError(f"No sample of the {split} split has a MOS for {aspect}.")
        self._check_described(chosen, aspect)
        return targets(chosen, self.cache, self.identity, aspect, self.scale)

    # --- stages ------------------------------------------------------------------------------

    def datasets(self) -> None:
        """Read the data set into samples.jsonl, and publish its split as split.csv.

        It is read again each time, so that a change of the data is noticed.
        """
        found = load(self.config.data)
        samples, facts = found.samples, {"scale": [found.scale.low, found.scale.high]}
        if self.config.annotations is not None:
            samples, annotated = merge(samples, found.scale, read_annotations(self.config.annotations))
            facts["annotations"] = asdict(annotated)
        facts["fingerprint"] = fingerprint(samples)
        self._check_parts(samples)
        write_samples(samples, self.folder / "samples.jsonl")
        write_split(samples, self.folder / "split.csv")
        (self.folder / FACTS_FILE).write_text(json.dumps(facts))
        self._forget()

    def distill(self) -> None:
        """Let the teacher describe what has no description yet. Raises InputError if that failed for some."""
        if self.config.teacher is None:
            return
        out, asked, told = self.folder / "distill", self._undistilled(), self.config.teacher
        questions = list(plan(asked, Replies(out / "replies.jsonl"), self.scale))
        teachers = [teacher(name) for name in told.names] if questions else []
        filled, found = distill(asked, teachers, out / "replies.jsonl", self.scale, told.limits)
        write_samples(filled, out / "samples.jsonl")
        self._forget()
        if found.failed:
            name, reason = next(iter(found.failed.items()))
            raise InputError(f"{found} The first that failed: {name}, {reason}.")
        if questions:
            self._log(f"distill: {found}")
            sys.stdout.write(f"{found}\n")

    def align(self) -> None:
        """Teach the connector alone."""
        if self.config.align is None:
            return
        stamp(self.aligned, *self._aligned_from)
        if not (self.aligned / ALIGNED_FILE).exists():
            align(self.samples, self.config.extras, self.scale, self.aligned, self.config.align)

    def finetune(self) -> None:
        """Teach the backbone to describe and rate."""
        config = self.config
        if config.finetune is None:
            return
        begun = self.untuned
        made_from = (
            self._aligned_from,
            backbone_id(config.backbone, begun, fetch=True),
            config.curriculum,
            config.finetune,
        )
        stamp(self.finetuned, *made_from)
        if (self.finetuned / FINETUNED_FILE).exists():
            return
        if not any(sample.descriptions for sample in self.samples if sample.split == "train"):
            raise InputError(
                "No training sample has a description to fine-tune with. Set a teacher, or finetune: null."
            )
        lacking = [a for a in self.aspects if config.finetune.aspects and a not in config.finetune.aspects]
        if lacking:
            raise InputError(
                f"finetune.aspects leaves out {', '.join(lacking)}, which the data has scores of. Add it, or "
                "leave it out of data.aspects too."
            )
        lessons = curriculum(self.samples, config.extras, self.scale, config.curriculum, config.seed)
        begun = begun if begun.exists() else None
        finetune(lessons, begun, self.finetuned, config.finetune, config.backbone)

    def describe(self, share: Shard | None = None) -> None:
        """Let the backbone speak about all cases, and keep its hidden states; or a share of them.

        With a server its model speaks, and nothing is read yet. Raises InputError if that failed for some.
        """
        if self.served is not None:
            self._check_all_said(self.served.describe(self.cases, share))
            return
        self._in_processes("describe", share)
        describe(self.cases, self.config.backbone, self.speaker, self.cache, share)
        self._forget_reader()

    def encode(self, share: Shard | None = None) -> None:
        """Hidden states for what a server's model has said, and for the data's own descriptions."""
        tellings = [*self._heard(self.cases), *(self.given if self.config.encode else ())]
        if tellings:
            self._in_processes("encode", share)
            encode(tellings, self.config.backbone, self.speaker, self.cache, share)
            self._forget_reader()

    def speak(self, cases: Sequence[Variant], cache: HiddenCache) -> None:
        """Let whoever speaks in this run speak about other cases too, and keep hidden states in a cache."""
        if self.served is None:
            describe(cases, self.config.backbone, self.speaker, cache)
        else:
            self._check_all_said(self.served.describe(cases))
            encode(self._heard(cases), self.config.backbone, self.speaker, cache)
        self._forget_reader()

    def fit(self, aspects: Sequence[Aspect] | None = None) -> None:
        """Train the predictors, for every seed. Raises InputError for an aspect without scores."""
        wanted = self._wanted(aspects)
        for seed in self.config.seeds:
            if self.config.fit.joint:
                self._fit(JOINT, self.aspects, seed)
            else:
                for aspect in wanted:
                    self._fit(str(aspect), [aspect], seed)

    def transfer(self, aspects: Sequence[Aspect] | None = None) -> None:
        """Refit an aspect's predictor without each group of sources, and predict just those."""
        wanted, groups = self._wanted(aspects), source_groups(self.samples)
        if self.config.transfer is None or len(groups) < 2:
            return
        for aspect in wanted:
            path = self._transfer(aspect)
            stamp_or_empty(path.parent, self.identity, self._aligned_from, self.config.transfer)
            if not path.exists():
                self._check_described(self.cases, aspect)
                every = targets(self.cases, self.cache, self.identity, aspect, self.scale)
                states = path.parent / "states"
                config = self.config.transfer
                frame = leave_source_out(every, groups, config, self.scale, states, aspect, self.head)
                with atomic_path(path) as partial:
                    frame.to_csv(partial, index=False)

    def evaluate(self) -> dict[str, Any]:
        """Agreement on the test split; writes report.html, metrics.json and tables into `report`.

        With annotations also that of the model before.
        """
        return write_outcome(self)

    @property
    def is_evaluated(self) -> bool:
        """Whether the report is of the predictors that there are now."""
        return is_written(self)

    def ship(self, out: Path | None = None) -> Card:
        """Put a checkpoint together in `out` (default: `checkpoint` in the run), with its card.

        An older checkpoint there is replaced. Raises InputError if there is anything else.
        """
        return ship(self, out or self.folder / "checkpoint")

    def register(self, folder: Path) -> Candidate:
        """Make the shipped checkpoint a candidate in a registry, with how it compares."""
        path = self.folder / "report" / COMPARISON_FILE
        comparison = Comparison.from_dict(_read(path)) if path.exists() else None
        return register(self.folder / "checkpoint", folder, comparison)

    # --- all at once -------------------------------------------------------------------------

    def run(self, until: str | None = None) -> None:
        """All stages in their order, up to one of them; finished ones are skipped. Raises M3AgiqaError."""
        self.check()
        self.begin()
        stages = self.STAGES[: self.STAGES.index(until) + 1] if until else self.STAGES
        for name in stages:
            with self._logged(name):
                getattr(self, name)()

    def check(self) -> None:
        """Raises M3AgiqaError for settings that cannot work, before hours or money are spent on them."""
        config = self.config
        backbone_class(config.backbone)
        if self.started is not None:
            made_for = read_card(self.started, verify=False).backbone
            if made_for.partition(":")[0] != config.backbone.partition(":")[0]:
                raise InputError(
                    f"start: {config.start} is a checkpoint of the backbone {made_for}, not of "
                    f"{config.backbone}. Set start: null for base weights."
                )
        if not config.data.path.exists():
            raise InputError(f"There is no data set {config.data.path}.")
        if config.annotations is not None:
            read_annotations(config.annotations)
            backbone_class(read_card(self.before).backbone)
        if config.fit.projection != "none":  # as wide as the hidden states are then
            Predictor(config.fit.shape(8, 8))

    def transferred(self) -> dict[str, dict[str, float]]:
        """Agreement inside the left-out sources, for the aspects that `transfer` has done."""
        done = {a: self._transfer(a) for a in self.aspects if self._transfer(a).exists()}
        return {str(aspect): with_interval(pd.read_csv(path)) for aspect, path in done.items()}

    # --- parts -------------------------------------------------------------------------------

    def _wanted(self, aspects: Sequence[Aspect] | None) -> list[Aspect]:
        """These aspects, or all that have MOS."""
        for aspect in aspects or ():
            if aspect not in self.aspects:
                raise InputError(f"No sample of {self.folder} has a MOS for {aspect}.")
        return [aspect for aspect in self.aspects if aspects is None or aspect in aspects]

    def _in_processes(self, stage: str, share: Shard | None) -> None:
        """Let several processes do a stage first, if that is wanted; what is left then is nothing."""
        if share is None and self.config.processes > 1:
            in_processes([stage, "--run", str(self.folder)], self.config.processes)
            self.__dict__.pop("cache", None)  # they have added to it

    def _heard(self, cases: Sequence[Variant]) -> list[Telling]:
        """What a server's model has said about cases; nothing where the backbone speaks itself."""
        return [] if self.served is None else [*self.served.conversations(cases)]

    def _check_all_said(self, failed: dict[str, str]) -> None:
        """Raises InputError if conversations failed; all of them stand in log.txt."""
        for name, reason in failed.items():
            self._log(f"describe: {name}: {reason}")
        if failed:
            name, reason = next(iter(failed.items()))
            raise InputError(
                f"Of the conversations {len(failed):,} failed, the first ({name}) because {reason}. All that "
                f"failed are in {self.folder / 'log.txt'}. What was answered is kept; the same command asks "
                "for the others again."
            )

    @contextmanager
    def _logged(self, stage: str) -> Iterator[None]:
        """A line in log.txt before and after a stage."""
        began = time.monotonic()
        self._log(f"{stage}: begun")
        try:
            yield
        except BaseException as error:
            self._log(f"{stage}: stopped by {type(error).__name__}: {error}")
            raise
        self._log(f"{stage}: done in {time.monotonic() - began:.1f} s")

    def _log(self, text: str) -> None:
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _undistilled(self) -> list[Sample]:
        path = self.folder / "samples.jsonl"
        if not path.exists():
            raise InputError(f"There is no {path}. Run the stage datasets first.")
        return read_samples(path)

    def _forget(self) -> None:
        """What was read of the samples, which have changed."""
        for name in ("samples", "scale", "cases", "content", "reader", "given", "annotated"):
            self.__dict__.pop(name, None)

    def _forget_reader(self) -> None:
        """Its base weights may have been downloaded meanwhile."""
        self.__dict__.pop("reader", None)

    def _check_parts(self, samples: Sequence[Sample]) -> None:
        """Raises InputError if a part that is needed has no score of an aspect that another part has."""
        for aspect in Aspect:
            there = {sample.split for sample in samples if aspect in sample.mos}
            lacking = [part for part in ("train", self.config.select_on, "test") if part not in there]
            if there and lacking:
                raise InputError(
                    f"No image of the {lacking[0]} split has a score of {aspect}. Change data.split, or "
                    f"leave {aspect} out with data.aspects."
                )

    def _check_described(self, cases: Sequence[Variant], aspect: Aspect) -> None:
        keys = [case.key(aspect, self.identity) for case in cases if aspect in case.aspects]
        missing = sum(key not in self.cache for key in keys)
        if missing:
            raise InputError(
                f"{missing:,} of {len(keys):,} conversations about {aspect} are not in {self.cache.folder}. "
                f"Run `{'describe' if self.served is None else 'encode'}` first."
            )

    @property
    def _aligned_from(self) -> tuple:
        return self.content, self.config.align, self.config.extras, self.config.seed

    @property
    def fitted_from(self) -> tuple:
        """All that decides what a predictor becomes, but its seed."""
        return self.identity, self._aligned_from, self.config.fit, self.config.select_on

    @cached_property
    def given(self) -> list[Telling]:
        return given([sample for sample in self.samples if sample.split == "test"])

    def _fit(self, name: str, aspects: Sequence[Aspect], seed: int) -> None:
        """One predictor of the targets of some aspects, kept under the name."""
        out, state = self.fit_folder(name, seed), self.folder / "fit-state" / name / f"seed-{seed}"
        made_from = (*self.fitted_from, seed)
        if self.is_fitted(name, seed):
            return
        stamp_or_empty(state, *made_from)
        train = [target for aspect in aspects for target in self.targets(aspect, "train")]
        validation = [t for aspect in aspects for t in self.targets(aspect, self.config.select_on)]
        head = self.head
        config = replace(self.config.fit, seed=seed)
        predictor, reached = fit(train, validation, config, state / "state", f"fit {name}", head, self.unit)
        if predictor.config.projection == "vocab":
            predictor = predictor.fuse(head)

        def write(folder: Path) -> None:
            stamp(folder, *made_from)
            for aspect in aspects:
                save_predictor(predictor, folder, aspect)
            facts = {"validation_srcc": reached, "fit": asdict(config), "predictor": asdict(predictor.config)}
            (folder / "fit.json").write_text(json.dumps(facts))

        replace_folder(out, write)

    @cached_property
    def head(self) -> Tensor | None:
        """The backbone's output matrix [vocab, d], where the predictors are trained in that space."""
        fits = [self.config.fit, *([self.config.transfer] if self.config.transfer else [])]
        if all(config.projection != "vocab" for config in fits):
            return None
        return load_backbone(self.config.backbone, self.speaker).head.float()

    def fits(self) -> list[tuple[str, int]]:
        names = [JOINT] if self.config.fit.joint else [str(aspect) for aspect in self.aspects]
        return [(name, seed) for name in names for seed in self.config.seeds]

    def is_fitted(self, name: str, seed: int) -> bool:
        """Whether there is a predictor of the present data, backbone and settings."""
        return is_stamped(self.fit_folder(name, seed), *self.fitted_from, seed)

    def fit_folder(self, name: str, seed: int) -> Path:
        return self.folder / "fit" / name / f"seed-{seed}"

    def facts(self, name: str, seed: int) -> dict[str, Any]:
        """What is known of a predictor. Raises InputError if it is not fitted."""
        folder = self.fit_folder(name, seed)
        if not self.is_fitted(name, seed):
            raise InputError(
                f"There is no predictor for {name} of these data and settings in {folder}. Run `fit` first."
            )
        return _read(folder / "fit.json")

    def fitted(self, aspect: Aspect) -> list[Path]:
        """The folders of the predictors of all seeds: first the best by validation, then in order."""
        name = self._fit_name(aspect)
        reached = {seed: self.facts(name, seed)["validation_srcc"] for seed in self.config.seeds}
        best = max(reached, key=lambda seed: -math.inf if math.isnan(reached[seed]) else reached[seed])
        return [self.fit_folder(name, seed) for seed in dict.fromkeys((best, *self.config.seeds))]

    def best(self, aspect: Aspect) -> Predictor:
        """The predictor of the best seed by validation."""
        return _load(self.fitted(aspect)[0], aspect)

    def predictor(self, aspect: Aspect, seed: int) -> Predictor:
        """The predictor of a seed."""
        return _load(self.fit_folder(self._fit_name(aspect), seed), aspect)

    def _fit_name(self, aspect: Aspect) -> str:
        return JOINT if self.config.fit.joint else str(aspect)

    def _transfer(self, aspect: Aspect) -> Path:
        return self.folder / "transfer" / aspect / "predicted.csv"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _load(folder: Path, aspect: Aspect) -> Predictor:
    return load_predictor(folder, aspect, PredictorConfig(**_read(folder / "fit.json")["predictor"]))
