"""The report's page: what it shows, put into the template."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from m3agiqa.aspects import RATING_WORDS, Aspect, MosScale
from m3agiqa.checkpoint.comparison import METRIC_NAMES, Comparison
from training.evaluation.report import plots
from training.evaluation.report.examples import ExampleGroup, example_groups

EXAMPLES_PER_GROUP = 4
"""Images in each group of cases."""

CORRELATION_LABELS = {"srcc": "SRCC", "plcc": "PLCC", "plcc_logistic": "PLCC, logistic fit", "krcc": "KRCC"}
AGREEMENT_LABELS = {**CORRELATION_LABELS, "rmse": "RMSE"}
CLASSIFICATION_LABELS = {
    "accuracy": "Accuracy",
    "rough_accuracy": "Rough accuracy",
    "precision_macro": "Precision, macro",
    "f1_macro": "F1, macro",
    "precision_weighted": "Precision, weighted",
    "f1_weighted": "F1, weighted",
}
COMPARED_METRICS = {"srcc": "SRCC", "plcc": "PLCC"}
THIS_RUN, SPOKEN_WORDS = "This run", "Spoken rating words"


@dataclass(frozen=True)
class Matrix:
    """Confusion of five words: counts and, beside each, its share of the row."""

    title: str
    columns: str
    """What the columns are: "Predicted" or "Spoken"."""
    rows: list[tuple[str, list[tuple[int, float]]]]
    unparsed: int


@dataclass(frozen=True)
class AspectPart:
    """What the page says about one aspect."""

    name: str
    scale: MosScale
    measures: dict
    scatter: Markup
    matrices: list[Matrix]
    generators: Markup | None
    groupings: dict[str, list[dict]]
    """Rows of the tables of groups, by their titles."""
    same_prompt: dict
    cases: list[ExampleGroup]


def render(
    title: str,
    table: pd.DataFrame,
    summary: dict[str, dict],
    scales: Mapping[Aspect, MosScale],
    facts: Mapping[str, str],
    groups: pd.DataFrame,
    compare: Mapping[str, dict[str, dict]],
    comparison: Comparison | None = None,
) -> str:
    """The page as HTML; arguments as in report.write_report, `groups` as in its `groups`."""
    aspects = [aspect for aspect in Aspect if str(aspect) in summary]
    methods = dict(_methods(summary, compare))
    parts = [_part(aspect, table, summary[aspect], scales[aspect], groups) for aspect in aspects]
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            images=table["image"].nunique(),
            splits=sorted(table["split"].dropna().unique()),
            parts=parts,
            radar=_radar(methods, aspects) if len(aspects) > 1 else None,
            methods=methods,
            best={(a, m): _best(methods, a, m) for a in aspects for m in COMPARED_METRICS},
            facts=facts,
            agreement=AGREEMENT_LABELS,
            classes=CLASSIFICATION_LABELS,
            compared=COMPARED_METRICS,
            comparison=comparison,
            before_after=METRIC_NAMES,
            ratings=RATING_WORDS,
            this_run=THIS_RUN,
            colours=len(plots.SERIES_COLORS),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent}
    return environment


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A value for readers: "0.912", "−0.100", "+0.250"; a dash where there is none."""
    if _missing(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share for readers: "43.7 %"."""
    return "–" if _missing(share) else f"{100 * share:.1f} %"


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _methods(
    summary: dict[str, dict], compare: Mapping[str, dict[str, dict]]
) -> Iterator[tuple[str, dict[str, dict]]]:
    yield THIS_RUN, summary
    spoken = {
        aspect: {name: measures[f"spoken_{name}"] for name in COMPARED_METRICS}
        for aspect, measures in summary.items()
        if "spoken_srcc" in measures
    }
    if spoken:
        yield SPOKEN_WORDS, spoken
    yield from compare.items()


def _radar(methods: dict[str, dict[str, dict]], aspects: list[Aspect]) -> Markup:
    """All aspects' SRCC and PLCC as spokes."""
    spokes = {
        name: {
            f"{aspect.capitalize()} {label}": measures[aspect][metric]
            for aspect in aspects
            for metric, label in COMPARED_METRICS.items()
            if metric in measures.get(aspect, {})
        }
        for name, measures in methods.items()
    }
    return plots.radar(spokes)


def _best(methods: dict[str, dict[str, dict]], aspect: Aspect, metric: str) -> float | None:
    """The highest value of a column, if more than one method has one."""
    values = [measures.get(aspect, {}).get(metric) for measures in methods.values()]
    values = [value for value in values if not _missing(value)]
    return max(values) if len(values) > 1 else None


def _part(
    aspect: Aspect, table: pd.DataFrame, measures: dict, scale: MosScale, groups: pd.DataFrame
) -> AspectPart:
    rows = table[table["aspect"] == str(aspect)]
    inside = groups[groups["aspect"] == str(aspect)]
    by = dict(list(inside.groupby("grouping")))
    generators = by["generator"]
    plotted = generators["srcc"].notna().sum() > 1
    return AspectPart(
        name=str(aspect),
        scale=scale,
        measures=measures,
        scatter=plots.scatter(rows["mos"], rows["predicted"], scale),
        matrices=list(_matrices(measures)),
        generators=plots.dots(generators) if plotted else None,
        groupings={
            name.capitalize(): by[name].to_dict("records")
            for name in ("generator", "source", "prompt length")
        },
        same_prompt=by["same prompt"].to_dict("records")[0] if "same prompt" in by else {"prompts": 0},
        cases=example_groups(rows, scale, EXAMPLES_PER_GROUP),
    )


def _matrices(measures: dict) -> Iterator[Matrix]:
    kinds = ("", "Words of the predicted MOS", "Predicted"), ("spoken_", "Words that were spoken", "Spoken")
    for prefix, title, columns in kinds:
        counts = measures.get(f"{prefix}confusion")
        if counts is not None:
            rows = [
                (str(word), [(count, count / max(sum(row), 1)) for count in row])
                for word, row in zip(RATING_WORDS, counts, strict=True)
            ]
            yield Matrix(title, columns, rows, measures.get(f"{prefix}unparsed", 0))
