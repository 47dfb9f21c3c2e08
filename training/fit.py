"""Stage fit: train one aspect's predictor from cached hidden states."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from m3agiqa.metrics import srcc
from m3agiqa.predictor import Predictor, PredictorConfig
from training.progress import bar, latest_folder, replace_folder
from training.targets import Target


@dataclass(frozen=True)
class FitConfig:
    """Optimiser settings; hidden states are cached, so large batches and ranking are affordable."""

    dim: int = 64
    """Width of the xLSTM: the paper's 512 has ten times as many weights as nano has data for."""
    dropout: float = 0.2
    input_dropout: float = 0.3
    """Share of the hidden dimensions that are hidden from W_proj, the same at all positions of a row."""
    averaging: float = 0.95
    """Decay of the running mean of the weights, which is what is validated and kept."""
    epochs: int = 5
    batch: int = 32
    """Images a step; each brings its unrelated or damaged case along."""
    lr: float = 1e-3
    weight_decay: float = 0.05
    rank_weight: float = 0.05
    """Weight of the hinge that puts an image above its unrelated or damaged case."""
    margin: float = 0.5
    """How far above, in units of the MOS scale."""
    seed: int = 0


def fit(
    train: list[Target], validation: list[Target], config: FitConfig, state: Path, label: str
) -> tuple[Predictor, float]:
    """Train and return the predictor of the best epoch by validation SRCC, and that SRCC.

    Resumes from `state` after each epoch.
    """
    torch.manual_seed(config.seed)
    scaler = Standardizer.of(train)
    train, validation = scaler.apply(train), scaler.apply(validation)
    shape = PredictorConfig(train[0].states.shape[-1], dim=config.dim, dropout=config.dropout)
    predictor = Predictor(shape)
    mean = sum(target.mos for target in train) / len(train)
    torch.nn.init.constant_(predictor.regression[2].bias, mean)
    optimizer = torch.optim.AdamW(predictor.parameters(), config.lr, weight_decay=config.weight_decay)
    averaged = AveragedModel(predictor, multi_avg_fn=get_ema_multi_avg_fn(config.averaging))
    steps = math.ceil(len(train) / config.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.epochs * steps, pct_start=0.15
    )
    parts = {"predictor": predictor, "averaged": averaged, "optimizer": optimizer, "schedule": schedule}
    done, best, best_srcc = _restore(state, parts)
    with bar(None, label, total=config.epochs * steps, start=done * steps) as progress:
        for epoch in range(done, config.epochs):
            order, rng = list(range(len(train))), Random(f"{config.seed} {epoch}")
            rng.shuffle(order)
            torch.manual_seed(rng.getrandbits(32))  # of dropout, so that resuming changes nothing
            predictor.train()
            for start in range(0, len(order), config.batch):
                batch = [train[i] for i in order[start : start + config.batch]]
                loss = _loss(predictor, batch, config)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                averaged.update_parameters(predictor)
                progress.update()
            predicted = predict(averaged.module, [target.states for target in validation])
            reached = srcc(predicted, [target.mos for target in validation])
            progress.set_postfix(validation_srcc=f"{reached:.3f}")
            if best is None or reached > best_srcc or math.isnan(best_srcc):
                best, best_srcc = copy.deepcopy(averaged.module.state_dict()), reached
            _save(state, epoch + 1, parts, best, best_srcc)
    predictor.load_state_dict(best)
    scaler.fold_into(predictor)
    return predictor.eval(), best_srcc


@dataclass(frozen=True)
class Standardizer:
    """Zero mean and unit variance for each hidden dimension, of which a few are a hundred times the others.

    W_proj is linear, so what was learned on standardized states is folded into it in the end.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, targets: list[Target]) -> Standardizer:
        total, squares, count = 0.0, 0.0, 0
        for target in targets:
            states = target.states.double()
            total, squares, count = total + states.sum(0), squares + (states**2).sum(0), count + len(states)
        mean = total / count
        std = (squares / count - mean**2).clamp_min(1e-6).sqrt()
        return cls(mean.float(), std.float())

    def apply(self, targets: list[Target]) -> list[Target]:
        def scaled(states: Tensor | None) -> Tensor | None:
            return None if states is None else ((states.float() - self.mean) / self.std).half()

        return [replace(t, states=scaled(t.states), worse=scaled(t.worse)) for t in targets]

    def fold_into(self, predictor: Predictor) -> None:
        """From a predictor of standardized states to the same one of raw states."""
        projection = predictor.projection
        with torch.no_grad():
            projection.weight /= self.std
            projection.bias -= projection.weight @ self.mean


@torch.inference_mode()
def predict(predictor: Predictor, states: list[Tensor], batch: int = 64) -> list[float]:
    """Raw MOS of many conversations' states."""
    predictor.eval()
    scores: list[float] = []
    for start in range(0, len(states), batch):
        scores += predictor(*_pad(states[start : start + batch])).tolist()
    return scores


def _loss(predictor: Predictor, batch: list[Target], config: FitConfig) -> Tensor:
    """MSE (paper, Eq. 10), and the order between each image and its worse case."""
    paired = [target for target in batch if target.worse is not None]
    states, lengths = _pad([target.states for target in batch] + [target.worse for target in paired])
    shown = F.dropout(torch.ones(len(states), 1, states.shape[-1]), config.input_dropout)
    scores = predictor(states * shown, lengths)
    own, worse = scores[: len(batch)], scores[len(batch) :]
    loss = F.mse_loss(own, torch.tensor([target.mos for target in batch]))
    if paired:
        better = own[[i for i, target in enumerate(batch) if target.worse is not None]]
        loss = loss + config.rank_weight * F.relu(config.margin - (better - worse)).mean()
    return loss


def _pad(states: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(each) for each in states])
    return torch.nn.utils.rnn.pad_sequence(states, batch_first=True).float(), lengths


def _save(state: Path, done: int, parts: dict, best: dict[str, Tensor], best_srcc: float) -> None:
    def write(folder: Path) -> None:
        torch.save(
            {**{name: part.state_dict() for name, part in parts.items()}, "best": best}, folder / "state.pt"
        )
        (folder / "epoch.json").write_text(json.dumps({"done": done, "best_srcc": best_srcc}))

    replace_folder(state, write)


def _restore(state: Path, parts: dict) -> tuple[int, dict[str, Tensor] | None, float]:
    folder = latest_folder(state)
    if folder is None:
        return 0, None, -1.0
    saved = torch.load(folder / "state.pt", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    facts = json.loads((folder / "epoch.json").read_text())
    return facts["done"], saved["best"], facts["best_srcc"]
