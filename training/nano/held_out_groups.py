"""How well nano's closed-form parts agree with scores on held-out sources, generators and prompts.

These stand in for images that nobody trained on. Everything that is fitted to scores or texts is fitted anew
without the group that it is then measured on: the quality regressor, the alignment with prompts, and for
comparison a plain ridge regression on the vision encoder's pooled features. Images without scores, some of
which come from the same generators, are left out; captioned photographs stay. The language model has no part
in it, as it would have to be trained again for each group.
"""

from __future__ import annotations

import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.nano import NanoBackbone
from m3agiqa.backbones.nano.prompt_alignment import HEAD_CHANNELS, WHOLE_CELLS, correspondence_logit
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS
from m3agiqa.grouping import fold_prompt
from m3agiqa.samples import Sample
from training.nano import fit_prompt_alignment, fit_quality_regressor
from training.nano.feature_cache import cached_features, captioned_views, select_features, view_of
from training.nano.fit_quality_regressor import MIN_IMAGES_PER_SOURCE, is_clean, ridge
from training.parallel import progress_bar
from training.stages.leave_source_out import leave_one_group_out, mean_inside

PROMPT_FOLDS = 5
RIDGE_PENALTY = 1.0  # in mean squared lengths of a row
PROXY_COLUMNS = ("left_out", "aspect", "n", "groups", "reads", "srcc", "low", "high")
PLAIN_RIDGE, FULL_READERS = "plain ridge", "readers"  # what a row measures: the baseline, nano's own parts


@dataclass(frozen=True)
class HeldOutGrouping:
    """What is left out together."""

    name: str
    of: Callable[[Sample], str]
    prompts_too: bool
    """Whether the prompts of what is left out are forgotten too, whatever image they are said of."""
    inside: bool
    """Whether agreement is measured inside each group; otherwise over all of them at once."""


def prompt_fold(sample: Sample) -> str:
    """Images of one prompt are in one fold; those without prompts are each by themselves."""
    text = fold_prompt(sample.prompt) or sample.id
    return str(zlib.crc32(text.encode()) % PROMPT_FOLDS)


HELD_OUT_GROUPINGS = (
    HeldOutGrouping("source", lambda sample: str(sample.source), prompts_too=True, inside=True),
    HeldOutGrouping("generator", lambda sample: str(sample.generator), prompts_too=False, inside=True),
    HeldOutGrouping("prompt", prompt_fold, prompts_too=True, inside=False),
)


def evaluate_held_out_groups(
    samples: Sequence[Sample], extras: Path | None, scale: MosScale, folder: Path, seed: int = 0
) -> pd.DataFrame:
    """One row for each grouping, aspect and model (column `reads`), with the columns PROXY_COLUMNS.

    Quality regressor and prompt aligner are fitted to all samples outside a group. Agreement is measured on
    clean AI-generated images alone, with 95 % intervals (500 resamples inside the groups). `folder` keeps the
    image features until all is done, so that an interruption costs little.
    """
    backbone = NanoBackbone.from_base()
    originals = [view_of(sample, scale) for sample in samples]
    shown = list(dict.fromkeys([*originals, *captioned_views(extras, samples)]))
    rows = {view: row for row, view in enumerate(shown)}
    features = cached_features(backbone, shown, folder)
    own = select_features(features, [rows[view] for view in originals])
    examples = fit_quality_regressor.regression_data(samples, scale, own)
    pooled = own.grid_cells[:, :WHOLE_CELLS, :HEAD_CHANNELS].float().mean(1)
    files = {view.image: row for view, row in reversed(rows.items())}
    prompted = [sample for sample in samples if sample.prompt]
    material = fit_prompt_alignment.alignment_data(
        backbone, prompted, extras, scale, features, files, prompted_too=False
    )
    prompted_rows = [files[sample.image] for sample in prompted]
    with (
        torch.inference_mode(),
        progress_bar(None, "proxies", total=len(HELD_OUT_GROUPINGS)) as progress,
    ):
        table_rows: list[tuple] = []
        for grouping in HELD_OUT_GROUPINGS:
            groups = [grouping.of(sample) for sample in samples]
            prompted_groups = [grouping.of(sample) for sample in prompted]
            quality_logits = fit_quality_regressor.held_out_quality_logits(examples, groups)
            alignment = fit_prompt_alignment.hold_out_groups(
                material, prompted, prompted_rows, prompted_groups, grouping.prompts_too
            )
            with_prompt = [row for row, sample in enumerate(samples) if sample.prompt]
            correspondence = torch.full((len(samples),), math.nan)
            correspondence[with_prompt] = correspondence_logit(
                alignment.own, quality_logits[with_prompt].float()
            )
            predicted = {aspect: quality_logits[:, column] for column, aspect in enumerate(JUDGED_ASPECTS)}
            predicted[Aspect.CORRESPONDENCE] = correspondence
            table_rows += _rows(grouping, samples, groups, FULL_READERS, predicted)
            table_rows += _rows(grouping, samples, groups, PLAIN_RIDGE, _ridges(pooled, samples, groups))
            progress.update()
    shutil.rmtree(folder)
    return pd.DataFrame(table_rows, columns=list(PROXY_COLUMNS))


def as_markdown(table: pd.DataFrame) -> str:
    """A table for people: a line for each grouping and aspect."""
    lines = [
        "| left out | aspect | images | plain ridge on the head | nano's closed-form parts |",
        "|---|---|---|---|---|",
    ]
    for (grouping, aspect), both in table.groupby(["left_out", "aspect"], sort=False):
        cells = {row.reads: f"{row.srcc:.2f} ({row.low:.2f} to {row.high:.2f})" for row in both.itertuples()}
        count = f"{both['n'].iloc[0]:,}"
        lines.append(f"| {grouping} | {aspect} | {count} | {cells[PLAIN_RIDGE]} | {cells[FULL_READERS]} |")
    return "\n".join(lines) + "\n"


def _rows(
    grouping: HeldOutGrouping,
    samples: Sequence[Sample],
    groups: Sequence[str],
    reads: str,
    predicted: dict[Aspect, Tensor],
) -> Iterator[tuple]:
    for aspect in Aspect:
        frame = pd.DataFrame(
            {
                "group": groups if grouping.inside else "all",
                "mos": [sample.mos.get(aspect, math.nan) for sample in samples],
                "predicted": predicted[aspect].numpy(),
                "clean": [is_clean(sample) for sample in samples],
            }
        )
        frame = frame[frame["clean"]].dropna()
        parts = [
            (part["predicted"].to_numpy(), part["mos"].to_numpy())
            for _, part in frame.groupby("group")
            if len(part) >= MIN_IMAGES_PER_SOURCE
        ]
        if parts:
            n = sum(len(mos) for _, mos in parts)
            yield grouping.name, str(aspect), n, len(parts), reads, *mean_inside(parts)


def _ridges(pooled: Tensor, samples: Sequence[Sample], groups: Sequence[str]) -> dict[Aspect, Tensor]:
    """Of each aspect, scores [N] by a ridge that was fitted without the image's group."""
    x = pooled.double()

    def scores(aspect: Aspect) -> Tensor:
        mos = torch.tensor([sample.mos.get(aspect, math.nan) for sample in samples], dtype=torch.double)

        def fit(train: list[int], _: list[int]) -> tuple[Tensor, Tensor, Tensor] | None:
            train = [row for row in train if not mos[row].isnan()]
            if not train:
                return None
            mean, spread = x[train].mean(0), x[train].std(0) + 1e-6
            centred_mos = (mos[train] - mos[train].mean())[:, None]
            return mean, spread, ridge((x[train] - mean) / spread, centred_mos, RIDGE_PENALTY)

        def predict(model: tuple[Tensor, Tensor, Tensor], rows: list[int]) -> Tensor:
            mean, spread, weight = model
            return ((x[rows] - mean) / spread @ weight)[:, 0]

        return leave_one_group_out(fit, predict, groups, torch.full_like(mos, math.nan))

    return {aspect: scores(aspect) for aspect in Aspect}
