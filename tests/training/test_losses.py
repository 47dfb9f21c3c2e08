"""Losses prefer the right order, ignore what they should, and never end in a gradient that is no number."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m3agiqa.metrics import plcc
from training.stages.losses import (
    LossConfig,
    agreement_loss,
    fidelity_loss,
    hinge,
    plcc_loss,
    rank_loss,
    within_loss,
)

LOSSES = (plcc_loss, rank_loss, fidelity_loss)
ALL = LossConfig(mse=1.0, plcc=1.0, rank=1.0, fidelity=1.0, within=1.0)

tenths = st.integers(10, 50).map(lambda value: value / 10)
"""A MOS; of tenths, so that some are equal."""


@st.composite
def scored(draw: st.DrawFn, at_least: int = 1) -> tuple[Tensor, Tensor]:
    """Scores and MOS of up to 12 images."""
    count = draw(st.integers(at_least, 12))
    lists = st.lists(tenths, min_size=count, max_size=count)
    return torch.tensor(draw(lists)), torch.tensor(draw(lists))


def gradient(loss: Callable[[Tensor, Tensor], Tensor], scores: Tensor, mos: Tensor) -> Tensor:
    scores = scores.clone().requires_grad_()
    loss(scores, mos).backward()
    return scores.grad


def one_group(scores: Tensor, mos: Tensor) -> Tensor:
    return agreement_loss(scores, mos, torch.zeros(len(mos)), ALL)


@given(scored())
def test_plcc_and_fidelity_lie_between_0_and_1_and_rank_is_not_negative(pair: tuple[Tensor, Tensor]) -> None:
    for loss in (plcc_loss, fidelity_loss):
        assert -1e-5 <= loss(*pair).item() <= 1 + 1e-5
    assert rank_loss(*pair).item() >= 0


@given(scored(at_least=3))
def test_plcc_loss_is_half_of_what_is_lacking_of_the_correlation(pair: tuple[Tensor, Tensor]) -> None:
    scores, mos = pair
    if scores.unique().numel() > 1 and mos.unique().numel() > 1:
        expected = (1 - plcc(scores.numpy(), mos.numpy())) / 2
        assert plcc_loss(scores, mos).item() == pytest.approx(expected, abs=1e-4)


@given(scored(at_least=2), st.floats(0.1, 10), st.floats(-10, 10))
def test_plcc_loss_does_not_see_positive_affine_maps(
    pair: tuple[Tensor, Tensor], slope: float, shift: float
) -> None:
    scores, mos = (each.double() for each in pair)
    if scores.unique().numel() > 1:
        assert plcc_loss(slope * scores + shift, mos).item() == pytest.approx(
            plcc_loss(scores, mos).item(), abs=1e-6
        )


@given(scored(), st.floats(-10, 10))
def test_losses_about_order_do_not_see_a_shift(pair: tuple[Tensor, Tensor], shift: float) -> None:
    scores, mos = (each.double() for each in pair)
    for loss in LOSSES:
        assert loss(scores + shift, mos).item() == pytest.approx(loss(scores, mos).item(), abs=1e-6)


@given(st.lists(tenths, min_size=2, max_size=12, unique=True).map(torch.tensor))
def test_perfect_scores_cost_least_and_reversed_ones_most(mos: Tensor) -> None:
    assert plcc_loss(mos, mos).item() == pytest.approx(0, abs=1e-5)
    assert plcc_loss(-mos, mos).item() == pytest.approx(1, abs=1e-5)
    far = 100 * mos  # so far apart that nobody doubts the order
    for loss in (rank_loss, fidelity_loss):
        assert loss(far, mos).item() == pytest.approx(0, abs=1e-3)
        assert loss(mos, mos) < loss(mos * 0, mos) < loss(-mos, mos)
    assert fidelity_loss(-far, mos).item() == pytest.approx(1, abs=2e-3)
    assert rank_loss(-far, mos).item() > 5


@given(scored(at_least=2))
def test_swapping_a_wrong_pair_lowers_the_losses_about_pairs(pair: tuple[Tensor, Tensor]) -> None:
    scores, mos = pair[0][:2], pair[1][:2]
    if (scores[0] - scores[1]) * (mos[0] - mos[1]) < 0:
        for loss in LOSSES:
            assert loss(scores.flip(0), mos) < loss(scores, mos)


@given(scored(at_least=2))
def test_a_step_against_the_gradient_moves_towards_the_right_order(pair: tuple[Tensor, Tensor]) -> None:
    scores, mos = pair[0][:2], pair[1][:2]
    if mos[0] != mos[1]:
        better = int(mos[1] > mos[0])
        for loss in (rank_loss, fidelity_loss):
            slope = gradient(loss, scores, mos)
            assert slope[better] < 0 < slope[1 - better]


@given(scored(), st.randoms())
def test_the_order_of_the_images_does_not_matter(pair: tuple[Tensor, Tensor], random) -> None:
    order = list(range(len(pair[0])))
    random.shuffle(order)
    for loss in (*LOSSES, one_group):
        shuffled = loss(pair[0][order], pair[1][order]).item()
        assert shuffled == pytest.approx(loss(*pair).item(), abs=1e-5)


@settings(max_examples=200)
@given(scored(), st.booleans(), st.booleans())
def test_gradients_are_finite(pair: tuple[Tensor, Tensor], same_scores: bool, same_mos: bool) -> None:
    scores, mos = pair
    scores = scores[:1].expand(len(scores)) if same_scores else scores
    mos = mos[:1].expand(len(mos)) if same_mos else mos
    for loss in (*LOSSES, one_group):
        assert loss(scores, mos).isfinite()
        assert gradient(loss, scores, mos).isfinite().all()
    assert gradient(one_group, 1e4 * scores, mos).isfinite().all()


@given(st.lists(tenths, min_size=1, max_size=12).map(torch.tensor), tenths)
def test_equal_mos_say_nothing_about_the_order(scores: Tensor, value: float) -> None:
    mos = torch.full_like(scores, value)
    assert rank_loss(scores, mos).item() == 0
    assert gradient(plcc_loss, scores, mos).abs().max() < 1e-3
    if len(scores) > 1:
        assert fidelity_loss(torch.zeros_like(mos), mos).item() == pytest.approx(0, abs=1e-6)


def test_a_single_image_has_no_order() -> None:
    scores, mos = torch.tensor([2.0]), torch.tensor([4.0])
    assert rank_loss(scores, mos).item() == fidelity_loss(scores, mos).item() == 0
    assert gradient(one_group, scores, mos).item() == pytest.approx(2 * (2 - 4))
    assert within_loss(scores, mos, torch.zeros(1)).item() == 0


@given(scored(at_least=2), scored(at_least=2), st.floats(-100, 100))
def test_groups_are_never_mixed(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], shift: float
) -> None:
    ordering = LossConfig(mse=0.0, plcc=0.5, rank=0.3, fidelity=0.2)
    groups = torch.tensor([2] * len(first[0]) + [0] * len(second[0]))

    def together(moved: float) -> float:
        scores, mos = torch.cat([first[0], second[0] + moved]), torch.cat([first[1], second[1] + moved])
        return agreement_loss(scores, mos, groups, ordering).item()

    def alone(scores: Tensor, mos: Tensor) -> float:
        return agreement_loss(scores, mos, torch.zeros(len(mos)), ordering).item()

    assert together(0.0) == pytest.approx((alone(*first) + alone(*second)) / 2, abs=1e-5)
    if all(each.unique().numel() > 1 for each in second):
        assert together(shift) == pytest.approx(together(0.0), abs=1e-2), "an offset between groups is free"


@given(scored(at_least=2), st.data(), st.floats(-10, 10))
def test_knowing_the_source_is_worth_nothing_within_sources(
    pair: tuple[Tensor, Tensor], data: st.DataObject, shift: float
) -> None:
    scores, mos = (each.double() for each in pair)
    groups = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(mos), max_size=len(mos))))
    found = within_loss(scores, mos, groups).item()
    moved = scores + shift * (groups == groups[0])
    assert within_loss(moved, mos, groups).item() == pytest.approx(found, abs=1e-6)
    error = scores - mos
    pairs = [(error[i] - error[groups == groups[i]]).square().mean().item() / 2 for i in range(len(mos))]
    assert found == pytest.approx(sum(pairs) / len(mos), abs=1e-6)


def test_sources_part_an_aspect_only_for_the_loss_within_them() -> None:
    scores, mos = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 3.0, 3.0, 4.0])
    aspect, sources = torch.zeros(4, dtype=torch.long), torch.tensor([0, 0, 1, 1])
    level = LossConfig(mse=1.0)
    inside = LossConfig(mse=0.0, within=1.0)
    assert agreement_loss(scores, mos, aspect, level, sources=sources).item() == pytest.approx(0.5)
    assert agreement_loss(scores, mos, aspect, inside, sources=sources).item() == pytest.approx(0)
    assert agreement_loss(scores, mos, aspect, inside).item() == pytest.approx(0.25)


@given(scored(), st.floats(0, 2), st.floats(0, 2))
def test_the_sum_is_weighted_and_what_weighs_nothing_is_left_out(
    pair: tuple[Tensor, Tensor], mse: float, rank: float
) -> None:
    found = agreement_loss(*pair, torch.zeros(len(pair[0])), LossConfig(mse=mse, rank=rank)).item()
    expected = mse * (pair[0] - pair[1]).square().mean() + rank * rank_loss(*pair)
    assert found == pytest.approx(expected.item(), abs=1e-4)


@settings(deadline=None)
@given(scored(at_least=2), st.data())
def test_an_image_of_two_people_counts_as_two_images(
    pair: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    scores, mos = (each.double() for each in pair)
    people = torch.tensor(data.draw(st.lists(st.integers(1, 3), min_size=len(mos), max_size=len(mos))))

    def squared(*arguments: Tensor) -> Tensor:
        return agreement_loss(*arguments[:2], torch.zeros(len(arguments[0])), LossConfig(), *arguments[2:])

    def within(*arguments: Tensor) -> Tensor:
        return within_loss(*arguments[:2], torch.zeros(len(arguments[0])), *arguments[2:])

    for loss in (squared, plcc_loss, rank_loss, within):
        once = loss(scores, mos, people.double())
        each = loss(scores.repeat_interleave(people), mos.repeat_interleave(people))
        if scores.unique().numel() > 1 and mos.unique().numel() > 1:
            assert once.item() == pytest.approx(each.item(), abs=1e-6)
    assert fidelity_loss(scores, mos, people.double()) <= 1 + 1e-5


@given(scored(), st.floats(0, 2))
def test_hinge_is_zero_only_beyond_the_margin(pair: tuple[Tensor, Tensor], margin: float) -> None:
    better, worse = pair
    assert hinge(worse + margin + 0.01, worse, margin).item() == 0
    missing = [max(0.0, margin - (b - w)) for b, w in zip(better.tolist(), worse.tolist(), strict=True)]
    assert hinge(better, worse, margin).item() == pytest.approx(sum(missing) / len(missing), abs=1e-4)
