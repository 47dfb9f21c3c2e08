"""Stage align: teach nano's connector alone, before the language model is run at all.

A language model of this size hardly learns to attend to random image tokens: its descriptions would ignore
the image. So the tokens of grid cells are trained to lie near the embeddings of words in texts about the
image, and the quality regressor behind the summary tokens is fitted to its scores in closed form. Image
features are computed once and kept, so an epoch takes well under a minute.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.nano import CONNECTOR_FILE, PROMPT_ALIGNERS_FILE, NanoBackbone
from m3agiqa.backbones.nano.connector import ImageFeatures
from m3agiqa.backbones.nano.prompt_alignment import correspondence_logit
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS, QualityRegressor
from m3agiqa.files import latest_folder, replace_folder
from m3agiqa.metrics import srcc
from m3agiqa.samples import Sample
from training.data.distortions import DAMAGE_KINDS
from training.nano.feature_cache import (
    View,
    cached_features,
    captioned_views,
    prompted_views,
    select_rows,
    view_of,
)
from training.nano.fit_prompt_alignment import HeldOutAlignment, fit_and_hold_out
from training.nano.fit_quality_regressor import (
    RegressionData,
    agreement,
    fit_quality_regressor,
    held_out_opinions,
    regression_data,
)
from training.parallel import progress_bar

DONE_FILE = "align.json"
FEATURES_FOLDER = "state-features"  # by this name it is no part of what was made


@dataclass(frozen=True)
class AlignConfig:
    """Optimiser settings, and what is shown."""

    variants: int = 1
    """Versions of each labelled image beside itself, randomly rescaled and recompressed."""
    epochs: int = 8
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0


def align(
    samples: list[Sample], extras: Path | None, scale: MosScale, out: Path, config: AlignConfig
) -> None:
    """Leave the aligned connector in `out`, and beside it how its opinions agree; resumes from there.

    `extras` holds captions and unlabelled images, which are aligned with as well. Images outside the training
    split are only measured on.
    """
    torch.manual_seed(config.seed)
    backbone = NanoBackbone.from_base()
    train = _train_views(samples, extras, scale, config)
    judged = [sample for sample in samples if any(aspect in sample.mos for aspect in JUDGED_ASPECTS)]
    worse = [s for s in judged if s.split != "train" and Aspect.QUALITY in s.mos and not s.distorted]
    originals = [view_of(sample, scale) for sample in judged]
    copies = [View(s.image, (), s.id, DAMAGE_KINDS[i % len(DAMAGE_KINDS)]) for i, s in enumerate(worse)]
    shown = list(dict.fromkeys([*train, *originals, *copies]))
    rows = {view: row for row, view in enumerate(shown)}
    kept = out / FEATURES_FOLDER
    features = cached_features(backbone, shown, kept)
    every = regression_data(judged, scale, select_rows(features, [rows[view] for view in originals]))
    apart = held_out_opinions(every, config.seed)
    report = _judge(backbone.connector.opinions, judged, every, apart, config.seed)
    damaged = select_rows(features, [rows[view] for view in copies])
    report["damaged_below"] = _damaged_below(backbone.connector.opinions, judged, every, worse, damaged)
    files = {view.image: row for view, row in reversed(rows.items()) if not view.damage}
    backbone.prompt_aligners, match = fit_and_hold_out(backbone, samples, extras, scale, features, files)
    report |= match.facts
    report["left_out_srcc"] |= _correspondence(match, judged, apart)
    places = features.grid_cells[[rows[view] for view in train]]
    trainer = _Trainer(_Aligner(backbone, train), config, math.ceil(len(train) / config.batch))
    state = out / "state"
    start = trainer.restore(state)
    with progress_bar(None, "align", total=config.epochs, start=start) as progress:
        for epoch in range(start, config.epochs):
            loss = trainer.epoch(places, epoch)
            replace_folder(state, trainer.save)
            progress.update()
            progress.set_postfix(nats=f"{loss:.3f}")
    save_file(backbone.connector.state_dict(), out / CONNECTOR_FILE)
    save_file(backbone.prompt_aligners.state_dict(), out / PROMPT_ALIGNERS_FILE)
    (out / DONE_FILE).write_text(json.dumps({**asdict(config), **report}, indent=2))
    shutil.rmtree(kept)


def _train_views(
    samples: list[Sample], extras: Path | None, scale: MosScale, config: AlignConfig
) -> list[View]:
    shown = []
    for sample in (sample for sample in samples if sample.split == "train"):
        seeds = ("", *(f"{sample.id} {i}" for i in range(config.variants)))
        shown += [view_of(sample, scale, seed) for seed in seeds]
    return shown + prompted_views(extras) + captioned_views(extras, samples)


def _judge(
    opinions: QualityRegressor, judged: Sequence[Sample], every: RegressionData, apart: Tensor, seed: int
) -> dict[str, Any]:
    """Fit the readers on the training split; how their opinions agree with scores elsewhere.

    Sources left out are measured on images of all splits, with readers fitted on all others (`apart`).
    """
    train = [row for row, sample in enumerate(judged) if sample.split == "train"]
    if train:
        fit_quality_regressor(opinions, every.part(train), seed)
    validation = every.part([row for row, sample in enumerate(judged) if sample.split == "validation"])
    report: dict[str, Any] = {
        "validation_srcc": _srcc(opinions(validation.statistics, validation.appearance), validation.scores),
        "left_out_srcc": agreement(apart, every.scores, judged),
    }
    for aspect, agreements in report["left_out_srcc"].items():
        means = ", ".join(f"{which} {part['mean']:.3f}" for which, part in agreements.items() if part)
        if means:
            sys.stdout.write(f"align: {aspect} on sources left out, SRCC: {means}\n")
    return report


def _correspondence(match: HeldOutAlignment, judged: Sequence[Sample], apart: Tensor) -> dict[str, dict]:
    """How the match alone agrees with scores of correspondence, and with the opinions on looks beside it."""
    opinions = {sample.id: opinion for sample, opinion in zip(judged, apart, strict=True)}
    unknown = torch.full((len(JUDGED_ASPECTS),), math.nan)
    beside = [opinions.get(sample.id, unknown) for sample in match.samples]
    srcc_of = {"match": match.agreement(match.own)}
    if beside:
        srcc_of[str(Aspect.CORRESPONDENCE)] = match.agreement(
            correspondence_logit(match.own, torch.stack(beside))
        )
    return srcc_of


def _srcc(read: Tensor, scores: Tensor) -> dict[Aspect, float]:
    """Of opinions with scores [N, JUDGED_ASPECTS]; nothing where nothing is known."""
    by_aspect = {}
    for column, aspect in enumerate(JUDGED_ASPECTS):
        known = ~scores[:, column].isnan()
        if known.any():
            by_aspect[aspect] = srcc(read[known, column].tolist(), scores[known, column].tolist())
    return by_aspect


def _damaged_below(
    opinions: QualityRegressor,
    judged: Sequence[Sample],
    every: RegressionData,
    worse: Sequence[Sample],
    damaged: ImageFeatures,
) -> dict[str, float]:
    """Share of damaged copies, by damage, whose quality the opinion puts below that of the original."""
    quality = JUDGED_ASPECTS.index(Aspect.QUALITY)
    before = opinions(every.statistics, every.appearance)[:, quality].tolist()
    after = opinions(damaged.statistics, damaged.appearance)[:, quality].tolist()
    original = {sample.id: opinion for sample, opinion in zip(judged, before, strict=True)}
    below_original: dict[str, list[bool]] = {}
    for i, (sample, opinion) in enumerate(zip(worse, after, strict=True)):
        below_original.setdefault(DAMAGE_KINDS[i % len(DAMAGE_KINDS)], []).append(
            opinion < original[sample.id]
        )
    return {kind: sum(below) / len(below) for kind, below in below_original.items()}


class _Aligner(nn.Module):
    """The connector with what judges its place tokens: word embeddings."""

    def __init__(self, backbone: NanoBackbone, train: list[View]) -> None:
        super().__init__()
        self.connector = backbone.connector
        words_of_views = [set(backbone.chat.words(" ".join(view.texts))) for view in train]
        counts = Counter(word for words in words_of_views for word in words)
        # Words said of nearly everything tell nothing, and rare ones cannot be learned.
        vocabulary = sorted(word for word, n in counts.items() if 4 <= n <= 0.4 * len(train))
        self.targets = torch.zeros(len(train), len(vocabulary))
        for row, words in zip(self.targets, words_of_views, strict=True):
            row[[i for i, word in enumerate(vocabulary) if word in words]] = 1
        self.targets /= self.targets.sum(1, keepdim=True).clamp_min(1)
        embeddings = backbone.llm.get_input_embeddings().weight.float()
        self.centre = embeddings.mean(0)  # two thirds of every embedding's length is common to all
        self.words = F.normalize(embeddings[vocabulary] - self.centre, dim=-1).T.contiguous()
        self.sharpness = nn.Parameter(torch.tensor(math.log(15.0)))
        self.frequency = nn.Parameter(torch.tensor([math.log(counts[w] / len(train)) for w in vocabulary]))

    def forward(self, places: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy (nats) of the words said about some training views."""
        tokens = self.connector.grid_tokens(places)
        near = F.normalize(tokens - self.centre, dim=-1) @ self.words
        # A word belongs to the image when it is near to any of its places.
        logits = (near.float() * self.sharpness.exp()).logsumexp(1) + self.frequency
        return -(logits.log_softmax(-1) * self.targets[rows]).sum(1).mean()


class _Trainer:
    """One optimiser run over the aligner, epoch by epoch."""

    def __init__(self, aligner: _Aligner, config: AlignConfig, steps: int) -> None:
        self.aligner, self.config = aligner, config
        self.done = 0
        self.optimizer = torch.optim.AdamW(aligner.parameters(), config.lr, weight_decay=config.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.lr, total_steps=config.epochs * steps, pct_start=0.1
        )

    def epoch(self, places: Tensor, number: int) -> float:
        """The mean loss."""
        self.aligner.train()
        torch.manual_seed(1000 * self.config.seed + number)  # so that resuming changes nothing
        losses = []
        for rows in torch.randperm(len(places)).split(self.config.batch):
            with torch.autocast("cpu", torch.bfloat16):
                loss = self.aligner(places[rows], rows)
            loss.backward()
            losses.append(loss.item())
            torch.nn.utils.clip_grad_norm_(self.aligner.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        self.done = number + 1
        return sum(losses) / len(losses)

    def save(self, folder: Path) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("aligner", "optimizer", "schedule")}
        torch.save({**parts, "done": self.done}, folder / "state.pt")

    def restore(self, state: Path) -> int:
        """Continue from the newest whole state; returns the number of epochs already done."""
        folder = latest_folder(state)
        if folder:
            parts = torch.load(folder / "state.pt", weights_only=True)
            for name in ("aligner", "optimizer", "schedule"):
                getattr(self, name).load_state_dict(parts[name])
            self.done = parts["done"]
        return self.done
