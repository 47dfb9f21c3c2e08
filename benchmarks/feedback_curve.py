"""What people's scores do for a model in service: `python benchmarks/feedback_curve.py DATA runs/curve`.

DATA is that of `python -m training reproduce-nano`. The model in service is made as nano is, but without any
score of AGIQA-3k: quality encoder, quality regressor and predictors are fitted to images of other sources.
People are AGIQA-3k's mean opinion scores on nano's scale. They score N images, the predictors are adapted,
and both are tested on images of other prompts. With `--choose features` they are asked for images that stand
for the most others, by the predictors' pooled states, as by the annotation queue's order "most informative
first"; `scores` spreads them over the predicted range, `generators` over the generators; `disagreement` takes
those whose predicted MOS is farthest from the word that the model says.

What was fitted and described stays in the run's folder, so that a stopped benchmark goes on from there.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from annotation.store.informative import most_representative  # noqa: E402
from m3agiqa.aspects import RATING_WORDS, Aspect  # noqa: E402
from m3agiqa.backbones.nano import QUALITY_ENCODER_FILE  # noqa: E402
from m3agiqa.grouping import fold_prompt  # noqa: E402
from m3agiqa.metrics import rmse, srcc  # noqa: E402
from m3agiqa.predictor.model import Predictor  # noqa: E402
from m3agiqa.samples import Sample  # noqa: E402
from training.config import RunConfig  # noqa: E402
from training.data import DataConfig  # noqa: E402
from training.data.splits import shuffled  # noqa: E402
from training.data.variants import Variant, own_variants  # noqa: E402
from training.nano.align import AlignConfig, align  # noqa: E402
from training.pipeline import run_stages  # noqa: E402
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
    parser.add_argument("data", type=Path, help="folder with agiqa-3k/, agi-native/ and agi-teacher/")
    parser.add_argument("run", type=Path, help="folder for descriptions and hidden states")
    parser.add_argument("--images", type=int, default=1300, help="of AGIQA-3k, judged or tested on")
    parser.add_argument("--others", type=int, default=600, help="that the model in service learns from")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of judged images")
    parser.add_argument(
        "--choose", choices=[*SELECTION_METHODS, "features"], default="random", help="images people judge"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the draws")
    args = parser.parse_args()
    fitted = AlignConfig(parts=("quality_encoder", "quality_regressor"))
    config = RunConfig(data=DataConfig("nano", args.data), name="feedback-curve", align=fitted)
    run = RunFolder(args.run, config)
    run_stages(run, until="datasets")
    _fit_quality_encoder(run, fitted)
    judged = _drawn(run, args.images, lambda sample: sample.source == JUDGED_SOURCE)
    others = _drawn(run, args.others, lambda sample: sample.source != JUDGED_SOURCE)
    run.describe([*judged, *others], run.cache)
    torch.set_num_threads(1)
    sys.stdout.write("aspect | images | seed | SRCC before | after | RMSE before | after | moved\n")
    heads, people = {}, {}
    for aspect in ASPECTS:
        predictor = _model_in_service(run, aspect, others)
        heads[aspect] = _regression_head(predictor)
        people[aspect] = _pooled(predictor, targets(judged, run.cache, run.identity, aspect, run.scale))
    states = {each.sample.id: each.states[0] for each in people[ASPECTS[0]]}
    for aspect in ASPECTS[1:]:
        states |= {e.sample.id: torch.cat([states[e.sample.id], e.states[0]]) for e in people[aspect]}
    methods = SELECTION_METHODS | {"features": partial(_by_features, states)}
    for aspect in ASPECTS:
        for size in args.sizes:
            for seed in args.seeds:
                _judge(run, heads[aspect], people[aspect], size, seed, aspect, methods[args.choose])


def _fit_quality_encoder(run: RunFolder, config: AlignConfig) -> None:
    """From its published weights, to images of other sources; the quality regressor, too."""
    if run.is_aligned or run.init_from is None:
        return
    begun = run.folder / "start"
    learned = shutil.ignore_patterns(QUALITY_ENCODER_FILE)
    shutil.copytree(run.init_from, begun, ignore=learned, dirs_exist_ok=True)
    others = [sample for sample in run.samples if sample.source != JUDGED_SOURCE]
    align(others, None, run.scale, run.align_folder, config, begun)


def _drawn(run: RunFolder, count: int, is_wanted: Callable[[Sample], bool]) -> list[Variant]:
    """So many samples that are wanted and have scores of both aspects."""
    wanted = {s.id: s for s in run.samples if is_wanted(s) and all(aspect in s.mos for aspect in ASPECTS)}
    return own_variants([wanted[name] for name in shuffled([*wanted], run.config.seed)[:count]], ASPECTS)


def _model_in_service(run: RunFolder, aspect: Aspect, others: list[Variant]) -> Predictor:
    """A predictor that knows no image of AGIQA-3k."""
    known = targets(others, run.cache, run.identity, aspect, run.scale)
    validation, train = known[: len(known) // 5], known[len(known) // 5 :]
    config = FitConfig(losses=LossConfig(mse=0.5, within=1.0))
    state = run.folder / f"state-fit-{len(others)}" / aspect
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
    run: RunFolder,
    base: Predictor,
    people: list[Target],
    size: int,
    seed: int,
    aspect: Aspect,
    choose: SelectionMethod,
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
    adapted = adapt(base, choose(base, pool, size, rng), run.unit)
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

SelectionMethod = Callable[[Predictor, list[Target], int, Random], list[Target]]
"""Some images of a pool, as a model in service sees them."""


def _random(base: Predictor, pool: list[Target], size: int, rng: Random) -> list[Target]:
    return rng.sample(pool, size)


def _by_features(
    states: dict[str, Tensor], base: Predictor, pool: list[Target], size: int, rng: Random
) -> list[Target]:
    """As the queue's order "most informative first", by the pooled states of both aspects."""
    drawn = rng.sample(pool, len(pool))
    waiting = np.stack([states[each.sample.id].float().numpy() for each in drawn])
    return [drawn[number] for number in most_representative(waiting, waiting[:0], size)]


def _by_scores(base: Predictor, pool: list[Target], size: int, rng: Random) -> list[Target]:
    """At equal steps of the predicted MOS, the nearest image that is left."""
    left = dict(enumerate(predict(base, [each.states for each in pool])))
    chosen = []
    for wanted in np.linspace(min(left.values()), max(left.values()), size):
        nearest = min(left, key=lambda number: abs(left[number] - wanted))
        chosen.append(pool[nearest])
        del left[nearest]
    return chosen


def _by_disagreement(base: Predictor, pool: list[Target], size: int, rng: Random) -> list[Target]:
    """Those whose predicted MOS is farthest from the rating word that the backbone has generated."""
    predicted = predict(base, [each.states for each in pool])

    def distance(number: int) -> float:
        rating = pool[number].rating
        return math.inf if rating is None else abs(predicted[number] - 1 - RATING_WORDS.index(rating))

    chosen = sorted(rng.sample(range(len(pool)), len(pool)), key=distance, reverse=True)
    return [pool[number] for number in chosen[:size]]


def _by_generators(base: Predictor, pool: list[Target], size: int, rng: Random) -> list[Target]:
    """One of each generator in turn."""
    by_generator: dict[str | None, list[Target]] = {}
    for each in rng.sample(pool, len(pool)):
        by_generator.setdefault(each.sample.generator, []).append(each)
    turns = zip_longest(*by_generator.values())
    return [each for turn in turns for each in turn if each is not None][:size]


SELECTION_METHODS = {
    "random": _random,
    "scores": _by_scores,
    "generators": _by_generators,
    "disagreement": _by_disagreement,
}

if __name__ == "__main__":
    main()
