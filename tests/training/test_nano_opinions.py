"""Readers of opinions: fitted to differences inside sources, and honest about sources they have not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.nano.efficientnet_lite import N_STATISTICS
from m3agiqa.backbones.nano.nss_features import N_APPEARANCE
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS, QualityRegressor
from m3agiqa.metrics import srcc
from m3agiqa.samples import Sample
from training.nano.fit_quality_regressor import (
    MIN_IMAGES_TO_TRUST_ENCODER,
    RegressionData,
    agreement_by_aspect,
    fit_quality_regressor,
    held_out_quality_logits,
)

SOURCES = ("a", "b", "c")
N_TELLING = 400  # of the statistics and of the appearance


def planted(count: int = 480, seed: int = 0) -> RegressionData:
    """Quality follows a part of the statistics and of the appearance, authenticity the opposite."""
    generator = torch.Generator().manual_seed(seed)
    statistics = torch.randn(count, 2 * N_STATISTICS, generator=generator)
    appearance = torch.randn(count, N_APPEARANCE, generator=generator)
    merit = (statistics[:, :N_TELLING].sum(1) + appearance[:, :N_TELLING].sum(1)) / N_TELLING**0.5
    scores = torch.stack([0.5 + 0.1 * merit, 0.5 - 0.1 * merit], dim=1)
    sources = [SOURCES[i % 3] for i in range(count)]
    return RegressionData(statistics, appearance, torch.zeros(count, 2), scores, sources)


def fitted(examples: RegressionData) -> QualityRegressor:
    opinions = QualityRegressor()
    fit_quality_regressor(opinions, examples)
    return opinions


def test_logits_follow_what_counts_on_images_of_all_sources() -> None:
    new = planted(120, 1)
    logits = fitted(planted())(new.statistics, new.appearance, new.encoder_scores)
    for column in (0, 1):
        assert srcc(logits[:, column].tolist(), new.scores[:, column].tolist()) > 0.4


def test_logits_are_standardised() -> None:
    examples = planted()
    logits = fitted(examples)(examples.statistics, examples.appearance, examples.encoder_scores)
    assert torch.allclose(logits.mean(0), torch.zeros(2), atol=1e-3)
    assert torch.allclose(logits.std(0), torch.ones(2), atol=1e-2)


def test_the_quality_encoder_counts_only_on_images_like_those_of_a_large_source() -> None:
    examples = planted(900)
    large = torch.arange(900) < MIN_IMAGES_TO_TRUST_ENCODER
    examples.appearance[large] += 1.5  # what tells this source
    noise = torch.randn(examples.scores.shape, generator=torch.Generator().manual_seed(3))
    sources = ["large" if is_large else "small" for is_large in large]
    examples = replace(examples, encoder_scores=noise, sources=sources)
    regressor = fitted(examples)

    def logits(encoder_scores: torch.Tensor) -> torch.Tensor:
        return regressor(examples.statistics, examples.appearance, encoder_scores)

    change = (logits(noise + 1) - logits(noise)).abs()
    assert change[large].min() > 0.4 and change[~large].max() < 0.05
    small = replace(examples, sources=[f"{source} {row % 9}" for row, source in enumerate(sources)])
    regressor = fitted(small)
    assert torch.equal(logits(noise + 1), logits(noise))


@pytest.mark.parametrize("unknown", [Aspect.QUALITY, Aspect.AUTHENTICITY])
def test_an_aspect_without_scores_gets_no_quality_logit(unknown: Aspect) -> None:
    examples = planted(60)
    examples.scores[:, JUDGED_ASPECTS.index(unknown)] = torch.nan
    examples.encoder_scores[:] = torch.rand(60, 2)
    read = fitted(examples)(examples.statistics, examples.appearance, examples.encoder_scores)
    spread = read.std(0)
    assert spread[JUDGED_ASPECTS.index(unknown)] == 0 and spread[1 - JUDGED_ASPECTS.index(unknown)] > 0.5


def test_some_scores_may_be_missing() -> None:
    examples = planted()
    examples.scores[::5, 0] = torch.nan
    assert (
        fitted(examples)(examples.statistics, examples.appearance, examples.encoder_scores).isfinite().all()
    )


def test_a_source_is_judged_by_readers_that_have_not_seen_it() -> None:
    examples = planted(90)
    found = held_out_quality_logits(examples)
    changed = examples.scores.clone()
    changed[0::3] = changed[0::3].flip(0)
    again = held_out_quality_logits(replace(examples, scores=changed))
    assert torch.equal(found[0::3], again[0::3])
    assert not torch.equal(found[1::3], again[1::3])


def test_a_single_source_leaves_nothing_to_learn_from() -> None:
    examples = planted(20)
    alone = replace(examples, sources=["a"] * 20)
    assert held_out_quality_logits(alone).isnan().all()


def test_agreement_is_measured_by_source_and_for_clean_images() -> None:
    samples = [
        Sample(f"{i}", Path("x"), source="large" if i < 40 else "small", distorted=i % 2 == 1)
        for i in range(60)
    ] + [Sample("60", Path("x"), source="few")]
    scores = torch.rand(61, 2, generator=torch.Generator().manual_seed(0))
    told = agreement_by_aspect(torch.stack([scores[:, 0], -scores[:, 1]], dim=1), scores, samples)
    assert told["quality"]["all"] == pytest.approx({"large": 1.0, "small": 1.0, "mean": 1.0, "plain": 1.0})
    assert told["authenticity"]["clean"] == pytest.approx({"large": -1.0, "mean": -1.0, "plain": -1.0})
