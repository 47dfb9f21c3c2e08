"""Stage align: teach nano's connector alone, before the language model is run at all.

A language model of this size hardly learns to look at tokens that mean nothing to it: with a random
connector its descriptions ignore the image. Two objectives make them mean something first: place
tokens must lie near the embeddings of words said about the image, and summary tokens must hold its
scores. The frozen vision encoder's features are kept, so an epoch takes well under a minute.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.nano import CONNECTOR_FILE, NanoBackbone
from m3agiqa.backbones.nano.connector import EMBEDDING_SCALE, PLACE_TOKENS, SUMMARY_TOKENS
from m3agiqa.backbones.nano.vision import views
from m3agiqa.images import open_image
from m3agiqa.metrics import srcc
from m3agiqa.samples import Sample
from training.augment import DAMAGES, damage, damaged_mos, depicts_prompt, jitter
from training.curriculum import CAPTION_FROM
from training.datasets import load_captions, load_unlabelled
from training.progress import bar, latest_folder, replace_folder

DONE_FILE = "align.json"
SHARD = 512  # views whose features are kept in one file; as many are lost at most when interrupted
LOOK = 16  # views in one forward pass of the vision encoder


@dataclass(frozen=True)
class AlignConfig:
    """Optimiser settings, and what is shown."""

    variants: int = 2
    """Versions of each labelled image, randomly rescaled and recompressed."""
    damaged: float = 0.5
    """Share of the images with MOS for quality that are also shown as a damaged copy."""
    epochs: int = 8
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    score_weight: float = 10.0
    """Weight of the scores' squared error (scores in [0, 1]) beside the words' cross-entropy (nats)."""
    seed: int = 0


@dataclass(frozen=True)
class View:
    """An image as it is shown, what was said about it, and its scores in [0, 1] where known."""

    image: Path
    texts: tuple[str, ...]
    scores: tuple[float | None, ...] = (None,) * len(Aspect)
    seed: str = ""
    """Of its random changes; empty: shown unchanged."""
    damage: str | None = None

    def pixels(self) -> Tensor:
        """[views, 3, 224, 224]."""
        image = open_image(self.image)
        if self.seed:
            rng = Random(self.seed)
            image = jitter(image, rng)
            if self.damage:
                image = damage(image, self.damage, rng, strength=rng.uniform(0.5, 1.5))
        return views(image)


def align(
    samples: list[Sample], extras: Path | None, scale: MosScale, out: Path, config: AlignConfig
) -> None:
    """Leave the aligned connector in `out`; resumes from there.

    `extras` holds captions and unlabelled images, which are aligned with as well.
    """
    torch.manual_seed(config.seed)
    backbone = NanoBackbone.from_base()
    train = _train_views(samples, extras, scale, config)
    validation = [_view(sample, scale, "") for sample in samples if sample.split == "validation"]
    kept = out / "features"
    features = _features(backbone, [*train, *validation], kept)
    trainer = _Trainer(_Aligner(backbone, train), config, math.ceil(len(train) / config.batch))
    state = out / "state"
    start = trainer.restore(state)
    reached: dict[str, float] = {}
    with bar(None, "align", total=config.epochs, start=start) as progress:
        for epoch in range(start, config.epochs):
            trainer.epoch(features[: len(train)], epoch)
            reached = trainer.aligner.agreement(features[len(train) :], validation)
            replace_folder(state, trainer.save)
            progress.update()
            progress.set_postfix({str(aspect): f"{value:.3f}" for aspect, value in reached.items()})
    save_file(backbone.connector.state_dict(), out / CONNECTOR_FILE)
    facts = {**asdict(config), "validation_srcc": reached}
    (out / DONE_FILE).write_text(json.dumps(facts, indent=2))
    shutil.rmtree(kept)


def _view(sample: Sample, scale: MosScale, seed: str) -> View:
    scores = tuple(scale.to_unit(sample.mos[a]) if a in sample.mos else None for a in Aspect)
    prompts = [sample.prompt] if depicts_prompt(sample, scale, CAPTION_FROM) else []
    return View(sample.image, (*prompts, *sample.descriptions.values()), scores, seed)


def _train_views(
    samples: list[Sample], extras: Path | None, scale: MosScale, config: AlignConfig
) -> list[View]:
    rng = Random(config.seed)
    shown = []
    for sample in (sample for sample in samples if sample.split == "train"):
        shown += [_view(sample, scale, f"{sample.id} {i}") for i in range(config.variants)]
        known = sample.mos.get(Aspect.QUALITY)
        if known is not None and not sample.distorted and rng.random() < config.damaged:
            quality = scale.to_unit(damaged_mos(known, scale))
            texts = (sample.prompt,) if sample.prompt else ()
            shown.append(View(sample.image, texts, (quality, None, None), sample.id, rng.choice(DAMAGES)))
    if extras is None:
        return shown
    unlabelled = [s for s in load_unlabelled(extras) if s.split == "train" and s.prompt]
    shown += [View(sample.image, (sample.prompt,), seed=sample.id) for sample in unlabelled]
    return shown + [View(image, tuple(texts), seed=image.name) for image, texts in load_captions(extras)]


def _features(backbone: NanoBackbone, shown: list[View], folder: Path) -> Tensor:
    """[views, PLACE_TOKENS, C] in 16 bit, computed once and kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    with bar(None, "look", total=len(shown)) as progress:
        for start in range(0, len(shown), SHARD):
            shard = shown[start : start + SHARD]
            path = folder / f"{start:06}.safetensors"
            if not path.exists():
                partial = path.with_suffix(".partial")
                save_file({"features": _look(backbone, shard)}, partial)
                partial.replace(path)
            parts.append(load_file(path)["features"])
            progress.update(len(shard))
    return torch.cat(parts)


@torch.inference_mode()
def _look(backbone: NanoBackbone, shown: list[View]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat(
            [
                backbone.features(torch.stack([view.pixels() for view in shown[i : i + LOOK]])).bfloat16()
                for i in range(0, len(shown), LOOK)
            ]
        )


class _Aligner(nn.Module):
    """The connector with what judges its tokens: word embeddings, and a linear reader of scores."""

    def __init__(self, backbone: NanoBackbone, train: list[View]) -> None:
        super().__init__()
        self.connector = backbone.connector
        said = [set(backbone.chat.words(" ".join(view.texts))) for view in train]
        counts = Counter(word for words in said for word in words)
        # Words said of nearly everything tell nothing, and rare ones cannot be learned.
        vocabulary = sorted(word for word, n in counts.items() if 4 <= n <= 0.4 * len(train))
        self.said = torch.zeros(len(train), len(vocabulary))
        for row, words in zip(self.said, said, strict=True):
            row[[i for i, word in enumerate(vocabulary) if word in words]] = 1
        self.said /= self.said.sum(1, keepdim=True).clamp_min(1)
        self.scores = _scores(train)
        embeddings = backbone.llm.get_input_embeddings().weight.float()
        self.centre = embeddings.mean(0)  # two thirds of every embedding's length is common to all
        self.words = F.normalize(embeddings[vocabulary] - self.centre, dim=-1).T.contiguous()
        self.sharpness = nn.Parameter(torch.tensor(math.log(15.0)))
        self.frequency = nn.Parameter(torch.tensor([math.log(counts[w] / len(train)) for w in vocabulary]))
        self.reader = nn.Linear(SUMMARY_TOKENS * backbone.hidden_size, len(Aspect))
        nn.init.zeros_(self.reader.weight)

    def forward(self, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of some training views: cross-entropy of words said, squared error of known scores."""
        tokens = self.connector(features)
        near = F.normalize(tokens[:, :PLACE_TOKENS] - self.centre, dim=-1) @ self.words
        # A word belongs to the image when it is near to any of its places.
        logits = (near.float() * self.sharpness.exp()).logsumexp(1) + self.frequency
        words = -(logits.log_softmax(-1) * self.said[rows]).sum(1).mean()
        scores = self.scores[rows]
        known = ~scores.isnan()
        squares = (self._read(tokens).float() - scores.nan_to_num()) ** 2
        return words, (squares * known).sum() / known.sum().clamp_min(1)

    @torch.inference_mode()
    def agreement(self, features: Tensor, shown: list[View]) -> dict[Aspect, float]:
        """SRCC of the scores that are read from the summary tokens; nothing where nothing is shown."""
        if not shown:
            return {}
        self.eval()
        read = torch.cat([self._read(self.connector(part.float())) for part in features.split(64)])
        true = _scores(shown)
        known = ~true.isnan()
        return {
            aspect: srcc(read[known[:, i], i].tolist(), true[known[:, i], i].tolist())
            for i, aspect in enumerate(Aspect)
        }

    def _read(self, tokens: Tensor) -> Tensor:
        return self.reader(tokens[:, PLACE_TOKENS:].flatten(1) / EMBEDDING_SCALE)


class _Trainer:
    """One optimiser run over the aligner, epoch by epoch."""

    def __init__(self, aligner: _Aligner, config: AlignConfig, steps: int) -> None:
        self.aligner, self.config = aligner, config
        self.done = 0
        self.optimizer = torch.optim.AdamW(aligner.parameters(), config.lr, weight_decay=config.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.lr, total_steps=config.epochs * steps, pct_start=0.1
        )

    def epoch(self, features: Tensor, number: int) -> None:
        self.aligner.train()
        torch.manual_seed(1000 * self.config.seed + number)  # so that resuming changes nothing
        for rows in torch.randperm(len(features)).split(self.config.batch):
            with torch.autocast("cpu", torch.bfloat16):
                words, error = self.aligner(features[rows], rows)
            (words + self.config.score_weight * error).backward()
            torch.nn.utils.clip_grad_norm_(self.aligner.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        self.done = number + 1

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


def _scores(shown: list[View]) -> Tensor:
    """[views, aspects], NaN where unknown."""
    return torch.tensor([[math.nan if score is None else score for score in v.scores] for v in shown])
