"""Stage ship: a checkpoint, put together from what a run has made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from m3agiqa.aspects import Aspect, aspects_text
from m3agiqa.backbones.base import BASE_FILE
from m3agiqa.checkpoint.card import CARD_FILE, Card, predictor_file, read_card, write_card
from m3agiqa.errors import InputError
from m3agiqa.files import replace_folder
from m3agiqa.predictor.config import PredictorConfig
from training.data import fingerprint
from training.evaluation.evaluate import evaluate
from training.evaluation.sanity import sanity
from training.run import LEARNABLE_PARTS, RunFolder
from training.stages.finetune import STATE_FOLDER


def ship(run: RunFolder, out: Path) -> Card:
    """Put a checkpoint together in `out`, with its card.

    An older checkpoint there is replaced. Raises InputError if there is anything else.
    """
    if out.exists() and not (out / CARD_FILE).exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there and is no checkpoint, so it is left alone. Choose another --out.")

    def write(folder: Path) -> None:
        copy_backbone(run.backbone_folder, folder)
        for aspect in run.trained:
            fitted = run.fitted(aspect) if run.config.ship_seeds else run.fitted(aspect)[:1]
            for number, seed in enumerate(fitted):
                shutil.copy(seed / predictor_file(aspect), folder / predictor_file(aspect, number))
        for aspect in run.kept:
            assert run.start_card is not None and run.init_from is not None
            for number in range(_seeds(run)):  # those of `start` in turns, where it has fewer
                kept = predictor_file(aspect, number % run.start_card.seeds)
                shutil.copy(run.init_from / kept, folder / predictor_file(aspect, number))
        write_card(_card(run, {}), folder)
        metrics: dict[str, Any] = {"test": {str(aspect): _agreement(run, aspect) for aspect in run.aspects}}
        if run.config.transfer is not None:
            metrics["source_left_out"] = run.transferred()
        if run.config.made_up:
            metrics["sanity"] = sanity(run.samples, folder, run.cache, run.config.seed)
        write_card(_card(run, metrics), folder)

    replace_folder(out, write)
    return read_card(out)


def _card(run: RunFolder, metrics: dict) -> Card:
    shapes = {a: json.loads((run.fitted(a)[0] / "fit.json").read_text())["predictor"] for a in run.trained}
    card = Card(
        name=run.config.name,
        version=run.version,
        backbone=run.config.backbone,
        learned_from=_learned_from(run),
        fingerprint=fingerprint(run.samples),
        scales=dict.fromkeys(run.trained, run.scale),
        predictors={aspect: PredictorConfig(**shape) for aspect, shape in shapes.items()},
        metrics=metrics,
        seeds=_seeds(run),
        calibration=run.calibration,
    )
    for aspect in run.kept:
        assert run.start_card is not None
        card.scales[aspect] = run.start_card.scales[aspect]
        card.predictors[aspect] = run.start_card.predictors[aspect]
        if aspect in run.start_card.calibration:
            card.calibration[aspect] = run.start_card.calibration[aspect]
    return card


def _seeds(run: RunFolder) -> int:
    """Predictors of each aspect in the checkpoint."""
    return len(run.config.seeds) if run.config.ship_seeds else 1


def _agreement(run: RunFolder, aspect: Aspect) -> dict[str, float]:
    """On the test split; of the intervals, too, unless they were made from it."""
    calibration = run.calibration[aspect] if run.config.select_on != "test" else None
    return evaluate(run.best(aspect), run.targets(aspect, "test"), run.scale, calibration)


def _learned_from(run: RunFolder) -> str:
    pairs = f"{len(run.pairs(*LEARNABLE_PARTS)):,} pairs of images in the order of people's picks"
    if run.by_picks and run.annotated is not None:
        return f"{pairs} ({run.annotated.version}), without scores"
    train = [s for s in run.samples if s.split == "train" and (s.mos or s.descriptions)]
    text = run.config.learned_from.format(count=len(train)).rstrip(". ")
    if run.annotated is not None:
        people = sum(sample.id in run.annotated.scored for sample in train)
        text += f"; {people:,} of them were scored anew by people ({run.annotated.version})"
    if run.pairs(*LEARNABLE_PARTS):
        text += f"; {pairs}"
    if run.kept:
        assert run.start_card is not None
        text += f"; {aspects_text(run.kept)} judged as by {run.start_card.title}, for lack of scores"
    return text


def copy_backbone(speaker: Path, folder: Path) -> None:
    """What was trained of the backbone: adapters and modules, no states, no predictors."""
    for path in sorted([*speaker.rglob("*.safetensors"), *speaker.rglob(BASE_FILE)]):
        inner = path.relative_to(speaker)
        if inner.parts[0].startswith(STATE_FOLDER) or path.name.startswith("predictor-"):
            continue
        (folder / inner).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / inner)
        if (path.parent / "adapter_config.json").exists():
            shutil.copy(path.parent / "adapter_config.json", (folder / inner).parent)
