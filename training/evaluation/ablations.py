"""Stage ablate: a grid of settings, several seeds each, as one table in the shape of Tables III and IV.

What differs is configuration: the predictor and its losses (training.stages.fit), which conversation it reads
(training.stages.predictor_input) and whether the backbone was fine-tuned. All of it reuses the cached
hidden states of one run.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.loading import load_backbone
from m3agiqa.errors import InputError
from m3agiqa.json_lines import read_json_lines
from m3agiqa.metrics import plcc, srcc
from training.config import build, merged, plain
from training.data.variants import own_variants
from training.parallel import progress_bar
from training.run import RunFolder
from training.stages.describe import EncodedConversation, describe, encode
from training.stages.fit import FitConfig, fit, predict
from training.stages.fit_data import Target, conversations_to_encode, parts, targets, targets_of_conversations
from training.stages.hidden_cache import backbone_id
from training.stages.predictor_input import PredictorInput

RESULTS_FILE = "results.jsonl"


@dataclass(frozen=True)
class AblationTable:
    """Rows of one table: what each changes, as a mapping with `fit`, `reading` and `finetuned`."""

    title: str
    rows: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class AblationConfig:
    """A grid over one finished run."""

    run: Path
    """Folder of a run whose stage describe is done."""
    tables: list[AblationTable]
    aspect: Aspect = Aspect.QUALITY
    seeds: tuple[int, ...] = (0, 1, 2)
    shared: dict[str, Any] = field(default_factory=dict)
    """Settings of all rows; what neither these nor a row says is the run's own."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise InputError("seeds: give at least one.")


@dataclass(frozen=True)
class RowSettings:
    """All settings of one row."""

    fit: FitConfig = field(default_factory=FitConfig)
    reading: PredictorInput = field(default_factory=PredictorInput)
    finetuned: bool = True
    """Whether the backbone that describes and encodes was fine-tuned ("w/ ft") or not ("w/o ft")."""


@dataclass(frozen=True)
class Job:
    """One predictor to be trained."""

    run: Path
    aspect: Aspect
    row: RowSettings
    seed: int
    made_from: str
    """Which data and backbone the states are of."""

    @property
    def key(self) -> str:
        """The same for the same settings on the same states, whatever rows they stand in."""
        facts = json.dumps([self.aspect, plain(self.row), self.seed, self.made_from], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


def ablate(settings: dict[str, Any], path: Path, out: Path, processes: int = 1) -> str:
    """Run the grid of some settings and return its tables as Markdown, which `out`/ablations.md keeps.

    `path` is where the settings come from, for errors.

    Resumes: predictors in `out`/results.jsonl are not trained again. Raises InputError.
    """
    config = build(AblationConfig, settings, path)
    run = RunFolder.open(config.run)
    rows = [
        (t.title, name, _row_settings(config, run, changes, path))
        for t in config.tables
        for name, changes in t.rows.items()
    ]
    _prepare(run, config.aspect, [row for _, _, row in rows])
    jobs = {job.key: job for _, _, row in rows for job in _jobs(config, run, row)}
    out.mkdir(parents=True, exist_ok=True)
    for done in _train(
        [job for key, job in jobs.items() if key not in _results(out)], out, processes, len(jobs)
    ):
        with (out / RESULTS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(done) + "\n")
    results = _results(out)
    text = _markdown(config, run, rows, results)
    (out / "ablations.md").write_text(text, encoding="utf-8")
    return text


def _row_settings(config: AblationConfig, run: RunFolder, changes: dict[str, Any], path: Path) -> RowSettings:
    own = {"fit": plain(run.config.fit)}
    return build(RowSettings, merged(merged(own, config.shared), changes), path)


def _jobs(config: AblationConfig, run: RunFolder, row: RowSettings) -> list[Job]:
    """One for each seed."""
    made_from = f"{run.content} {_describing_identity(run, row)} {run.config.select_on}"
    return [Job(config.run, config.aspect, row, seed, made_from) for seed in config.seeds]


def _results(out: Path) -> dict[str, dict]:
    """Results so far, by the key of their job."""
    path = out / RESULTS_FILE
    return {row["key"]: row for _, row in read_json_lines(path)} if path.exists() else {}


# --- states --------------------------------------------------------------------------------------


def _folder(run: RunFolder, row: RowSettings) -> Path:
    return run.backbone_folder if row.finetuned else run.untuned_folder


def _prepare(run: RunFolder, aspect: Aspect, rows: list[RowSettings]) -> None:
    """Generate and encode what the rows read and the run's cache does not hold yet."""
    backbone = run.config.backbone
    for row in {(each.reading, each.finetuned): each for each in rows}.values():
        folder = _folder(run, row)
        needed = {*row.reading.needs(aspect)}
        samples = [
            variant.sample for variant in run.variants if variant.kind == "own" and aspect in variant.aspects
        ]
        variants = own_variants(samples, [each for each in Aspect if each in needed])
        if row.finetuned:
            run.describe(variants, run.cache)
        else:
            describe(variants, backbone, folder, run.cache)
        if not row.reading.is_generated:
            encode(_conversations(run, aspect, row), backbone, folder, run.cache)


def _encoding_identity(run: RunFolder, row: RowSettings) -> str:
    return backbone_id(run.config.backbone, _folder(run, row))


def _describing_identity(run: RunFolder, row: RowSettings) -> str:
    """Of whoever generated the descriptions: the run's own, or the backbone without fine-tuning."""
    return run.identity if row.finetuned else _encoding_identity(run, row)


def _conversations(run: RunFolder, aspect: Aspect, row: RowSettings) -> list[EncodedConversation]:
    return conversations_to_encode(
        run.variants, run.cache, _describing_identity(run, row), aspect, row.reading
    )


def _targets(run: RunFolder, aspect: Aspect, row: RowSettings) -> list[Target]:
    if row.reading.is_generated:
        return targets(run.variants, run.cache, _describing_identity(run, row), aspect, run.scale)
    return targets_of_conversations(_conversations(run, aspect, row), run.cache, _encoding_identity(run, row))


# --- predictors ----------------------------------------------------------------------------------


def _train(jobs: list[Job], out: Path, processes: int, total: int) -> Iterator[dict]:
    """Results as they come; one process trains in this one."""
    with progress_bar(None, "ablate", total=total, start=total - len(jobs)) as progress:
        if processes <= 1:
            for job in jobs:
                yield _result(job, out)
                progress.update()
            return
        with ProcessPoolExecutor(processes, _process_context(), _begin, (processes,)) as pool:
            try:
                for future in as_completed([pool.submit(_result, job, out) for job in jobs]):
                    yield future.result()
                    progress.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _process_context() -> multiprocessing.context.BaseContext:
    """Processes are forked from one that has imported everything, where the system can do that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _begin(processes: int) -> None:
    """Take a part of the cores, and end with the process that started this one, even if it was killed."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@lru_cache(maxsize=1)
def _loaded(
    run: Path, aspect: Aspect, reading: PredictorInput, finetuned: bool
) -> tuple[RunFolder, list[Target]]:
    opened = RunFolder.open(run)
    return opened, _targets(opened, aspect, RowSettings(reading=reading, finetuned=finetuned))


@lru_cache(maxsize=1)
def _head(backbone: str, folder: Path) -> torch.Tensor:
    return load_backbone(backbone, folder).head.float()


def _result(job: Job, out: Path) -> dict:
    row = job.row
    run, all_targets = _loaded(job.run, job.aspect, row.reading, row.finetuned)
    config = replace(row.fit, seed=job.seed)
    vocab = config.projection == "vocab"
    head = _head(run.config.backbone, _folder(run, row)) if vocab else None
    chosen_on = run.config.select_on
    part = parts(all_targets, ("train", chosen_on, "test"), job.run)
    state = out / "states" / job.key
    predictor, validation_srcc = fit(
        part["train"], part[chosen_on], config, state / "state", job.key, head, run.unit
    )
    predicted = predict(predictor, [target.states for target in part["test"]], head)
    true = [target.mos for target in part["test"]]
    shutil.rmtree(state)  # with its result it is of no more use
    return {
        "key": job.key,
        "seed": job.seed,
        "variant": plain(row),
        "validation_srcc": validation_srcc,
        "srcc": srcc(predicted, true),
        "plcc": plcc(predicted, true),
        "n": len(true),
        "weights": sum(parameter.numel() for parameter in predictor.parameters()),
    }


# --- table ---------------------------------------------------------------------------------------


def _markdown(
    config: AblationConfig, run: RunFolder, rows: list[tuple[str, str, RowSettings]], results: dict[str, dict]
) -> str:
    tables = []
    for table in config.tables:
        lines = [
            f"## {table.title}",
            "",
            "| setting | SRCC | PLCC | validation SRCC | weights |",
            "|---|---|---|---|---|",
        ]
        for title, name, row in rows:
            if title == table.title:
                per_seed = [results[job.key] for job in _jobs(config, run, row)]
                cells = [_spread(per_seed, column) for column in ("srcc", "plcc", "validation_srcc")]
                lines.append(f"| {name} | {' | '.join(cells)} | {per_seed[0]['weights']:,} |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def _spread(per_seed: list[dict], column: str) -> str:
    values = [row[column] for row in per_seed]
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"
