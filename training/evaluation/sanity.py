"""Stage sanity: scores must depend on the image (damage lowers quality) and on the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.card import read_card
from m3agiqa.checkpoint.predictor_weights import load_predictor
from m3agiqa.samples import Sample
from training.data.variants import SANITY_DAMAGES, sanity_variants
from training.evaluation.evaluate import share_lower
from training.stages.describe import describe
from training.stages.fit import predict
from training.stages.hidden_cache import HiddenCache, backbone_id


def sanity(samples: Sequence[Sample], checkpoint: Path, cache: HiddenCache, seed: int = 0) -> dict[str, dict]:
    """Share of the undistorted test images whose damaged or wrong variant scores lower, and their number.

    Damage is for checkpoints that judge quality; another image's prompt, and the own with one attribute
    changed, for those that judge correspondence. A comparison for which there is no image is left out.
    """
    card = read_card(checkpoint)
    variants = sanity_variants(list(samples), list(card.predictors), seed)
    describe(variants, card.backbone, checkpoint, cache)
    identity = backbone_id(card.backbone, checkpoint)

    def scores(aspect: Aspect, kind: str, damage: str | None) -> dict[str, float]:
        chosen = [v for v in variants if v.kind == kind and v.damage == damage and aspect in v.aspects]
        keys = [variant.key(aspect, identity) for variant in chosen]
        states = cache.states(keys)
        predictor = load_predictor(checkpoint, aspect, card.predictors[aspect])
        predicted = predict(predictor, [states[key] for key in keys])
        return dict(zip((variant.sample.id for variant in chosen), predicted, strict=True))

    def pairs(aspect: Aspect, kind: str, damage: str | None) -> list[tuple[float, float]]:
        original, worse = scores(aspect, "own", None), scores(aspect, kind, damage)
        return [(original[sample], worse[sample]) for sample in worse]

    compared: dict[str, list[tuple[float, float]]] = {}
    if Aspect.QUALITY in card.predictors:
        compared |= {damage: pairs(Aspect.QUALITY, "damaged", damage) for damage in SANITY_DAMAGES}
    if Aspect.CORRESPONDENCE in card.predictors:
        compared["unrelated_prompt"] = pairs(Aspect.CORRESPONDENCE, "unrelated", None)
        compared["changed_prompt"] = pairs(Aspect.CORRESPONDENCE, "changed", None)
    return {name: {"lower": share_lower(each), "n": len(each)} for name, each in compared.items() if each}
