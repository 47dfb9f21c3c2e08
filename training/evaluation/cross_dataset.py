"""Stage cross: a model trained on one data set, tested on another (paper, Table VI)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError
from m3agiqa.files import stamp
from m3agiqa.predictor.model import Predictor
from training.data.variants import own_variants
from training.evaluation.evaluate import evaluate
from training.run import RunFolder
from training.stages.fit import fit
from training.stages.fit_data import Target, parts, targets


def cross(trained: RunFolder, tested: RunFolder, retrain: bool = False) -> dict[str, dict[str, Any]]:
    """Agreement on the test split of `tested` for each aspect that both have.

    The backbone is always that of `trained`. Its predictors are used as they are, or with `retrain` new
    ones are trained on the training split of `tested`. Scores are moved from one MOS scale to the other.
    What it generates stays in the cache of `tested`. Raises InputError if there is nothing to compare.
    """
    aspects = [aspect for aspect in trained.aspects if aspect in tested.aspects]
    if not aspects:
        raise InputError(f"{trained.folder} and {tested.folder} have no aspect in common.")
    wanted = {"train", "test", trained.config.select_on} if retrain else {"test"}
    variants = own_variants([sample for sample in tested.samples if sample.split in wanted], aspects)
    trained.describe(variants, tested.cache)
    measures = {}
    for aspect in aspects:
        all_targets = targets(variants, tested.cache, trained.identity, aspect, tested.scale)
        part = parts(all_targets, wanted, tested.folder)
        if retrain:
            predictor = _retrained(trained, tested, aspect, part["train"], part[trained.config.select_on])
            measures[str(aspect)] = evaluate(predictor, part["test"], tested.scale)
        else:
            scale = trained.scale
            rescaled = [
                replace(target, mos=scale.from_unit(tested.scale.to_unit(target.mos)))
                for target in part["test"]
            ]
            measures[str(aspect)] = evaluate(trained.best(aspect), rescaled, scale)
        measures[str(aspect)] |= {"trained_on": trained.folder.name, "retrained": retrain}
    return measures


def _retrained(
    trained: RunFolder, tested: RunFolder, aspect: Aspect, train: list[Target], validation: list[Target]
) -> Predictor:
    """A predictor over hidden states, with the settings of `trained`."""
    config, head = trained.config.fit, trained.head
    folder = tested.folder / "cross" / trained.folder.name / aspect
    stamp(folder, trained.identity, tested.content, config, trained.config.select_on)
    predictor, _ = fit(train, validation, config, folder / "state", f"{aspect} anew", head, tested.unit)
    return predictor.fuse(head) if predictor.config.projection == "vocab" else predictor
