"""Stage align: fit nano's vision side, before the language model is run at all.

The quality encoder is fine-tuned to scores; the quality regressor and the prompt alignment are fitted in
closed form. A language model of this size hardly learns to attend to random image tokens: its descriptions
would ignore the image. So the connector is trained to put the tokens of grid cells near the embeddings of
words in texts about the image. Image features are computed once and kept.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.cpu_precision import fast_autocast
from m3agiqa.backbones.nano import (
    ADAPTER_FOLDER,
    CONNECTOR_FILE,
    PROMPT_ALIGNERS_FILE,
    QUALITY_ENCODER_FILE,
    NanoBackbone,
)
from m3agiqa.backbones.nano.grounded_text import write_first_estimates
from m3agiqa.backbones.nano.prompt_alignment import correspondence_logit
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS, QualityRegressor
from m3agiqa.metrics import srcc
from m3agiqa.samples import Sample
from training.nano.epochs import Stateful, train_in_epochs
from training.nano.feature_cache import (
    ImageView,
    cached_features,
    captioned_views,
    prompted_views,
    select_features,
    view_of,
)
from training.nano.fit_first_estimates import fit_first_estimates
from training.nano.fit_prompt_alignment import HeldOutAlignment, fit_and_hold_out
from training.nano.fit_quality_encoder import EncoderConfig, fit_quality_encoder, learned_weights
from training.nano.fit_quality_regressor import (
    RegressionData,
    agreement_by_aspect,
    fit_quality_regressor,
    held_out_quality_logits,
    regression_data,
)

AlignedPart = Literal["quality_encoder", "quality_regressor", "prompt_alignment", "connector"]
DONE_FILE = "align.json"
MATCH_SHARE = 0.6  # of the prompt's match beside the quality logits; chosen on validation images
FEATURES_FOLDER = "state-features"  # by this name it is no part of what was made


@dataclass(frozen=True)
class AlignConfig:
    """What is fitted, settings of the optimiser, and how many versions of each image are trained on."""

    parts: tuple[AlignedPart, ...] = get_args(AlignedPart)
    """What is fitted anew; other parts are those of `start`."""
    variants: int = 1
    """Versions of each labelled image beside itself, randomly rescaled and recompressed."""
    epochs: int = 8
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """How the quality encoder is fine-tuned."""
    seed: int = 0


def align(
    samples: list[Sample],
    extras: Path | None,
    scale: MosScale,
    out: Path,
    config: AlignConfig,
    init_from: Path | None = None,
) -> None:
    """Leave in `out` the aligned connector, and how its quality logits agree with scores; resumes from there.

    `extras` holds captions and unlabelled images, which are aligned with as well. Images outside the training
    split are only measured on. Parts that are not fitted, and the adapter, are those of the checkpoint
    `init_from`.
    """
    torch.manual_seed(config.seed)
    backbone = NanoBackbone.for_training(init_from)
    image_encoder = backbone.image_encoder
    train = _train_views(samples, extras, scale, config) if "connector" in config.parts else []
    judged = [sample for sample in samples if any(aspect in sample.mos for aspect in JUDGED_ASPECTS)]
    originals = [view_of(sample, scale) for sample in judged]
    if "quality_encoder" in config.parts:
        fit_quality_encoder(image_encoder, samples, out, config.encoder, config.seed)
    shown = list(dict.fromkeys([*train, *originals]))
    rows = {view: row for row, view in enumerate(shown)}
    kept = out / FEATURES_FOLDER
    features = cached_features(backbone, shown, kept)
    own_features = select_features(features, [rows[view] for view in originals])
    data = regression_data(judged, scale, own_features)
    held_out = held_out_quality_logits(data)
    regressor = image_encoder.connector.quality_regressor
    report = _fit_and_measure(regressor, judged, data, held_out)
    if "prompt_alignment" in config.parts:
        files = {view.image: row for view, row in reversed(rows.items())}
        image_encoder.prompt_aligners, alignment = fit_and_hold_out(
            backbone, samples, extras, scale, features, files
        )
        report |= alignment.facts
        report["left_out_srcc"] |= _correspondence_srcc(alignment, judged, held_out)
    image_encoder.prompt_aligners.set_share(MATCH_SHARE)
    write_first_estimates(out, fit_first_estimates(backbone, judged, own_features, scale))
    if "connector" in config.parts:
        grid_cells = features.grid_cells[[rows[view] for view in train]]
        _train_connector(backbone, train, grid_cells, out, config)
    save_file(image_encoder.connector.state_dict(), out / CONNECTOR_FILE)
    save_file(image_encoder.prompt_aligners.state_dict(), out / PROMPT_ALIGNERS_FILE)
    if "quality_encoder" in config.parts:
        save_file(learned_weights(image_encoder.quality_encoder), out / QUALITY_ENCODER_FILE)
    elif init_from is not None and (init_from / QUALITY_ENCODER_FILE).exists():
        shutil.copy(init_from / QUALITY_ENCODER_FILE, out / QUALITY_ENCODER_FILE)
    if init_from is not None and (init_from / ADAPTER_FOLDER).is_dir():
        shutil.copytree(init_from / ADAPTER_FOLDER, out / ADAPTER_FOLDER, dirs_exist_ok=True)
    (out / DONE_FILE).write_text(json.dumps({**asdict(config), **report}, indent=2))
    shutil.rmtree(kept)


def _train_connector(
    backbone: NanoBackbone, train: list[ImageView], grid_cells: Tensor, out: Path, config: AlignConfig
) -> None:
    aligner = _Aligner(backbone, train).train()
    optimizer = torch.optim.AdamW(aligner.parameters(), config.lr, weight_decay=config.weight_decay)
    steps = config.epochs * math.ceil(len(train) / config.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps, pct_start=0.1)

    def epoch(number: int) -> float:
        torch.manual_seed(1000 * config.seed + number)  # so that resuming changes nothing
        losses = []
        for rows in torch.randperm(len(grid_cells)).split(config.batch):
            with fast_autocast():
                loss = aligner(grid_cells[rows].float(), rows)
            loss.backward()
            losses.append(loss.item())
            torch.nn.utils.clip_grad_norm_(aligner.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return sum(losses) / len(losses)

    parts: dict[str, Stateful] = {"aligner": aligner, "optimizer": optimizer, "schedule": schedule}
    train_in_epochs(epoch, config.epochs, parts, out / "state", "align")


def _train_views(
    samples: list[Sample], extras: Path | None, scale: MosScale, config: AlignConfig
) -> list[ImageView]:
    shown = []
    for sample in (sample for sample in samples if sample.split == "train"):
        seeds = ("", *(f"{sample.id} {i}" for i in range(config.variants)))
        shown += [view_of(sample, scale, seed) for seed in seeds]
    return shown + prompted_views(extras) + captioned_views(extras, samples)


def _fit_and_measure(
    regressor: QualityRegressor, judged: Sequence[Sample], data: RegressionData, held_out: Tensor
) -> dict[str, Any]:
    """Fit the regressor on the training split; how its logits agree with scores elsewhere.

    Sources left out are measured on images of all splits, with regressors fitted without them (`held_out`).
    """
    train = [row for row, sample in enumerate(judged) if sample.split == "train"]
    if train:
        fit_quality_regressor(regressor, data.part(train))
    validation = data.part([row for row, sample in enumerate(judged) if sample.split == "validation"])
    report: dict[str, Any] = {
        "validation_srcc": _srcc(
            regressor(validation.statistics, validation.appearance, validation.encoder_scores),
            validation.scores,
        ),
        "left_out_srcc": agreement_by_aspect(held_out, data.scores, judged),
    }
    for aspect, agreements in report["left_out_srcc"].items():
        means = ", ".join(f"{which} {part['mean']:.3f}" for which, part in agreements.items() if part)
        if means:
            sys.stdout.write(f"align: {aspect} on sources left out, SRCC: {means}\n")
    return report


def _correspondence_srcc(
    alignment: HeldOutAlignment, judged: Sequence[Sample], held_out: Tensor
) -> dict[str, dict]:
    """SRCC with scores of correspondence: of the prompt alignment alone, and with quality logits added."""
    logits_of = {sample.id: logits for sample, logits in zip(judged, held_out, strict=True)}
    unknown = torch.full((len(JUDGED_ASPECTS),), math.nan)
    quality_logits = [logits_of.get(sample.id, unknown) for sample in alignment.samples]
    srcc_of = {"match": alignment.agreement(alignment.own)}
    if quality_logits:
        srcc_of[str(Aspect.CORRESPONDENCE)] = alignment.agreement(
            correspondence_logit(alignment.own, torch.stack(quality_logits))
        )
    return srcc_of


def _srcc(logits: Tensor, scores: Tensor) -> dict[Aspect, float]:
    """Of logits with scores, both [N, JUDGED_ASPECTS]; nothing for an aspect without scores."""
    by_aspect = {}
    for column, aspect in enumerate(JUDGED_ASPECTS):
        known = ~scores[:, column].isnan()
        if known.any():
            by_aspect[aspect] = srcc(logits[known, column].tolist(), scores[known, column].tolist())
    return by_aspect


class _Aligner(nn.Module):
    """The connector, and the word embeddings that its grid tokens are compared with."""

    def __init__(self, backbone: NanoBackbone, train: list[ImageView]) -> None:
        super().__init__()
        self.connector = backbone.image_encoder.connector
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

    def forward(self, grid_cells: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy (nats) of the words said about some training views."""
        tokens = self.connector.grid_tokens(grid_cells)
        near = F.normalize(tokens - self.centre, dim=-1) @ self.words
        # A word belongs to the image when it is near to any of its grid cells.
        logits = (near.float() * self.sharpness.exp()).logsumexp(1) + self.frequency
        return -(logits.log_softmax(-1) * self.targets[rows]).sum(1).mean()
