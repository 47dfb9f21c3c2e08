"""Stage fit: train a predictor from cached hidden states."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError
from m3agiqa.files import latest_folder, replace_folder
from m3agiqa.metrics import srcc
from m3agiqa.predictor.config import Extractor, Pooling, PredictorConfig, Projection
from m3agiqa.predictor.model import Predictor
from training.parallel import progress_bar
from training.stages.fit_data import Target
from training.stages.losses import LossConfig, agreement_loss, hinge, preference_loss

ALL_ASPECTS = tuple(Aspect)
MIN_CONTEXT = 1024  # positions
MIN_TO_CALIBRATE = 50  # validation images, from which on two numbers are known well enough
PAIRS_HELD_OUT_EVERY = 5  # prompts whose pairs choose the best epoch
CONTEXT_MARGIN = 1.25  # for conversations that are longer than those of the training


@dataclass(frozen=True)
class FitConfig:
    """Shape of the predictor, and how it is trained; hidden states are cached, so large batches are cheap."""

    projection: Projection = "hidden"
    extractor: Extractor = "xlstm"
    pooling: Pooling = "mean"
    dim: int = 64
    """Width of W_proj's output: the paper's 512 has ten times as many weights as nano has data for."""
    blocks: int = 4
    context_length: int | None = None
    """Longest sequence that is read, of a longer one only the beginning is; null: 1,024, or a quarter more
    than the longest conversation that it is trained on. The paper: 512."""
    dropout: float = 0.2
    input_dropout: float = 0.3
    """Share of the hidden dimensions that are hidden from W_proj, the same at all positions of a row."""
    standardize: bool = True
    """Whether W_proj's inputs get zero mean and unit variance first, which is folded into it in the end."""
    averaging: float = 0.95
    """Decay of the running mean of the weights, which is what is validated and kept; 0: the weights
    themselves."""
    epochs: int = 5
    patience: int = 0
    """Epochs without a better validation SRCC after which training ends; 0: it never ends early."""
    batch: int = 32
    """Images a step; each brings its worse variant (wrong prompt or damage) along."""
    lr: float = 1e-3
    constant_lr: bool = False
    """Whether the learning rate stays as it is; otherwise it rises for 15 % of the steps and then falls."""
    weight_decay: float = 0.05
    losses: LossConfig = field(default_factory=LossConfig)
    calibrate: bool = False
    """Whether the output's level and slope are set by least squares on validation images in the end; losses
    inside sources say little of either."""
    joint: bool = False
    """One predictor for all aspects, which reads from the conversation what is asked; else one each."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "blocks", "context_length", "epochs", "batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"fit.{name} must be at least 1, not {getattr(self, name)}.")

    def shape(self, hidden_size: int, vocab_size: int, longest: int = 0) -> PredictorConfig:
        """The predictor's shape for a backbone's sizes, and its longest conversation (in positions)."""
        return PredictorConfig(
            vocab_size if self.projection == "vocab" else hidden_size,
            projection=self.projection,
            extractor=self.extractor,
            pooling=self.pooling,
            dim=self.dim,
            blocks=self.blocks,
            dropout=self.dropout,
            context_length=self.context_length or max(MIN_CONTEXT, math.ceil(longest * CONTEXT_MARGIN)),
        )


def fit(
    train: list[Target],
    validation: list[Target],
    config: FitConfig,
    state: Path,
    label: str,
    head: Tensor | None = None,
    unit: float = 1.0,
    preferred: Sequence[Target] = (),
) -> tuple[Predictor, float]:
    """Train and return the predictor of the best epoch by validation SRCC, and that SRCC.

    With `preferred`, images that people like better than their `worse` one whatever MOS either has, the best
    epoch is that of the best mean of validation SRCC and agreement on a fifth of the pairs, set aside.

    It is trained on MOS divided by `unit` (in points), and then rescaled to predict points: learning rate and
    losses are for a scale that is 4 units wide.

    Targets of several aspects make a joint predictor, judged by the mean of their SRCCs. `head` is the
    backbone's output matrix [vocab, d], for projection="vocab". Resumes from `state` after each epoch.
    """
    if config.projection == "vocab" and head is None:
        raise ValueError("a predictor over the vocabulary needs the backbone's output matrix")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    longest = max(len(target.states) for target in train)
    shape = config.shape(train[0].states.shape[-1], 0 if head is None else len(head), longest)
    head = head.float() if config.projection == "vocab" else None
    scaler = Standardizer.of(train, head, config.standardize)
    scaled = None if scaler.head is None else scaler.head.to(device)
    train = [_in_units(target, unit) for target in scaler.apply(train)]
    preferred, held_out = _held_out_pairs(scaler.apply(list(preferred)))
    validation = scaler.apply(validation)
    predictor = Predictor(shape).to(device)
    mean = sum(target.mos for target in train) / len(train)
    torch.nn.init.constant_(predictor.regression[2].bias, mean)
    optimizer = torch.optim.AdamW(predictor.parameters(), config.lr, weight_decay=config.weight_decay)
    averaged = AveragedModel(predictor, multi_avg_fn=get_ema_multi_avg_fn(config.averaging))
    steps = math.ceil(len(train) / config.batch)
    schedule = _schedule(optimizer, config, config.epochs * steps)
    parts = {"predictor": predictor, "averaged": averaged, "optimizer": optimizer, "schedule": schedule}
    best = _Best(predictor.state_dict())
    done = _restore(state, parts, best, device)
    with progress_bar(None, label, total=config.epochs * steps, start=done * steps) as progress:
        for epoch in range(done, config.epochs):
            if config.patience and epoch - best.epoch > config.patience:
                break
            order, rng = list(range(len(train))), Random(f"{config.seed} {epoch}")
            rng.shuffle(order)
            pairs = rng.sample(preferred, len(preferred))
            torch.manual_seed(rng.getrandbits(32))  # of dropout, so that resuming changes nothing
            predictor.train()
            for start in range(0, len(order), config.batch):
                batch = [train[i] for i in order[start : start + config.batch]]
                step = start // config.batch
                loss = _loss(predictor, batch, config, scaled, pairs[step::steps])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                averaged.update_parameters(predictor)
                progress.update()
            reached = _agreement(averaged.module, validation, scaled)
            progress.set_postfix(validation_srcc=f"{reached:.3f}")
            ordered = _pair_agreement(averaged.module, held_out, scaled) if held_out else reached
            best.take(averaged.module.state_dict(), (reached + ordered) / 2, reached, epoch)
            _save(state, epoch + 1, parts, best)
    predictor.load_state_dict(best.weights)
    slope, intercept = unit, 0.0
    if config.calibrate:
        slope, intercept = _least_squares(predictor, validation, scaled, unit)
    predictor.cpu().eval()
    scaler.fold_into(predictor)
    with torch.no_grad():
        predictor.regression[2].weight *= slope
        predictor.regression[2].bias.mul_(slope).add_(intercept)
    return predictor, best.srcc


def _least_squares(
    predictor: Predictor, targets: list[Target], head: Tensor | None, unit: float
) -> tuple[float, float]:
    """Slope and intercept from raw predictions to MOS in points; of too few targets `unit` and 0."""
    scores = predict(predictor, [target.states for target in targets], head)
    if len(targets) < MIN_TO_CALIBRATE or np.ptp(scores) == 0:
        return unit, 0.0
    slope, intercept = np.polyfit(scores, [target.mos for target in targets], 1)
    return (float(slope), float(intercept)) if slope > 0 else (unit, 0.0)


def _in_units(target: Target, unit: float) -> Target:
    return replace(target, mos=target.mos / unit, worse=target.worse and _in_units(target.worse, unit))


@dataclass(frozen=True)
class Standardizer:
    """Zero mean and unit variance for what W_proj reads: some hidden dimensions are a hundred times others.

    W_proj is linear, so what was learned on standardized inputs is folded into it in the end. Logits are
    never made: their means and variances follow from those of the hidden states and from the head.
    """

    mean: Tensor
    """[d] of the hidden states."""
    std: Tensor
    """[d] of the hidden states, or [vocab] of the logits."""
    raw_head: Tensor | None = None
    """[vocab, d]; None where W_proj reads hidden states."""

    @classmethod
    def of(cls, targets: list[Target], head: Tensor | None, wanted: bool = True) -> Standardizer:
        """From the training targets' states; not `wanted`: one that leaves everything as it is."""
        d = targets[0].states.shape[-1]
        if not wanted:
            return cls(torch.zeros(d), torch.ones(d if head is None else len(head)), head)
        total, squares, count = torch.zeros(d).double(), torch.zeros(d, d).double(), 0
        for target in targets:
            states = target.states.float()
            total, squares, count = total + states.sum(0), squares + states.T @ states, count + len(states)
        mean = total / count
        covariance = squares / count - mean.outer(mean)
        variance = covariance.diagonal() if head is None else (head.double() @ covariance * head).sum(1)
        return cls(mean.float(), variance.clamp_min(1e-6).sqrt().float(), head)

    @property
    def head(self) -> Tensor | None:
        """The head that makes standardized logits of centred hidden states."""
        return None if self.raw_head is None else self.raw_head / self.std[:, None]

    def apply(self, targets: list[Target]) -> list[Target]:
        def scaled(target: Target) -> Target:
            centred = target.states.float() - self.mean
            states = (centred if self.raw_head is not None else centred / self.std).half()
            return replace(target, states=states, worse=target.worse and scaled(target.worse))

        return [scaled(target) for target in targets]

    def fold_into(self, predictor: Predictor) -> None:
        """From a predictor of standardized inputs to the same one of raw inputs."""
        weight, bias = predictor.projection.weight, predictor.projection.bias
        mean = self.mean if self.raw_head is None else self.raw_head @ self.mean
        with torch.no_grad():
            weight /= self.std
            bias -= weight @ mean if weight.dim() == 2 else weight * mean


def predict(predictor: Predictor, states: list[Tensor], head: Tensor | None = None) -> list[float]:
    """Raw MOS of many conversations' states."""
    return [each.mos for each in predictor.eval().predict_all(states, head)]


def pooled_states(predictor: Predictor, states: list[Tensor]) -> Tensor:
    """What the regression head reads of many conversations' states, [n, width]."""
    return torch.stack([each.pooled for each in predictor.eval().predict_all(states)]).cpu()


def _schedule(
    optimizer: torch.optim.Optimizer, config: FitConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.constant_lr:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps, pct_start=0.15)


def _loss(
    predictor: Predictor,
    batch: list[Target],
    config: FitConfig,
    head: Tensor | None,
    preferred: Sequence[Target],
) -> Tensor:
    """The losses over a batch, and over the order of each image and its worse variant, and of `preferred`."""
    wanted = config.losses.worse or config.losses.made_up
    paired = [i for i, target in enumerate(batch) if target.worse and wanted]
    both = batch + [batch[i].worse for i in paired]
    likes = [*preferred, *(target.worse for target in preferred)] if config.losses.preference else []
    states, lengths = _pad([target.states for target in [*both, *likes]], predictor)
    mask = F.dropout(torch.ones(len(states), 1, states.shape[-1]), config.input_dropout).to(states.device)
    scores = predictor(states * mask, lengths, head)
    own, worse, liked, other = scores.split([len(batch), len(paired), len(likes) // 2, len(likes) // 2])
    mos, made_up = torch.tensor([target.mos for target in both], device=own.device).split(
        [len(batch), len(paired)]
    )
    aspects = torch.tensor([ALL_ASPECTS.index(target.aspect) for target in batch], device=own.device)
    weights = torch.tensor([float(target.weight) for target in batch], device=own.device)
    numbers = {source: i for i, source in enumerate(dict.fromkeys(t.sample.source for t in batch))}
    sources = torch.tensor([numbers[target.sample.source] for target in batch], device=own.device)
    loss = agreement_loss(own, mos, aspects, config.losses, weights, sources)
    if paired:
        loss = loss + config.losses.worse * hinge(own[paired], worse, config.losses.margin)
        # Divided by the whole batch, as not all images have a worse variant.
        loss = loss + config.losses.made_up * ((worse - made_up) ** 2).sum() / len(batch)
    if len(liked):
        loss = loss + config.losses.preference * preference_loss(liked, other)
    return loss


def _agreement(predictor: Predictor, targets: Sequence[Target], head: Tensor | None) -> float:
    """Mean over the aspects of the SRCC."""
    scores = predict(predictor, [target.states for target in targets], head)
    values = []
    for aspect in [aspect for aspect in ALL_ASPECTS if any(target.aspect is aspect for target in targets)]:
        pairs = [(s, t.mos) for s, t in zip(scores, targets, strict=True) if t.aspect is aspect]
        values.append(srcc(*zip(*pairs, strict=True)))
    return sum(values) / len(values)


def _held_out_pairs(preferred: Sequence[Target]) -> tuple[list[Target], list[Target]]:
    """Pairs to train on, and those of every fifth prompt to choose the best epoch by."""
    numbers = {prompt: n for n, prompt in enumerate(dict.fromkeys(t.sample.prompt for t in preferred))}
    parts: tuple[list[Target], list[Target]] = ([], [])
    for target in preferred:
        parts[numbers[target.sample.prompt] % PAIRS_HELD_OUT_EVERY == PAIRS_HELD_OUT_EVERY - 1].append(target)
    return parts


def _pair_agreement(predictor: Predictor, pairs: Sequence[Target], head: Tensor | None) -> float:
    """Share of pairs in people's order less that of the others, -1 to 1."""
    better = np.array(predict(predictor, [target.states for target in pairs], head))
    worse = np.array(predict(predictor, [target.worse.states for target in pairs if target.worse], head))
    return float(np.sign(better - worse).mean())


def _pad(states: list[Tensor], predictor: Predictor) -> tuple[Tensor, Tensor]:
    device = predictor.regression[0].weight.device
    lengths = torch.tensor([len(each) for each in states], device=device)
    return torch.nn.utils.rnn.pad_sequence(states, batch_first=True).to(device).float(), lengths


@dataclass
class _Best:
    """The best epoch's weights so far."""

    weights: dict[str, Tensor]
    value: float = -math.inf
    """What the best epoch is chosen by."""
    srcc: float = -math.inf
    epoch: int = -1

    def take(self, weights: dict[str, Tensor], value: float, srcc: float, epoch: int) -> None:
        if value > self.value or math.isnan(self.value) or self.epoch < 0:
            self.weights = copy.deepcopy(weights)
            self.value, self.srcc, self.epoch = value, srcc, epoch


def _save(state: Path, done: int, parts: dict, best: _Best) -> None:
    def write(folder: Path) -> None:
        weights = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**weights, "best": best.weights}, folder / "state.pt")
        facts = {"done": done, "best_value": best.value, "best_srcc": best.srcc, "best_epoch": best.epoch}
        (folder / "epoch.json").write_text(json.dumps(facts))

    replace_folder(state, write)


def _restore(state: Path, parts: dict, best: _Best, device: torch.device) -> int:
    """Continue from the newest whole state; returns the number of epochs already done."""
    folder = latest_folder(state)
    if folder is None:
        return 0
    saved = torch.load(folder / "state.pt", weights_only=True, map_location=device)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    facts = json.loads((folder / "epoch.json").read_text())
    best.weights, best.value = saved["best"], facts.get("best_value", facts["best_srcc"])
    best.srcc, best.epoch = facts["best_srcc"], facts["best_epoch"]
    return facts["done"]
