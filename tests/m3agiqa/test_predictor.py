from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from xlstm import xLSTMBlockStack

from m3agiqa.predictor import Predictor, PredictorConfig

CONFIG = PredictorConfig(input_size=24, dim=32, heads=2, context_length=160, regression_dim=16)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """Random weights, the gates' and the norms' too, which start at constants."""
    torch.manual_seed(0)
    predictor = Predictor(CONFIG).eval().requires_grad_(False)
    for parameter in predictor.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return predictor


@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_chunkwise_form_is_the_packages_quadratic_form(predictor: Predictor, length: int) -> None:
    stack = xLSTMBlockStack(copy.deepcopy(predictor.xlstm.config)).eval()
    missing, unexpected = stack.load_state_dict(predictor.xlstm.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.endswith("causal_mask") for name in missing)
    inputs = torch.randn(2, length, CONFIG.dim)
    with torch.no_grad():
        assert torch.allclose(predictor.xlstm(inputs), stack(inputs), rtol=1e-5, atol=1e-5)


def test_fused_predictor_is_the_same_function() -> None:
    torch.manual_seed(1)
    head = torch.randn(300, 24)
    on_logits = Predictor(replace(CONFIG, input_size=300, projection="vocab")).eval()
    fused = on_logits.fuse(head)
    hidden, lengths = torch.randn(3, 70, 24), torch.tensor([70, 41, 1])
    with torch.no_grad():
        assert torch.allclose(fused(hidden, lengths), on_logits(hidden @ head.T, lengths), rtol=1e-4)
    assert fused.config == CONFIG
    with pytest.raises(ValueError, match="only a predictor over the vocabulary"):
        fused.fuse(head)


def test_padding_and_neighbours_change_nothing(predictor: Predictor) -> None:
    torch.manual_seed(2)
    states = [torch.randn(length, 24) for length in (90, 17, 64)]
    alone = torch.tensor([predictor.predict(s) for s in states])
    batch = 1e3 * torch.randn(3, 130, 24)  # what stands in the padding must not matter
    for row, s in zip(batch, states, strict=True):
        row[: len(s)] = s
    with torch.no_grad():
        together = predictor(batch, torch.tensor([len(s) for s in states]))
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_only_the_beginning_of_a_long_text_is_read(predictor: Predictor) -> None:
    states = torch.randn(200, 24)
    assert predictor.predict(states) == pytest.approx(predictor.predict(states[:160]), rel=1e-5)


def test_order_matters(predictor: Predictor) -> None:
    states = torch.randn(50, 24)
    assert predictor.predict(states) != pytest.approx(predictor.predict(states.flip(0)), rel=1e-3)


def test_padding_carries_no_gradient() -> None:
    predictor = Predictor(CONFIG)
    states = torch.randn(1, 80, 24, requires_grad=True)
    predictor(states, torch.tensor([30])).sum().backward()
    assert states.grad[0, 30:].abs().max() == 0
    assert states.grad[0, :30].abs().max() > 0
