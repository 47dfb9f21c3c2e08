"""The folder of a training run: where everything lies, and what lies there as objects."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from torch import Tensor

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.loading import load_backbone
from m3agiqa.checkpoint.calibration import Calibration
from m3agiqa.checkpoint.card import Card, find_checkpoint, read_card
from m3agiqa.checkpoint.comparison import ComparedWords
from m3agiqa.checkpoint.predictor_weights import load_predictor
from m3agiqa.errors import InputError
from m3agiqa.files import is_stamped, write_atomically
from m3agiqa.predictor.config import PredictorConfig
from m3agiqa.predictor.model import Predictor
from m3agiqa.samples import Sample, read_samples
from training.config import RunConfig, build, plain, read_yaml
from training.data import fingerprint
from training.data.human_feedback import Annotated, pairs_within
from training.data.splits import shuffled
from training.data.variants import Variant, all_variants, image_hash, own_variants
from training.nano.align import DONE_FILE as ALIGNED_FILE
from training.stages.describe import EncodedConversation, describe, encode, given
from training.stages.describe_remote import RemoteDescriptions, remote_identity
from training.stages.finetune import DONE_FILE as FINETUNED_FILE
from training.stages.fit import predict
from training.stages.fit_data import Target, preferred_targets, targets
from training.stages.hidden_cache import HiddenCache, backbone_id
from training.stages.leave_source_out import with_interval

CONFIG_FILE = "config.yaml"
FACTS_FILE = "dataset.json"
WORDS_FILE = "words.json"
LEARNABLE_PARTS = ("train", "validation")  # for what is chosen by cross-validation
JOINT_NAME = "joint"
"""What the predictor of all aspects is called, where others have the name of their aspect."""


class RunFolder:
    """Paths in a run's folder, and what the stages have left there.

    What was read is kept, so after a stage has changed the folder, the next one opens it anew (`reopened`).
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config
        self.align_folder, self.finetune_folder = folder / "align", folder / "finetune"
        self.words_folder = folder / "words"
        self.report_folder, self.checkpoint_folder = folder / "report", folder / "checkpoint"

    @classmethod
    def open(cls, folder: Path) -> RunFolder:
        """A run by its folder, with the settings that it was begun with. Raises InputError."""
        path = folder / CONFIG_FILE
        if not path.exists():
            raise InputError(f"There is no run in {folder}: it has no {CONFIG_FILE}. Give a settings file.")
        return cls(folder, build(RunConfig, read_yaml(path), path))

    def reopened(self) -> RunFolder:
        """The same folder and settings, with nothing read yet."""
        return RunFolder(self.folder, self.config)

    def begin(self) -> None:
        """Write down the settings. Raises InputError where no folder can be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be the folder of a run: {error.strerror}.") from error
        text = yaml.safe_dump(plain(self.config), sort_keys=False, allow_unicode=True)
        path = self.folder / CONFIG_FILE
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)

    def log(self, text: str) -> None:
        """Append a line to log.txt."""
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    # --- data --------------------------------------------------------------------------------

    @property
    def is_read(self) -> bool:
        """Whether stage datasets is done."""
        return (self.folder / FACTS_FILE).exists()

    def undistilled(self) -> list[Sample]:
        """The samples as the data set has them. Raises InputError before stage datasets."""
        path = self.folder / "samples.jsonl"
        if not path.exists():
            raise InputError(f"There is no {path}. Run the stage datasets first.")
        return read_samples(path)

    @cached_property
    def samples(self) -> list[Sample]:
        """With the teacher's descriptions, once there are any. Raises InputError before stage datasets."""
        distilled = self.folder / "distill" / "samples.jsonl"
        if self.config.teacher and distilled.exists():
            return read_samples(distilled)
        return self.undistilled()

    @cached_property
    def _facts(self) -> dict[str, Any]:
        if not self.is_read:
            raise InputError(f"There is no {self.folder / FACTS_FILE}. Run the stage datasets first.")
        return _read(self.folder / FACTS_FILE)

    @property
    def scale(self) -> MosScale:
        return MosScale(*self._facts["scale"])

    @property
    def unit(self) -> float:
        """Points of MOS in which predictors are trained: a quarter of the scale, 1 for 1 to 5."""
        return (self.scale.high - self.scale.low) / 4

    @property
    def annotated(self) -> Annotated | None:
        """The samples that people scored; None without annotations."""
        facts = self._facts.get("annotations")
        return None if facts is None else Annotated(**facts)

    @property
    def version(self) -> str:
        """Of the checkpoint: the settings', and the annotations' after a plus."""
        return f"{self.config.version}+{self.annotated.version}" if self.annotated else self.config.version

    @property
    def kept(self) -> dict[Aspect, str]:
        """Aspects that lack scores and keep the predictor of `start`, each with what it lacks."""
        return {Aspect(aspect): reason for aspect, reason in self._facts.get("kept", {}).items()}

    @cached_property
    def aspects(self) -> list[Aspect]:
        """Aspects that are trained: those that have MOS."""
        return [aspect for aspect in Aspect if any(aspect in sample.mos for sample in self.samples)]

    @property
    def by_picks(self) -> list[Aspect]:
        """Aspects whose scores are left aside or missing: people's picks alone move their predictors."""
        return [Aspect(aspect) for aspect in self._facts.get("by_picks", ())]

    @property
    def trained(self) -> list[Aspect]:
        """Aspects that get a predictor here."""
        return [*self.aspects, *self.by_picks]

    @cached_property
    def variants(self) -> list[Variant]:
        """The samples, and with `made_up` also damaged images and wrong prompts."""
        if self.config.made_up:
            return all_variants(self._described_samples, self.trained, self.config.seed)
        return own_variants(self._described_samples, self.trained)

    @property
    def _described_samples(self) -> list[Sample]:
        """All, or as many of the training split as the settings allow."""
        limit = self.config.described_limit
        if limit is None:
            return self.samples
        train = [sample.id for sample in self.samples if sample.split == "train"]
        described = set(shuffled(train, self.config.seed)[:limit])
        return [sample for sample in self.samples if sample.split != "train" or sample.id in described]

    @cached_property
    def content(self) -> str:
        """Hash of the samples and of what is in their image files."""
        images = [image_hash(sample.image) for sample in self.samples]
        return hashlib.sha256(repr((fingerprint(self.samples), images)).encode()).hexdigest()

    # --- backbone ----------------------------------------------------------------------------

    @property
    def init_from(self) -> Path | None:
        """The checkpoint that the backbone comes from."""
        return None if self.config.start is None else find_checkpoint(self.config.start)

    @cached_property
    def start_card(self) -> Card | None:
        """Of the checkpoint that the backbone comes from; None for base weights."""
        return None if self.init_from is None else read_card(self.init_from, verify=False)

    @property
    def start_predictors(self) -> dict[Aspect, PredictorConfig]:
        """Predictors of `start` that fit the run's backbone."""
        card = self.start_card
        return card.predictors if card is not None and card.backbone == self.config.backbone else {}

    def is_adapted(self, aspect: Aspect) -> bool:
        """Whether the predictor of `start` is moved, not a new one trained."""
        return self.config.adapt and aspect in self.start_predictors

    def start_predictor(self, aspect: Aspect) -> Predictor:
        """That of `start`, on the run's scale."""
        card, folder = self.start_card, self.init_from
        assert card is not None and folder is not None
        own, wanted = card.scales[aspect], self.scale
        gain = (wanted.high - wanted.low) / (own.high - own.low)
        predictor = load_predictor(folder, aspect, card.predictors[aspect])
        return predictor.with_linear_change(gain, wanted.low - gain * own.low)

    @property
    def baseline(self) -> Path:
        """The checkpoint that the new one is compared with."""
        return find_checkpoint(self.config.before or self.config.start or "nano")

    @property
    def is_aligned(self) -> bool:
        return (self.align_folder / ALIGNED_FILE).exists()

    @property
    def aligned_from(self) -> tuple[object, ...]:
        """All that decides what stage align makes."""
        begun = () if self.init_from is None else (backbone_id(self.config.backbone, self.init_from),)
        return self.content, self.config.align, self.config.extras, self.config.seed, *begun

    @property
    def is_finetuned(self) -> bool:
        return (self.finetune_folder / FINETUNED_FILE).exists()

    @property
    def untuned_folder(self) -> Path:
        """Of the backbone before fine-tuning. Raises InputError while it is not aligned."""
        if self.config.align is not None:
            if not self.is_aligned:
                raise InputError(f"There is no aligned connector in {self.align_folder}. Run `align` first.")
            return self.align_folder
        return self.init_from or self.folder / "base"  # which is not there: nothing but base weights

    @property
    def backbone_folder(self) -> Path:
        """Of the backbone whose hidden states are read. Raises InputError while it is not fine-tuned."""
        if not self.config.learns_words:
            return self.tuned_folder
        if not self.has_words:
            raise InputError(
                f"It is not known whether new words serve ({self.words_folder}). Run `words` first."
            )
        compared = self.words_compared
        return self.words_folder / "backbone" if compared and not compared.worse else self.tuned_folder

    @property
    def words_from(self) -> tuple[object, ...]:
        """All that decides what stage words makes."""
        people = self._facts.get("annotations")
        return self.content, people, self.config.words, backbone_id(self.config.backbone, self.tuned_folder)

    @property
    def has_words(self) -> bool:
        """Whether stage words is done, for the present data."""
        return is_stamped(self.words_folder, *self.words_from) and (self.words_folder / WORDS_FILE).exists()

    @property
    def words_compared(self) -> ComparedWords | None:
        """What stage words has made beside the words before; None where it had not enough to learn from."""
        if not self.config.learns_words or not self.has_words:
            return None
        facts = _read(self.words_folder / WORDS_FILE)
        return ComparedWords.from_dict(facts) if facts else None

    @property
    def tuned_folder(self) -> Path:
        """Of the backbone before it learns people's words. Raises InputError while it is not fine-tuned."""
        if self.config.finetune is None:
            return self.untuned_folder
        if not self.is_finetuned:
            raise InputError(
                f"There is no fine-tuned backbone in {self.finetune_folder}. Run `finetune` first."
            )
        return self.finetune_folder

    @cached_property
    def backbone_identity(self) -> str:
        """What decides the backbone's hidden states over a given conversation."""
        return backbone_id(self.config.backbone, self.backbone_folder)

    @cached_property
    def head(self) -> Tensor | None:
        """The backbone's output matrix [vocab, d], where the predictors are trained in that space."""
        fits = [self.config.fit, *([self.config.transfer] if self.config.transfer else [])]
        if all(config.projection != "vocab" for config in fits):
            return None
        return load_backbone(self.config.backbone, self.backbone_folder).head.float()

    # --- descriptions and hidden states ------------------------------------------------------

    @cached_property
    def served(self) -> RemoteDescriptions | None:
        """Descriptions by a server's model; None where the backbone generates them itself."""
        server = self.config.server
        return None if server is None else RemoteDescriptions(server, self.folder / "served")

    @property
    def identity(self) -> str:
        """Who describes and whose hidden states these are, in keys of the cache.

        Raises InputError while that is not known.
        """
        if self.served is None:
            return self.backbone_identity
        return remote_identity(self.backbone_identity, self.served.model)

    @cached_property
    def cache(self) -> HiddenCache:
        return HiddenCache(self.folder / "hidden")

    @cached_property
    def given(self) -> list[EncodedConversation]:
        """The test samples' own descriptions as conversations."""
        return given([sample for sample in self.samples if sample.split == "test"])

    def served_conversations(self, variants: Sequence[Variant]) -> list[EncodedConversation]:
        """Those of a server's model about some variants; none where the backbone generates them itself."""
        return [] if self.served is None else [*self.served.conversations(variants)]

    def check_served(self, failed: dict[str, str]) -> None:
        """Raises InputError if conversations failed; all of them stand in log.txt."""
        for name, reason in failed.items():
            self.log(f"describe: {name}: {reason}")
        if failed:
            name, reason = next(iter(failed.items()))
            raise InputError(
                f"Of the conversations {len(failed):,} failed, the first ({name}) because {reason}. All that "
                f"failed are in {self.folder / 'log.txt'}. What was answered is kept; the same command asks "
                "for the others again."
            )

    def describe(self, variants: Sequence[Variant], cache: HiddenCache) -> None:
        """Let this run's backbone or server describe variants of any samples; hidden states go to a cache."""
        if self.served is None:
            describe(variants, self.config.backbone, self.backbone_folder, cache)
        else:
            self.check_served(self.served.describe(variants))
            conversations = self.served_conversations(variants)
            encode(conversations, self.config.backbone, self.backbone_folder, cache)

    def check_described(self, variants: Sequence[Variant], aspect: Aspect) -> None:
        """Raises InputError if hidden states of some variants are not in the cache."""
        identity = self.identity
        keys = [variant.key(aspect, identity) for variant in variants if aspect in variant.aspects]
        missing = sum(key not in self.cache for key in keys)
        if missing:
            raise InputError(
                f"{missing:,} of {len(keys):,} conversations about {aspect} are not in {self.cache.folder}. "
                f"Run `{'describe' if self.served is None else 'encode'}` first."
            )

    def targets(self, aspect: Aspect, split: str | None = None) -> list[Target]:
        """Hidden states and MOS of a split, or of all samples.

        Raises InputError if there are none, or some are not described yet.
        """
        chosen = [variant for variant in self.variants if split in (None, variant.sample.split)]
        if not any(aspect in variant.sample.mos for variant in chosen):
            raise InputError(f"No sample of the {split} split has a MOS for {aspect}.")
        self.check_described(chosen, aspect)
        return targets(chosen, self.cache, self.identity, aspect, self.scale)

    def pairs(self, *splits: str) -> list[tuple[str, str]]:
        """Ids of two samples of which people prefer the first, where both are in one of these parts."""
        return pairs_within(self.samples, self.annotated, splits)

    def preferred(self, aspect: Aspect, *splits: str) -> list[Target]:
        """Images that people prefer to their `worse` one, whatever the aspect: picks are of whole images."""
        return preferred_targets(self.variants, self.pairs(*splits), self.cache, self.identity, aspect)

    # --- predictors --------------------------------------------------------------------------

    @property
    def fitted_from(self) -> tuple[object, ...]:
        """All that decides what a predictor becomes, but its seed."""
        start = (self.start_card.digest,) if self.config.adapt and self.start_card else ()
        pairs = self.pairs(*LEARNABLE_PARTS)
        preferred = (pairs,) if pairs else ()  # so that runs without any are not fitted again
        return self.identity, self.aligned_from, self.config.fit, self.config.select_on, *start, *preferred

    def fits(self) -> list[tuple[str, int]]:
        """Name and seed of all predictors."""
        names = [JOINT_NAME] if self.config.fit.joint else [str(aspect) for aspect in self.trained]
        return [(name, seed) for name in names for seed in self.config.seeds]

    def is_fitted(self, name: str, seed: int) -> bool:
        """Whether there is a predictor of the present data, backbone and settings."""
        return is_stamped(self.fit_folder(name, seed), *self.fitted_from, seed)

    def fit_folder(self, name: str, seed: int) -> Path:
        return self.folder / "fit" / name / f"seed-{seed}"

    def fit_facts(self, name: str, seed: int) -> dict[str, Any]:
        """What is known of a predictor. Raises InputError if it is not fitted."""
        folder = self.fit_folder(name, seed)
        if not self.is_fitted(name, seed):
            raise InputError(
                f"There is no predictor for {name} of these data and settings in {folder}. Run `fit` first."
            )
        return _read(folder / "fit.json")

    def fitted(self, aspect: Aspect) -> list[Path]:
        """The folders of the predictors of all seeds: first the best by validation, then in order."""
        name, seeds = self._fit_name(aspect), self.config.seeds
        srcc = {seed: self.fit_facts(name, seed)["validation_srcc"] for seed in seeds}
        best = max(srcc, key=lambda seed: -math.inf if math.isnan(srcc[seed]) else srcc[seed])
        return [self.fit_folder(name, seed) for seed in dict.fromkeys((best, *seeds))]

    def best(self, aspect: Aspect) -> Predictor:
        """The predictor of the best seed by validation."""
        return _load(self.fitted(aspect)[0], aspect)

    def predictor(self, aspect: Aspect, seed: int) -> Predictor:
        """The predictor of a seed."""
        return _load(self.fit_folder(self._fit_name(aspect), seed), aspect)

    @cached_property
    def calibration(self) -> dict[Aspect, Calibration]:
        """By the predictors' errors on images that they were not fitted to, and by the training MOS.

        Such are those that the best predictor was chosen by, and for an adapted one the folds left out. One
        that only picks have moved has that of `start`, as no score tells its errors.
        """
        calibrations = {}
        if self.start_card is not None:
            own = self.start_card
            calibrations = {
                aspect: own.calibration[aspect].on_scale(own.scales[aspect], self.scale)
                for aspect in self.by_picks
                if aspect in own.calibration
            }
        for aspect in self.aspects:
            if self.is_adapted(aspect):
                facts = _read(self.fitted(aspect)[0] / "fit.json")
                errors, sources = facts["errors"], facts["sources"]
            else:
                held_out = self.targets(aspect, self.config.select_on)
                raw = predict(self.best(aspect), [target.states for target in held_out])
                errors = [self.scale.clamp(p) - each.mos for p, each in zip(raw, held_out, strict=True)]
                sources = [target.sample.source for target in held_out]
            training_mos = [s.mos[aspect] for s in self.samples if s.split == "train" and aspect in s.mos]
            calibrations[aspect] = Calibration.fitted(errors, training_mos, self.scale, sources)
        return calibrations

    def _fit_name(self, aspect: Aspect) -> str:
        return JOINT_NAME if self.config.fit.joint else str(aspect)

    def transfer_file(self, aspect: Aspect) -> Path:
        """The predictions of stage transfer."""
        return self.folder / "transfer" / aspect / "predicted.csv"

    def transferred(self) -> dict[str, dict[str, float]]:
        """Agreement inside the left-out sources, for the aspects that stage transfer has done."""
        files = {aspect: self.transfer_file(aspect) for aspect in self.aspects}
        return {str(a): with_interval(pd.read_csv(file)) for a, file in files.items() if file.exists()}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _load(folder: Path, aspect: Aspect) -> Predictor:
    return load_predictor(folder, aspect, PredictorConfig(**_read(folder / "fit.json")["predictor"]))
