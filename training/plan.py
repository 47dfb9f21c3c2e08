"""What a run will do, stage by stage, as far as it can be known before it does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m3agiqa.errors import InputError
from m3agiqa.samples import read_samples
from training.config import RunConfig
from training.nano.align import DONE_FILE as ALIGNED_FILE
from training.run import FACTS_FILE, Run
from training.stages.distill import Replies
from training.stages.distill import plan as questions
from training.stages.finetune import DONE_FILE as FINETUNED_FILE


@dataclass(frozen=True)
class Step:
    """One stage of a run."""

    name: str
    state: Literal["done", "to do", "left out"]
    text: str


def plan(run: Run) -> list[Step]:
    """All stages in their order. Counts are of what is known now: before `datasets` there are none.

    Raises M3AgiqaError for settings that cannot work.
    """
    run.check()
    config = run.config
    read = (run.folder / FACTS_FILE).exists()
    told = f" and annotations from {config.annotations}" if config.annotations else ""
    tuned = f"tune {', '.join(config.finetune.tune)} of {config.backbone}" if config.finetune else ""
    return [
        Step("datasets", _done(read), f"read {config.data.format} from {config.data.path}{told}"),
        _distill(run, read),
        _optional("align", config.align, run.aligned / ALIGNED_FILE, "teach the connector alone"),
        _optional("finetune", config.finetune, run.finetuned / FINETUNED_FILE, tuned),
        _describe(run, read),
        _encode(config),
        _fit(run, read),
        Step("transfer", "to do" if config.transfer else "left out", "refit without groups of sources"),
        Step(
            "evaluate", _evaluated(run), f"agreement on the test split, {run.folder / 'report/report.html'}"
        ),
        Step("ship", "to do", f"checkpoint {config.name} {config.version}, {run.folder / 'checkpoint'}"),
    ]


def _done(done: bool) -> Literal["done", "to do"]:
    return "done" if done else "to do"


def _evaluated(run: Run) -> Literal["done", "to do"]:
    try:
        return _done(run.is_evaluated)
    except InputError:  # something before it is still to do
        return "to do"


def _optional(name: str, settings: object, file: Path, text: str) -> Step:
    return Step(name, "left out" if settings is None else _done(file.exists()), text)


def _distill(run: Run, read: bool) -> Step:
    if run.config.teacher is None:
        return Step("distill", "left out", "no teacher is set")
    who = ", then ".join(run.config.teacher.names)
    if not read:
        return Step("distill", "to do", f"ask {who}")
    journal = Replies(run.folder / "distill" / "replies.jsonl")
    count = len(list(questions(read_samples(run.folder / "samples.jsonl"), journal, run.scale)))
    return Step("distill", _done(count == 0), f"ask {who} about {count:,} samples")


def _describe(run: Run, read: bool) -> Step:
    server = run.config.server
    who = f"let {server.model or 'the model'} at {server.url} " if server else ""
    if not read:
        return Step("describe", "to do", f"{who}speak about all samples")
    wanted = [(case, aspect) for case in run.cases for aspect in case.aspects]
    text = f"{who}speak about {len(run.samples):,} samples in {len(wanted):,} conversations"
    if run.served is not None:
        missing = len(run.served.missing(run.cases))
        return Step("describe", _done(missing == 0), f"{text}, {missing:,} of them new")
    try:
        missing = sum(case.key(aspect, run.identity) not in run.cache for case, aspect in wanted)
    except InputError:  # the backbone is not there yet
        return Step("describe", "to do", text)
    return Step("describe", _done(missing == 0), f"{text}, {missing:,} of them new")


def _encode(config: RunConfig) -> Step:
    said = ["what the server's model said"] if config.server else []
    own = ["the test images' own descriptions"] if config.encode or not said else []
    wanted = config.encode or config.server
    return Step("encode", "to do" if wanted else "left out", f"read {' and '.join(said + own)}")


def _fit(run: Run, read: bool) -> Step:
    seeds = ", ".join(map(str, run.config.seeds))
    text = f"{'one joint predictor' if run.config.fit.joint else 'a predictor per aspect'}, seeds {seeds}"
    if not read:
        return Step("fit", "to do", text)
    left = sum(not _is_fitted(run, *each) for each in run.fits())
    return Step("fit", _done(left == 0), f"{text}, {left} to train")


def _is_fitted(run: Run, name: str, seed: int) -> bool:
    try:
        return run.is_fitted(name, seed)
    except InputError:  # the backbone is not there yet
        return False
