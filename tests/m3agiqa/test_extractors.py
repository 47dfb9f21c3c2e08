"""Whatever reads the sequence and however it is pooled: only a conversation's own states matter."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from m3agiqa.errors import InputError
from m3agiqa.predictor.config import Extractor, Pooling, PredictorConfig
from m3agiqa.predictor.model import Predictor, pool

EXTRACTORS = get_args(Extractor)
ALL = list(product(EXTRACTORS, get_args(Pooling)))
LENGTHS = (41, 1, 23)
WIDTH = 12


def made(extractor: str, pooling: str, **settings: object) -> Predictor:
    """Random weights, the gates' and the norms' too, which start at constants."""
    torch.manual_seed(0)
    shape = {"dim": 16, "heads": 2, "blocks": 2, "context_length": 64, "regression_dim": 8, **settings}
    predictor = Predictor(PredictorConfig(WIDTH, extractor=extractor, pooling=pooling, **shape)).eval()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return predictor


def conversations() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, WIDTH, generator=generator) for length in LENGTHS]


@pytest.mark.parametrize(("extractor", "pooling"), ALL)
def test_padding_and_neighbours_change_nothing(extractor: str, pooling: str) -> None:
    predictor, states = made(extractor, pooling), conversations()
    alone = torch.tensor([predictor.predict(each) for each in states])
    assert alone.std() > 1e-4, "it reads something"
    for filling in (0.0, 1e3):
        batch = pad_sequence([*states, torch.zeros(55, WIDTH)], batch_first=True, padding_value=filling)[:3]
        with torch.no_grad():
            together = predictor(batch, torch.tensor(LENGTHS))
        assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5), filling


@pytest.mark.parametrize(("extractor", "pooling"), ALL)
def test_gradients_are_finite_and_none_reaches_the_padding(extractor: str, pooling: str) -> None:
    predictor = made(extractor, pooling).train()
    batch = pad_sequence(conversations(), batch_first=True).requires_grad_()
    predictor(batch, torch.tensor(LENGTHS)).square().sum().backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert predictor.projection.weight.grad.abs().max() > 0
    for row, length in zip(batch.grad, LENGTHS, strict=True):
        assert row.isfinite().all()
        assert row[:length].abs().max() > 0
        assert length == len(row) or row[length:].abs().max() == 0


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_order_matters_to_all_but_none(extractor: str) -> None:
    predictor, states = made(extractor, "mean"), conversations()[0]
    both = predictor.projection(torch.stack([states, states.flip(0)]))
    forth, back = pool(predictor.extractor(both, torch.tensor([41, 41])), torch.tensor([41, 41]), "mean")
    assert ((forth - back).norm() > 1e-4 * forth.norm()) == (extractor != "none")


def test_poolings_are_what_they_are_called() -> None:
    states = conversations()[0]
    predictors = {pooling: made("none", pooling) for pooling in get_args(Pooling)}
    first, last = states[[0, 0]], states[[-1, -1]]  # of equal positions, all poolings are the position
    projected = predictors["mean"].projection(states)
    wanted = {
        "mean": projected.mean(0),
        "max": projected.amax(0),
        "last": projected[-1],
        "first+last": (projected[0] + projected[-1]) / 2,
    }
    for pooling, predictor in predictors.items():
        expected = predictor.regression(wanted[pooling]).item()
        assert predictor.predict(states) == pytest.approx(expected, rel=1e-4), pooling
        assert predictor.predict(first) == pytest.approx(predictors["last"].predict(states[:1]), rel=1e-4)
    assert predictors["last"].predict(states) == pytest.approx(predictors["max"].predict(last), rel=1e-4)


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_only_the_beginning_of_a_long_text_is_read(extractor: str) -> None:
    predictor = made(extractor, "last")
    states = torch.randn(90, WIDTH)
    assert predictor.predict(states) == pytest.approx(predictor.predict(states[:64]), rel=1e-5)


@pytest.mark.parametrize("extractor", ["xlstm", "transformer", "mamba2"])
def test_a_width_that_does_not_fit_the_heads_is_refused(extractor: str) -> None:
    with pytest.raises(InputError, match=r"4 heads cannot be 30 wide: dim must be a multiple"):
        Predictor(PredictorConfig(WIDTH, extractor=extractor, dim=30))


def test_an_xlstm_needs_a_block_where_slstm_is_to_be() -> None:
    with pytest.raises(InputError, match="blocks must be at least 2"):
        Predictor(PredictorConfig(WIDTH, dim=16, blocks=1))
    Predictor(PredictorConfig(WIDTH, dim=16, blocks=1, slstm_at=()))
