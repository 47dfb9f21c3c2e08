"""The report of a run: one self-contained HTML page, and its numbers as CSV and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.checkpoint.comparison import Comparison
from m3agiqa.errors import InputError
from m3agiqa.json_lines import write_json
from training.evaluation.evaluate import PREDICTION_COLUMNS, by_group, by_prompt_length, within_prompts

COMPARISON_FILE = "comparison.json"
GROUPING_NAMES = ("generator", "source", "prompt length", "same prompt")


def write_report(
    out: Path,
    title: str,
    table: pd.DataFrame,
    summary: dict[str, dict],
    scales: Mapping[Aspect, MosScale],
    facts: Mapping[str, str],
    *,
    compare: Mapping[str, dict[str, dict]] | None = None,
    comparison: Comparison | None = None,
) -> Path:
    """Write report.html, predictions.csv, groups.csv and metrics.json into `out`; return the page's path.

    With a comparison with the model before, also comparison.json and comparison.csv.

    `table` is of evaluate.prediction_table and `summary` of evaluate.summary; `facts` tell where the
    predictions come from (settings, revision, fingerprint of the data). `compare` has other methods to be
    set beside this run: name -> aspect -> {"srcc": …, "plcc": …}. The same input gives the same bytes.
    Raises InputError if there is nothing to report or matplotlib is missing.
    """
    lacking = [column for column in PREDICTION_COLUMNS if column not in table]
    if lacking:
        raise InputError(f"The table of predictions lacks the columns {', '.join(lacking)}.")
    if table.empty:
        raise InputError("There are no predictions to report: no image of the chosen split has a MOS.")
    try:
        from training.evaluation.report.page import render
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise InputError('The plots of the report need matplotlib: pip install "m3agiqa[train]".') from error
    group_table = groups(table)
    page = render(title, table, summary, scales, facts, group_table, compare or {}, comparison)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "predictions.csv", index=False, lineterminator="\n")
    group_table.to_csv(out / "groups.csv", index=False, lineterminator="\n")
    content = {
        "title": title,
        "facts": dict(facts),
        "scales": {str(aspect): [scale.low, scale.high] for aspect, scale in scales.items()},
        "summary": summary,
        "compare": dict(compare or {}),
    }
    write_json(out / "metrics.json", content)
    if comparison is not None:
        rows = pd.DataFrame(comparison.to_records())
        rows.to_csv(out / "comparison.csv", index=False, lineterminator="\n")
        write_json(out / COMPARISON_FILE, comparison.to_dict())
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def groups(table: pd.DataFrame) -> pd.DataFrame:
    """Agreement inside all groups: those of evaluate.by_group with a column `grouping` before.

    "same prompt" has one row an aspect, the mean inside prompts, and their number in the column `prompts`.
    """
    tables = (
        by_group(table, "generator"),
        by_group(table, "source"),
        by_prompt_length(table),
        within_prompts(table).assign(group="mean inside prompts"),
    )
    named = [
        group_table.assign(grouping=name) for name, group_table in zip(GROUPING_NAMES, tables, strict=True)
    ]
    joined = pd.concat(named, ignore_index=True)
    joined["prompts"] = joined["prompts"].astype("Int64")
    return joined[["grouping", *tables[0].columns, "prompts"]]
