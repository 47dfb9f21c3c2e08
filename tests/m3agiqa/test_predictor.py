"""The predictor is the paper's function, in linear time and whether or not logits are made."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from xlstm import xLSTMBlockStack

from m3agiqa.predictor.config import PredictorConfig
from m3agiqa.predictor.model import Predictor

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
    stack = xLSTMBlockStack(copy.deepcopy(predictor.extractor.layers.config)).eval()
    missing, unexpected = stack.load_state_dict(predictor.extractor.layers.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.endswith("causal_mask") for name in missing)
    inputs = torch.randn(2, length, CONFIG.dim)
    with torch.no_grad():
        assert torch.allclose(predictor.extractor.layers(inputs), stack(inputs), rtol=1e-5, atol=1e-5)


@pytest.fixture
def head() -> Tensor:
    """An output head of 1,000 words, as spread out as a trained one."""
    torch.manual_seed(1)
    return torch.randn(1000, 24)


def on_logits(extractor: str = "xlstm") -> Predictor:
    torch.manual_seed(2)
    return Predictor(replace(CONFIG, input_size=1000, projection="vocab", extractor=extractor)).eval()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("extractor", ["xlstm", "none"])
def test_fused_predictor_is_the_same_function(head: Tensor, extractor: str) -> None:
    unfused = on_logits(extractor)
    fused = unfused.fuse(head)
    hidden, lengths = torch.randn(3, 70, 24), torch.tensor([70, 41, 1])
    with torch.no_grad():
        expected = unfused(hidden @ head.T, lengths)
        assert expected.std() > 0
        assert relative_error(fused(hidden, lengths), expected) < 1e-4
        pooled = unfused.projection(hidden @ head.T)
        assert relative_error(fused.projection(hidden), pooled) < 1e-4
    assert fused.config == replace(CONFIG, extractor=extractor)
    with pytest.raises(ValueError, match="only a predictor over the vocabulary"):
        fused.fuse(head)


def test_training_over_the_vocabulary_needs_no_logits(head: Tensor) -> None:
    through_logits = on_logits().double()
    through_head = copy.deepcopy(through_logits)
    head = head.double()
    hidden, lengths = torch.randn(3, 70, 24).double(), torch.tensor([70, 41, 1])
    mos = torch.tensor([1.0, 3.0, 4.5]).double()
    losses = [
        (through_logits(hidden @ head.T, lengths) - mos).square().mean(),
        (through_head(hidden, lengths, head) - mos).square().mean(),
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-9)
    for loss in losses:
        loss.backward()
    slow, fast = through_logits.projection.weight.grad, through_head.projection.weight.grad
    assert slow.shape == (CONFIG.dim, 1000)
    assert slow.abs().max() > 0
    assert relative_error(fast, slow) < 1e-9
    for name, parameter in through_logits.named_parameters():
        other = through_head.get_parameter(name).grad
        assert torch.allclose(other, parameter.grad, rtol=1e-7, atol=1e-12), name


def test_without_a_projection_the_states_are_only_scaled() -> None:
    torch.manual_seed(3)
    bare = Predictor(PredictorConfig(24, projection="none", extractor="none")).eval()
    states = torch.randn(9, 24)
    with torch.no_grad():
        assert bare.predict(states) == pytest.approx(bare.regression(states.mean(0)).item(), rel=1e-5)
        bare.projection.weight *= 2
        bare.projection.bias += 1
        assert bare.predict(states) == pytest.approx(bare.regression(2 * states.mean(0) + 1).item(), rel=1e-5)
    assert sum(p.numel() for p in bare.projection.parameters()) == 2 * 24


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
