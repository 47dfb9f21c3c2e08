"""What a run came to, measured on its test split and written down as the report."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.card import CARD_FILE
from m3agiqa.checkpoint.comparison import Comparison
from m3agiqa.files import replace_folder, sha256
from m3agiqa.json_lines import write_json
from training.config import plain
from training.data import fingerprint
from training.evaluation.evaluate import evaluate, interval_coverage, prediction_table, summary
from training.evaluation.report import COMPARISON_FILE, write_report
from training.evaluation.report.before_after import compare
from training.run import RunFolder
from training.stages.fit_data import targets_of_conversations


def write_outcome(run: RunFolder) -> dict[str, Any]:
    """Write report.html, metrics.json and tables into the run's `report`, unless they are of what there is.

    With annotations also the comparison with the model before. Returns the summary by aspect.
    """
    out = run.report_folder
    if is_written(run):
        return json.loads((out / "metrics.json").read_text(encoding="utf-8"))["summary"]
    compared = None if run.annotated is None else compare(run)
    if not run.aspects:  # picks alone: no score tells more than the comparison
        replace_folder(out, lambda folder: _write_comparison(run, folder, compared))
        return {}
    tables = [
        prediction_table(run.best(aspect), run.targets(aspect, "test"), run.scale) for aspect in run.aspects
    ]
    table = pd.concat(tables, ignore_index=True)
    measures = summary(table, run.scale)
    for aspect in run.aspects:
        measures[str(aspect)] |= _over_seeds(run, aspect) | _coverage(run, aspect, table)
    scales = dict.fromkeys(run.aspects, run.scale)

    def write(folder: Path) -> None:
        title = f"{run.config.name} {run.version}"
        facts, methods = _provenance(run), _with_given(run)
        write_report(folder, title, table, measures, scales, facts, compare=methods, comparison=compared)
        (folder / "made_from.txt").write_text(_made_from(run))

    replace_folder(out, write)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))["summary"]


def _write_comparison(run: RunFolder, folder: Path, compared: Comparison | None) -> None:
    if compared is not None:
        write_json(folder / COMPARISON_FILE, compared.to_dict())
    write_json(folder / "metrics.json", {"summary": {}})
    (folder / "made_from.txt").write_text(_made_from(run))


def is_written(run: RunFolder) -> bool:
    """Whether the report is of the predictors that there are now. Raises InputError if one is not fitted."""
    path = run.report_folder / "made_from.txt"
    return path.exists() and path.read_text() == _made_from(run)


def _made_from(run: RunFolder) -> str:
    shown = run.config.name, run.config.version, run.config.encode
    made_from = [shown, run.fitted_from, [run.fit_facts(name, seed) for name, seed in run.fits()]]
    if run.annotated is not None:
        made_from.append((run.version, sha256(run.baseline / CARD_FILE)))
    return repr(made_from)


def _coverage(run: RunFolder, aspect: Aspect, table: pd.DataFrame) -> dict[str, float]:
    """Of the intervals, unless they were made from the test split."""
    if run.config.select_on == "test":
        return {}
    part = table[table["aspect"] == str(aspect)]
    predicted, true, sources = (part[column].tolist() for column in ("predicted", "mos", "source"))
    return interval_coverage(run.calibration[aspect], predicted, true, sources, run.scale)


def _over_seeds(run: RunFolder, aspect: Aspect) -> dict[str, Any]:
    """SRCC and PLCC of every seed's predictor on the test split, their mean and spread."""
    if len(run.config.seeds) == 1:
        return {}
    test = run.targets(aspect, "test")
    each = [evaluate(run.predictor(aspect, seed), test, run.scale) for seed in run.config.seeds]
    measures: dict[str, Any] = {}
    for metric in ("srcc", "plcc"):
        values = [result[metric] for result in each]
        measures |= {
            f"{metric}_of_seeds": values,
            f"{metric}_mean": mean(values),
            f"{metric}_std": stdev(values),
        }
    return measures


def _with_given(run: RunFolder) -> dict[str, dict[str, dict]] | None:
    """The same predictors on the data's own descriptions, where these were encoded."""
    if not run.config.encode:
        return None
    measures = {}
    for aspect in run.aspects:
        about = [each for each in run.given if each.conversation.aspect is aspect]
        targets = targets_of_conversations(
            [each for each in about if aspect in each.variant.sample.mos], run.cache, run.backbone_identity
        )
        if len(targets) > 2:
            measures[str(aspect)] = evaluate(run.best(aspect), targets, run.scale)
    return {"reading the data's own descriptions": measures} if measures else None


def _provenance(run: RunFolder) -> dict[str, str]:
    """Facts for a report, by name."""
    config = run.config
    return {
        "run": run.folder.name,
        "backbone": f"{config.backbone}, {'fine-tuned here' if config.finetune else 'as it came'}",
        **({} if run.served is None else {"descriptions": f"by {run.served.model} on a server"}),
        "data": f"{config.data.format}, {len(run.samples):,} samples",
        "data fingerprint": fingerprint(run.samples),
        **_annotations(run),
        "split": json.dumps(plain(config.data.split)),
        "best epoch and seed chosen on": config.select_on,
        "predictor": json.dumps(plain(config.fit)),
        "seeds": ", ".join(map(str, config.seeds)),
        "git revision": _git_revision(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _annotations(run: RunFolder) -> dict[str, str]:
    if run.annotated is None:
        return {}
    return {"annotations": f"{run.annotated.version}, {len(run.annotated.scored):,} samples scored by people"}


def _git_revision() -> str:
    """Of the code that runs, with "-dirty" where it has uncommitted changes; "unknown" outside a clone."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
