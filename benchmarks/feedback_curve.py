"""What people's scores do for a model in service: `python benchmarks/feedback_curve.py runs/nano`.

The run is that of `python -m training reproduce-nano DATA`. The model in service has its backbone, and
predictors fitted to all images but AGIQA-3k's. People are AGIQA-3k's mean opinion scores on nano's scale.
They score N images, the predictors are adapted, and both are tested on images of other prompts. With
`--choose features` they are asked for images that differ most, by the predictor's pooled states; `scores`
spreads them over the predicted range, `generators` over the generators.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from random import Random

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from m3agiqa.aspects import Aspect  # noqa: E402
from m3agiqa.grouping import fold_prompt  # noqa: E402
from m3agiqa.metrics import rmse, srcc  # noqa: E402
from m3agiqa.predictor.model import Predictor  # noqa: E402
from training.data.splits import shuffled  # noqa: E402
from training.data.variants import own_variants  # noqa: E402
from training.run import RunFolder  # noqa: E402
from training.stages.adapt import adapt  # noqa: E402
from training.stages.fit import FitConfig, fit, pooled_states, predict  # noqa: E402
from training.stages.fit_data import Target, targets  # noqa: E402
from training.stages.losses import LossConfig  # noqa: E402

ASPECTS = (Aspect.QUALITY, Aspect.CORRESPONDENCE)  # that AGIQA-3k's people scored
JUDGED_SOURCE = "agiqa-3k"
SIZES = (20, 50, 100, 200, 500, 1000)
SEEDS = (0, 1, 2)
TEST_IMAGES = 200  # at least, with whole prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run; hidden states are added to it")
    parser.add_argument("--images", type=int, default=1210, help="of AGIQA-3k to be described, if fewer are")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of judged images")
    parser.add_argument(
        "--choose", choices=SELECTION_METHODS, default="random", help="which images people judge"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the draws")
    args = parser.parse_args()
    run = RunFolder.open(args.run)
    judged = [sample for sample in run.samples if sample.source == JUDGED_SOURCE]
    order = shuffled([sample.id for sample in judged], run.config.seed)
    variants = own_variants(sorted(judged, key=lambda sample: order.index(sample.id)), ASPECTS)
    known = [v.key(ASPECTS[0], run.identity) in run.cache for v in variants]
    unknown = [variant for variant, is_known in zip(variants, known, strict=True) if not is_known]
    run.describe(unknown[: max(0, args.images - sum(known))], run.cache)
    variants = [variant for variant in variants if variant.key(ASPECTS[0], run.identity) in run.cache]
    sys.stdout.write("aspect | images | seed | SRCC before | after | RMSE before | after | moved\n")
    for aspect in ASPECTS:
        base = _model_in_service(run, aspect)
        people = targets(variants, run.cache, run.identity, aspect, run.scale)
        base, people = _regression_head(base), _pooled(base, people)
        for size in args.sizes:
            for seed in args.seeds:
                _judge(run, base, people, size, seed, aspect, args.choose)


def _model_in_service(run: RunFolder, aspect: Aspect) -> Predictor:
    """A predictor that knows no image of AGIQA-3k."""
    others = [each for each in run.targets(aspect) if each.sample.source != JUDGED_SOURCE]
    train, validation = (
        [each for each in others if each.sample.split == part] for part in ("train", "validation")
    )
    config = FitConfig(losses=LossConfig(mse=0.5, within=1.0, made_up=0.3))
    state = run.folder / "feedback-curve" / aspect
    return fit(train, validation, config, state, f"fit {aspect}", None, run.unit)[0]


def _regression_head(predictor: Predictor) -> Predictor:
    """The predictor from its pooled states on, which are all that changes; they come as sequences of one."""
    shape = replace(predictor.config, input_size=predictor.config.dim, projection="none", extractor="none")
    head = Predictor(shape).eval()
    head.regression.load_state_dict(predictor.regression.state_dict())
    return head


def _pooled(predictor: Predictor, people: list[Target]) -> list[Target]:
    pooled = pooled_states(predictor, [each.states for each in people])
    return [replace(each, states=state[None]) for each, state in zip(people, pooled, strict=True)]


def _judge(
    run: RunFolder, base: Predictor, people: list[Target], size: int, seed: int, aspect: Aspect, choose: str
) -> None:
    """A row of the table: people judge some images, and the adapted predictor is tested on others."""
    prompts = sorted({fold_prompt(each.sample.prompt) for each in people})
    rng, test = Random(seed), list[Target]()
    rng.shuffle(prompts)
    while len(test) < TEST_IMAGES:
        prompt = prompts.pop()
        test += [each for each in people if fold_prompt(each.sample.prompt) == prompt]
    pool = [each for each in people if fold_prompt(each.sample.prompt) in set(prompts)]
    if len(pool) < size:
        return
    adapted = adapt(base, SELECTION_METHODS[choose](base, pool, size, rng), run.unit)
    true = [each.mos for each in test]
    before, after = (
        np.clip(predict(model, [each.states for each in test]), run.scale.low, run.scale.high)
        for model in (base, adapted.predictor)
    )
    sys.stdout.write(
        f"{aspect} | {size} | {seed} | {srcc(before, true):.3f} | {srcc(after, true):.3f} | "
        f"{rmse(before, true):.3f} | {rmse(after, true):.3f} | {adapted.moved}\n"
    )
    sys.stdout.flush()


# --- which images people judge -------------------------------------------------------------------


def _random(base: Predictor, pool: list[Target], size: int, rng: Random) -> list[Target]:
    return rng.sample(pool, size)


def _by_features(base: Predictor, pool: list[Target], size: int, rng: Random) -> list[Target]:
    """Each next image is the farthest from those chosen (k-center), in standardised pooled states."""
    states = np.stack([each.states[0].double().numpy() for each in pool])
    states = (states - states.mean(0)) / (states.std(0) + 1e-6)
    chosen = [rng.randrange(len(pool))]
    distance = np.linalg.norm(states - states[chosen[0]], axis=1)
    while len(chosen) < size:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(states - states[chosen[-1]], axis=1))
    return [pool[number] for number in chosen]


def _by_scores(base: Predictor, pool: list[Target], size: int, rng: Random) -> list[Target]:
    """At equal steps of the predicted MOS, the nearest image that is left."""
    left = dict(enumerate(predict(base, [each.states for each in pool])))
    chosen = []
    for wanted in np.linspace(min(left.values()), max(left.values()), size):
        nearest = min(left, key=lambda number: abs(left[number] - wanted))
        chosen.append(pool[nearest])
        del left[nearest]
    return chosen


def _by_generators(base: Predictor, pool: list[Target], size: int, rng: Random) -> list[Target]:
    """One of each generator in turn."""
    by_generator: dict[str | None, list[Target]] = {}
    for each in rng.sample(pool, len(pool)):
        by_generator.setdefault(each.sample.generator, []).append(each)
    turns = zip_longest(*by_generator.values())
    return [each for turn in turns for each in turn if each is not None][:size]


SELECTION_METHODS = {
    "random": _random,
    "features": _by_features,
    "scores": _by_scores,
    "generators": _by_generators,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
