"""The stages of a run, as a list that the command line, the plan, the help and the documentation follow."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from m3agiqa.aspects import Aspect, aspects_text
from m3agiqa.backbones.loading import backbone_class
from m3agiqa.checkpoint.card import Card, read_card
from m3agiqa.checkpoint.comparison import Comparison
from m3agiqa.checkpoint.predictor_weights import save_predictor
from m3agiqa.checkpoint.registry import Candidate, register
from m3agiqa.errors import InputError
from m3agiqa.files import atomic_path, replace_folder, stamp, stamp_or_empty
from m3agiqa.grouping import MIN_CROSS_VALIDATED_GROUPS
from m3agiqa.predictor.model import Predictor
from m3agiqa.samples import Sample, write_samples
from training.config import RunConfig
from training.data import Dataset, fingerprint, load
from training.data.human_feedback import Annotated, merge, pairs_within, read_annotations
from training.data.splits import write_split
from training.data.worked_examples import WorkedExamples
from training.evaluation.report import COMPARISON_FILE
from training.evaluation.report.write import is_written, write_outcome
from training.nano import align as nano_align
from training.parallel import Shard, in_processes
from training.remote.teachers import teacher
from training.run import FACTS_FILE, JOINT_NAME, LEARNABLE_PARTS, RunFolder
from training.ship import ship as write_checkpoint
from training.stages import describe as backbone_describe
from training.stages import distill as teacher_distill
from training.stages import finetune as backbone_finetune
from training.stages import fit as predictor_fit
from training.stages.adapt import Adapted, adapt
from training.stages.adapt_to_preferences import adapt_to_preferences, pair_groups
from training.stages.curriculum import curriculum
from training.stages.hidden_cache import backbone_id
from training.stages.leave_source_out import leave_source_out, source_groups
from training.words import plan_text as words_plan
from training.words import train_words

State = Literal["done", "to do", "left out"]


@dataclass(frozen=True)
class Stage:
    """One stage of a run. All functions are given a folder of which nothing was read yet."""

    name: str
    summary: str
    """What it does, for help and documentation."""
    needs: tuple[str, ...]
    """Stages whose results it reads, as far as these are not left out."""
    makes: str
    """What it leaves in the run's folder."""
    run: Callable[..., Any]
    """Does what is still to do; nothing if the stage is left out. What it returns, its command prints."""
    plan: Callable[[RunFolder], str]
    """What it will do, as far as that can be known before; also asked if the stage is left out."""
    is_done: Callable[[RunFolder], bool] = lambda run: False
    """Whether nothing is left to do; raises InputError while a stage before it is not done.

    Left out for stages that find out only while they run, which is quick then.
    """
    is_wanted: Callable[[RunConfig], bool] = lambda config: True
    """Whether the settings ask for it."""

    def state(self, run: RunFolder) -> State:
        if not self.is_wanted(run.config):
            return "left out"
        try:
            return "done" if self.is_done(run) else "to do"
        except InputError:
            return "to do"


def plan(run: RunFolder) -> list[tuple[str, State, str]]:
    """Name, state and text of all stages in their order. Counts are of what is known now.

    Raises M3AgiqaError for settings that cannot work.
    """
    check(run)
    return [(stage.name, stage.state(run), stage.plan(run)) for stage in STAGES]


def run_stages(run: RunFolder, until: str | None = None) -> None:
    """All stages in their order, up to one of them; finished ones are skipped. Raises M3AgiqaError."""
    check(run)
    run.begin()
    for stage in STAGES:
        with _logged(run, stage.name):
            stage.run(run.reopened())
        if stage.name == until:
            break


def check(run: RunFolder) -> None:
    """Raises M3AgiqaError for settings that cannot work, before hours or money are spent on them."""
    config = run.config
    backbone_class(config.backbone)
    if run.init_from is not None:
        made_for = read_card(run.init_from, verify=False).backbone
        if made_for.partition(":")[0] != config.backbone.partition(":")[0]:
            raise InputError(
                f"start: {config.start} is a checkpoint of the backbone {made_for}, not of "
                f"{config.backbone}. Set start: null for base weights."
            )
    if not config.data.path.exists():
        raise InputError(f"There is no data set {config.data.path}.")
    if config.annotations is not None:
        read_annotations(config.annotations)
        backbone_class(read_card(run.baseline).backbone)
    if config.fit.projection != "none":  # as wide as the hidden states are then
        Predictor(config.fit.shape(8, 8))


@contextmanager
def _logged(run: RunFolder, stage: str) -> Iterator[None]:
    """A line in log.txt before and after a stage."""
    began = time.monotonic()
    run.log(f"{stage}: begun")
    try:
        yield
    except BaseException as error:
        run.log(f"{stage}: stopped by {type(error).__name__}: {error}")
        raise
    run.log(f"{stage}: done in {time.monotonic() - began:.1f} s")


# --- datasets ------------------------------------------------------------------------------------


def datasets(run: RunFolder) -> None:
    """Read the data set into samples.jsonl, and publish its split as split.csv.

    It is read again each time, so that a change of the data is noticed.
    """
    samples, facts = _read_data(run)
    for aspect, reason in facts["kept"].items():
        run.log(f"datasets: {_kept_text(run, aspect, reason)}")
    facts["fingerprint"] = fingerprint(samples)
    write_samples(samples, run.folder / "samples.jsonl")
    write_split(samples, run.folder / "split.csv")
    (run.folder / FACTS_FILE).write_text(json.dumps(facts))


def _read_data(run: RunFolder) -> tuple[list[Sample], dict[str, Any]]:
    """The samples, with the scores of those aspects that are trained, and what FACTS_FILE says of them."""
    config, annotated = run.config, None
    export = None if config.annotations is None else read_annotations(config.annotations)
    if export is not None and not export.samples and config.data.path == config.annotations:
        dataset = Dataset([], export.scale)  # of picks alone
    else:
        dataset = load(config.data)
    samples, facts = dataset.samples, {"scale": [dataset.scale.low, dataset.scale.high]}
    if export is not None:
        samples, annotated = merge(samples, dataset.scale, export)
        facts["annotations"] = asdict(annotated)
    kept = _kept(samples, run)
    by_picks = []
    if {aspect for sample in samples for aspect in sample.mos} <= kept.keys():
        by_picks = _moved_by_picks(samples, annotated, kept, run)
    lacking = {aspect: reason for aspect, reason in kept.items() if aspect not in by_picks}
    facts |= {"kept": lacking, "by_picks": by_picks}
    trained = [replace(s, mos={a: mos for a, mos in s.mos.items() if a not in kept}) for s in samples]
    used = {name for pair in facts.get("annotations", {}).get("preferred", ()) for name in pair}
    return [s for s in trained if s.mos or s.descriptions or s.id in used or not kept], facts


def _moved_by_picks(
    samples: Sequence[Sample], annotated: Annotated | None, kept: dict[Aspect, str], run: RunFolder
) -> list[Aspect]:
    """Aspects of which no scores can be learned, whose predictors in `start` people's picks move.

    Raises InputError where there are too few of them, too: then there is nothing to train.
    """
    scored = {aspect for sample in samples for aspect in sample.mos}
    reasons = "; ".join(f"{aspect}: {kept[aspect]}" for aspect in kept if aspect in scored)
    nothing = f"There is nothing to train: {reasons or 'nothing was scored'}."
    movable = [aspect for aspect in kept if run.is_adapted(aspect)]
    if annotated is None or not annotated.preferred or not movable:
        raise InputError(f"{nothing} Score more images.")
    by_id = {sample.id: sample for sample in samples}
    train, test = (
        len(set(pair_groups((by_id[one], by_id[two]) for one, two in pairs_within(samples, annotated, part))))
        for part in (LEARNABLE_PARTS, ("test",))
    )
    if train < MIN_CROSS_VALIDATED_GROUPS or not test:
        raise InputError(
            f"{nothing} Picks alone need {MIN_CROSS_VALIDATED_GROUPS} prompts to learn from and one that is "
            f"held out; there are {train:,} and {test:,}. Pick the best image of more prompts, or score more "
            "images."
        )
    return movable


def _kept(samples: Sequence[Sample], run: RunFolder) -> dict[Aspect, str]:
    """Aspects that lack scores and keep the predictor of `start`, each with what it lacks.

    Raises InputError for an aspect that has scores, but not of every part that is needed, and no predictor
    in `start`.
    """
    kept = {}
    for aspect in Aspect:
        scored = {sample.split for sample in samples if aspect in sample.mos}
        needed = ("train", *(() if run.is_adapted(aspect) else (run.config.select_on,)), "test")
        lacking = [part for part in needed if part not in scored]
        reason = f"no image of the {lacking[0]} split has a score of {aspect}" if lacking else ""
        if lacking and aspect in run.start_predictors:
            kept[aspect] = reason if scored else "it has no scores"
        elif lacking and scored:
            raise InputError(
                f"{reason[0].upper()}{reason[1:]}. Change data.split, or leave {aspect} out with "
                "data.aspects."
            )
    return kept


def _kept_text(run: RunFolder, aspect: Aspect, reason: str) -> str:
    assert run.start_card is not None
    return f"{aspect} keeps the predictor of {run.start_card.title}, as {reason}"


def _plan_datasets(run: RunFolder) -> str:
    data, export = run.config.data, run.config.annotations
    facts = {"kept": run.kept, "by_picks": run.by_picks} if run.is_read else _read_data(run)[1]
    texts = [_kept_text(run, aspect, reason) for aspect, reason in facts["kept"].items()]
    if facts["by_picks"]:
        texts.append(f"{aspects_text(facts['by_picks'])} without enough scores, so that picks alone count")
    read = f"read {data.format} from {data.path}{f' and annotations from {export}' if export else ''}"
    return "; ".join([read, *texts])


# --- distill -------------------------------------------------------------------------------------


def distill(run: RunFolder) -> None:
    """Let the teacher describe what has no description yet. Raises InputError if that failed for some."""
    if run.config.teacher is None:
        return
    out, samples, config = run.folder / "distill", run.undistilled(), run.config.teacher
    has_questions = bool(_questions(run))
    examples = _worked_examples(run)
    teachers = [teacher(name) for name in config.names] if has_questions else []
    described, summary = teacher_distill.distill(
        samples, teachers, out / "replies.jsonl", run.scale, config.limits, examples=examples
    )
    write_samples(described, out / "samples.jsonl")
    if summary.failed:
        name, reason = next(iter(summary.failed.items()))
        raise InputError(f"{summary} The first that failed: {name}, {reason}.")
    if has_questions:
        run.log(f"distill: {summary}")
        sys.stdout.write(f"{summary}\n")


def _worked_examples(run: RunFolder) -> WorkedExamples | None:
    teacher = run.config.teacher
    return teacher and WorkedExamples(run.undistilled(), run.annotated, teacher.limits.examples)


def _questions(run: RunFolder) -> list[teacher_distill.TeacherRequest]:
    replies = teacher_distill.Replies(run.folder / "distill" / "replies.jsonl")
    return list(teacher_distill.plan(run.undistilled(), replies, run.scale, _worked_examples(run)))


def _plan_distill(run: RunFolder) -> str:
    if run.config.teacher is None:
        return "no teacher is set"
    names = ", then ".join(run.config.teacher.names)
    if not run.is_read:
        return f"ask {names}"
    return f"ask {names}: {teacher_distill.planned_cost(_questions(run), run.config.teacher.limits)}"


# --- align and finetune --------------------------------------------------------------------------


def align(run: RunFolder) -> None:
    """Fit nano's vision side."""
    config = run.config
    if config.align is None:
        return
    stamp(run.align_folder, *run.aligned_from)
    if not run.is_aligned:
        nano_align.align(run.samples, config.extras, run.scale, run.align_folder, config.align, run.init_from)


def _plan_align(run: RunFolder) -> str:
    parts = run.config.align.parts if run.config.align else ()
    return f"fit {', '.join(parts).replace('_', ' ')}"


def finetune(run: RunFolder) -> None:
    """Train the backbone to describe and rate."""
    config = run.config
    if config.finetune is None:
        return
    untuned = run.untuned_folder
    made_from = (
        run.aligned_from,
        backbone_id(config.backbone, untuned, fetch=True),
        config.curriculum,
        config.finetune,
    )
    stamp(run.finetune_folder, *made_from)
    if run.is_finetuned:
        return
    if not any(sample.descriptions for sample in run.samples if sample.split == "train"):
        raise InputError(
            "No training sample has a description to fine-tune with. Set a teacher, or finetune: null."
        )
    lacking = [a for a in run.aspects if config.finetune.aspects and a not in config.finetune.aspects]
    if lacking:
        raise InputError(
            f"finetune.aspects leaves out {', '.join(lacking)}, which the data has scores of. Add it, or "
            "leave it out of data.aspects too."
        )
    lessons = curriculum(run.samples, config.extras, run.scale, config.curriculum, config.seed)
    start = untuned if untuned.exists() else None
    backbone_finetune.finetune(lessons, start, run.finetune_folder, config.finetune, config.backbone)


def _plan_words(run: RunFolder) -> str:
    if not run.config.learns_words:
        return "no annotations are given"
    if run.is_read:
        return words_plan(run, run.samples, run.annotated)
    return words_plan(run, *_read_annotated(run))


def _read_annotated(run: RunFolder) -> tuple[list[Sample], Annotated | None]:
    """The samples, before stage datasets, and what people said of them."""
    samples, facts = _read_data(run)
    return samples, Annotated(**facts["annotations"]) if "annotations" in facts else None


def _plan_finetune(run: RunFolder) -> str:
    config = run.config
    return f"tune {', '.join(config.finetune.tune)} of {config.backbone}" if config.finetune else ""


# --- describe and encode -------------------------------------------------------------------------


def describe(run: RunFolder, share: Shard | None = None) -> None:
    """Let the backbone describe all variants, and keep its hidden states; or a share of them.

    With a server its model describes them, and nothing is read yet. Raises InputError if that failed for
    some.
    """
    if run.served is not None:
        run.check_served(run.served.describe(run.variants, share))
        return
    _in_processes(run, "describe", share)
    backbone_describe.describe(run.variants, run.config.backbone, run.backbone_folder, run.cache, share)


def encode(run: RunFolder, share: Shard | None = None) -> None:
    """Hidden states for what a server's model has said, and for the data's own descriptions."""
    conversations = [*run.served_conversations(run.variants), *(run.given if run.config.encode else ())]
    if conversations:
        _in_processes(run, "encode", share)
        backbone_describe.encode(conversations, run.config.backbone, run.backbone_folder, run.cache, share)


def _in_processes(run: RunFolder, stage: str, share: Shard | None) -> None:
    """Let several processes do a stage first, if that is wanted; what is left then is nothing."""
    if share is None and run.config.processes > 1:
        in_processes([stage, "--run", str(run.folder)], run.config.processes)


def _undescribed(run: RunFolder) -> int:
    if run.served is not None:
        return len(run.served.missing(run.variants))
    identity, cache = run.identity, run.cache
    return sum(variant.key(a, identity) not in cache for variant in run.variants for a in variant.aspects)


def _plan_describe(run: RunFolder) -> str:
    server = run.config.server
    who = f"let {server.model or 'the model'} at {server.url} " if server else ""
    if not run.is_read:
        return f"{who}describe all samples"
    count = sum(len(variant.aspects) for variant in run.variants)
    text = f"{who}describe {len(run.samples):,} samples in {count:,} conversations"
    try:
        return f"{text}, {_undescribed(run):,} of them new"
    except InputError:  # the backbone is not there yet
        return text


def _plan_encode(run: RunFolder) -> str:
    served = ["what the server's model said"] if run.config.server else []
    given = ["the test images' own descriptions"] if run.config.encode or not served else []
    return f"read {' and '.join(served + given)}"


# --- fit and transfer ----------------------------------------------------------------------------


def fit(run: RunFolder, aspects: Sequence[Aspect] | None = None) -> None:
    """Train the predictors, for every seed. Raises InputError for an aspect without scores."""
    wanted = _wanted(run, aspects)
    for seed in run.config.seeds:
        if run.config.fit.joint:
            _fit(run, JOINT_NAME, run.aspects, seed)
        else:
            for aspect in wanted:
                _fit(run, str(aspect), [aspect], seed)


def _fit(run: RunFolder, name: str, aspects: Sequence[Aspect], seed: int) -> None:
    """One predictor of the targets of some aspects, kept under the name."""
    out, state = run.fit_folder(name, seed), run.folder / "fit-state" / name / f"seed-{seed}"
    made_from = (*run.fitted_from, seed)
    if run.is_fitted(name, seed):
        return
    if not run.config.fit.joint and run.is_adapted(aspects[0]):
        predictor, facts = _adapted(run, aspects[0])
    else:
        stamp_or_empty(state, *made_from)
        train = [target for aspect in aspects for target in run.targets(aspect, "train")]
        validation = [target for aspect in aspects for target in run.targets(aspect, run.config.select_on)]
        config, head = replace(run.config.fit, seed=seed), run.head
        preferred = [target for aspect in aspects for target in run.preferred(aspect, "train")]
        predictor, srcc = predictor_fit.fit(
            train, validation, config, state / "state", f"fit {name}", head, run.unit, preferred
        )
        if predictor.config.projection == "vocab":
            predictor = predictor.fuse(head)
        facts = {"validation_srcc": srcc, "fit": asdict(config)}
    facts["predictor"] = asdict(predictor.config)

    def write(folder: Path) -> None:
        stamp(folder, *made_from)
        for aspect in aspects:
            save_predictor(predictor, folder, aspect)
        (folder / "fit.json").write_text(json.dumps(facts))

    replace_folder(out, write)


def _adapted(run: RunFolder, aspect: Aspect) -> tuple[Predictor, dict[str, Any]]:
    """The predictor of `start`, moved, and what is known of it."""
    train, start = [], run.start_predictor(aspect)
    if aspect in run.by_picks:
        adapted = Adapted(start, "too few scores to move it by", [])
    else:
        train = [target for target in run.targets(aspect) if target.sample.split in LEARNABLE_PARTS]
        adapted = adapt(start, train, run.unit)
    if preferred := run.preferred(aspect, *LEARNABLE_PARTS):
        adapted = adapt_to_preferences(adapted, preferred, train, run.unit)
    run.log(f"fit: {aspect}: {adapted.moved}")
    sys.stdout.write(f"fit {aspect}: {adapted.moved}\n")
    sources = [target.sample.source for target in train]
    facts = {"moved": adapted.moved, "errors": adapted.errors, "sources": sources}
    return adapted.predictor, {"validation_srcc": math.nan, **facts}


def _wanted(run: RunFolder, aspects: Sequence[Aspect] | None) -> list[Aspect]:
    """These aspects, or all that have MOS."""
    for aspect in aspects or ():
        if aspect not in run.trained:
            raise InputError(f"No sample of {run.folder} has a MOS for {aspect}.")
    return [aspect for aspect in run.trained if aspects is None or aspect in aspects]


def _unfitted(run: RunFolder) -> int:
    return sum(not run.is_fitted(*each) for each in run.fits())


def _plan_preferences(run: RunFolder) -> str:
    """How many pairs of images people have ordered; "" for none."""
    samples, annotated = (run.samples, run.annotated) if run.is_read else _read_annotated(run)
    used = len(pairs_within(samples, annotated, LEARNABLE_PARTS))
    if annotated is None or not annotated.preferred:
        return ""
    return f", with {used:,} pairs of picks ({len(annotated.preferred) - used:,} are held out)"


def _plan_fit(run: RunFolder) -> str:
    seeds = ", ".join(map(str, run.config.seeds))
    text = f"{'one joint predictor' if run.config.fit.joint else 'a predictor per aspect'}, seeds {seeds}"
    if run.config.adapt and run.start_predictors and run.start_card:
        text = f"move the predictors of {run.start_card.title} as far as the scores carry"
    text += _plan_preferences(run)
    if not run.is_read:
        return text
    try:
        left = _unfitted(run)
    except InputError:  # the backbone is not there yet
        left = len(run.fits())
    return f"{text}, {left} to train"


def transfer(run: RunFolder, aspects: Sequence[Aspect] | None = None) -> None:
    """Refit an aspect's predictor without each group of sources, and predict just those."""
    groups, config = source_groups(run.samples), run.config.transfer
    wanted = [aspect for aspect in _wanted(run, aspects) if aspect in run.aspects]
    if config is not None and len(groups) > 1:
        for aspect in wanted:
            path = run.transfer_file(aspect)
            stamp_or_empty(path.parent, run.identity, run.aligned_from, config)
            if not path.exists():
                targets, states = run.targets(aspect), path.parent / "states"
                frame = leave_source_out(targets, groups, config, run.scale, states, aspect, run.head)
                with atomic_path(path) as partial:
                    frame.to_csv(partial, index=False)


# --- evaluate and ship ---------------------------------------------------------------------------


def ship(run: RunFolder, out: Path | None = None) -> Card:
    """Put a checkpoint together in `out` (default: in the run), with its card.

    An older checkpoint there is replaced. Raises InputError if there is anything else.
    """
    return write_checkpoint(run, out or run.checkpoint_folder)


def register_run(run: RunFolder, folder: Path) -> Candidate:
    """Make the shipped checkpoint a candidate in a registry, with how it compares."""
    path = run.report_folder / COMPARISON_FILE
    comparison = Comparison.from_dict(json.loads(path.read_text("utf-8"))) if path.exists() else None
    return register(run.checkpoint_folder, folder, comparison)


# --- all -----------------------------------------------------------------------------------------

STAGES = (
    Stage(
        "datasets",
        "read and split the data set",
        needs=(),
        makes="samples.jsonl, dataset.json, split.csv",
        run=datasets,
        plan=_plan_datasets,
        is_done=lambda run: run.is_read,
    ),
    Stage(
        "distill",
        "let an online multimodal LLM put scores into words",
        needs=("datasets",),
        makes="distill/",
        run=distill,
        plan=_plan_distill,
        is_done=lambda run: not _questions(run),
        is_wanted=lambda config: config.teacher is not None,
    ),
    Stage(
        "align",
        "fit nano's vision side: quality encoder, quality regressor, prompt alignment, connector",
        needs=("datasets",),
        makes="align/",
        run=align,
        plan=_plan_align,
        is_done=lambda run: run.is_aligned,
        is_wanted=lambda config: config.align is not None,
    ),
    Stage(
        "finetune",
        "train the backbone to describe and rate",
        needs=("datasets", "distill", "align"),
        makes="finetune/",
        run=finetune,
        plan=_plan_finetune,
        is_done=lambda run: run.is_finetuned,
        is_wanted=lambda config: config.finetune is not None,
    ),
    Stage(
        "words",
        "learn from people's descriptions, if that is better on held-out ones",
        needs=("datasets", "align", "finetune"),
        makes="words/",
        run=train_words,
        plan=_plan_words,
        is_done=lambda run: run.has_words,
        is_wanted=lambda config: config.learns_words,
    ),
    Stage(
        "describe",
        "let the backbone, or a server's model, describe and rate; keep the backbone's hidden states",
        needs=("datasets", "align", "finetune", "words"),
        makes="hidden/, served/",
        run=describe,
        plan=_plan_describe,
        is_done=lambda run: not _undescribed(run),
    ),
    Stage(
        "encode",
        "hidden states for what a server's model said, and for the data's own descriptions",
        needs=("datasets", "distill", "align", "finetune", "words", "describe"),
        makes="hidden/",
        run=encode,
        plan=_plan_encode,
        is_wanted=lambda config: config.encode or config.server is not None,
    ),
    Stage(
        "fit",
        "train the predictors from cached hidden states",
        needs=("datasets", "describe", "encode"),
        makes="fit/",
        run=fit,
        plan=_plan_fit,
        is_done=lambda run: not _unfitted(run),
    ),
    Stage(
        "transfer",
        "agreement on sources that the predictor was refitted without",
        needs=("datasets", "describe", "encode"),
        makes="transfer/",
        run=transfer,
        plan=lambda run: "refit without groups of sources",
        is_wanted=lambda config: config.transfer is not None,
    ),
    Stage(
        "evaluate",
        "agreement on the test split; report.html",
        needs=("datasets", "describe", "encode", "fit"),
        makes="report/",
        run=write_outcome,
        plan=lambda run: f"agreement on the test split, {run.report_folder / 'report.html'}",
        is_done=is_written,
    ),
    Stage(
        "ship",
        "put the checkpoint together",
        needs=("datasets", "describe", "encode", "fit", "transfer"),
        makes="checkpoint/",
        run=ship,
        plan=lambda run: f"checkpoint {run.config.name} {run.config.version}, {run.checkpoint_folder}",
    ),
)
"""In the order in which they are run."""

STAGE_NAMES = tuple(stage.name for stage in STAGES)
