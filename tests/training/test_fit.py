"""The predictor learns what is there to learn, in the right order, and resumes to the same result."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.metrics import srcc
from m3agiqa.predictor.model import Predictor
from m3agiqa.samples import Sample
from training.evaluation.evaluate import agreement, share_lower
from training.stages import fit as fit_module
from training.stages.fit import FitConfig, Standardizer, fit, predict
from training.stages.fit_data import Target
from training.stages.leave_source_out import leave_source_out, source_groups, within_source
from training.stages.losses import LossConfig

CONFIG = FitConfig(dim=16, blocks=2, epochs=6, batch=8, lr=5e-3, dropout=0.1)
SCALE = MosScale(1.0, 5.0)


def planted(count: int, seed: int) -> list[Target]:
    """Sequences whose first channel carries the MOS; in the worse case it says 1."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        length = int(torch.randint(5, 9, (1,), generator=generator))
        mos = 1 + 4 * torch.rand(1, generator=generator).item()

        def states(score: float, length: int = length) -> torch.Tensor:
            noise = torch.randn(length, 6, generator=generator) * 0.3
            noise[:, 0] += score - 3
            return noise * torch.tensor([1.0, 100.0, 1.0, 0.01, 1.0, 1.0]) + 5

        split = "test" if number % 4 > 1 else "train"
        sample = Sample(f"{seed}-{number}", Path("x"), source="ab"[number % 2], split=split)
        own = Target(sample, Aspect.QUALITY, states(mos), mos)
        found.append(replace(own, worse=replace(own, states=states(1.0), mos=1.0)))
    return found


def test_fit_finds_a_planted_signal_and_the_order(tmp_path: Path) -> None:
    train, validation = planted(64, 0), planted(32, 1)
    predictor, reached = fit(train, validation, CONFIG, tmp_path / "state", "test")
    predicted = predict(predictor, [target.states for target in validation])
    assert reached == pytest.approx(srcc(predicted, [target.mos for target in validation]), abs=0.01)
    assert reached > 0.9
    worse = predict(predictor, [target.worse.states for target in validation])
    high = [(p, w) for p, w, t in zip(predicted, worse, validation, strict=True) if t.mos > 2]
    assert share_lower(high) > 0.9


@pytest.mark.parametrize("unit", [1.0, 25.0])
def test_made_up_scores_are_learned_too(tmp_path: Path, unit: float) -> None:
    """A prompt that has nothing to do with the image gets a low score, and not just a lower one."""

    def far_off(target: Target) -> Target:
        """Its worse case looks like an image of MOS 1 but has its score far below."""
        return replace(target, mos=unit * target.mos, worse=replace(target.worse, mos=-3.0 * unit))

    train, validation = ([far_off(t) for t in planted(*each)] for each in ((64, 0), (32, 1)))
    means = {}
    for made_up in (0.0, 1.0):
        config = replace(QUICK, losses=LossConfig(within=1.0, worse=0.0, made_up=made_up))
        predictor, _ = fit(train, validation, config, tmp_path / str(made_up), "test", unit=unit)
        worse = predict(predictor, [target.worse.states for target in validation])
        means[made_up] = sum(worse) / len(worse) / unit
    assert means[1.0] < means[0.0] - 0.5


QUICK = replace(CONFIG, extractor="none", input_dropout=0.1, epochs=8, lr=2e-2)


@pytest.mark.parametrize("unit", [1.0, 25.0])
def test_level_and_slope_can_be_those_of_the_validation_images(tmp_path: Path, unit: float) -> None:
    train = [replace(target, mos=unit * (target.mos / 2 + 2)) for target in planted(64, 0)]
    validation, new = ([replace(t, mos=unit * t.mos) for t in planted(*each)] for each in ((64, 1), (64, 2)))
    errors = {}
    for calibrate in (False, True):
        config = replace(QUICK, calibrate=calibrate)
        predictor, _ = fit(train, validation, config, tmp_path / str(calibrate), "test", unit=unit)
        predicted = predict(predictor, [target.states for target in new])
        errors[calibrate] = torch.tensor([p - t.mos for p, t in zip(predicted, new, strict=True)]) / unit
    assert errors[False].mean() > 0.3 and abs(errors[True].mean()) < 0.15
    assert errors[True].square().mean() < 0.5 * errors[False].square().mean()
    assert fit_module._least_squares(predictor, new[:8], None, unit) == (unit, 0.0), "too few"


"""Without an extractor, for what does not depend on it."""


def test_a_mos_of_many_people_counts_more(tmp_path: Path) -> None:
    """Every image is there twice, once as eight people find it and once as one does."""
    seen = planted(32, 0)
    many, one = {Aspect.QUALITY: 8}, {}
    said = [
        replace(target, mos=mos, worse=None, sample=replace(target.sample, id=f"{mos}", raters=raters))
        for target in seen
        for mos, raters in ((2.0, many), (4.0, one))
    ]
    predictor, _ = fit(said, seen, replace(QUICK, epochs=30), tmp_path / "state", "test")
    predicted = predict(predictor, [target.states for target in seen])
    assert sum(predicted) / len(predicted) == pytest.approx((8 * 2 + 4) / 9, abs=0.25)


def with_taste(targets: list[Target], seed: int) -> list[tuple[float, Target]]:
    """Images whose second channel carries what their MOS says nothing of, from -1 to 1."""
    tastes = (2 * torch.rand(len(targets), generator=torch.Generator().manual_seed(seed)) - 1).tolist()
    shift = torch.tensor([0.0, 100.0, 0.0, 0.0, 0.0, 0.0])
    return [
        (taste, replace(target, states=target.states + taste * shift, worse=None))
        for taste, target in zip(tastes, targets, strict=True)
    ]


def picks(count: int, seed: int) -> list[Target]:
    """Pairs of like MOS of which people pick the one to their taste, each of a prompt of its own."""
    drawn = with_taste(sorted(planted(2 * count, seed), key=lambda target: target.mos), seed)
    found = []
    for number, pair in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
        (_, worse), (_, better) = sorted(pair, key=lambda each: each[0])
        sample = replace(better.sample, prompt=f"prompt {number}")
        found.append(replace(better, sample=sample, mos=math.nan, worse=worse))
    return found


def test_a_model_fitted_with_preferences_orders_unseen_pairs_better(tmp_path: Path) -> None:
    train, validation = ([t for _, t in with_taste(planted(*each), each[1])] for each in ((64, 0), (32, 1)))
    unseen, shares = picks(100, 3), []
    for number, preferred in enumerate(([], picks(60, 2))):
        folder = tmp_path / str(number)
        predictor, reached = fit(train, validation, QUICK, folder, "test", preferred=preferred)
        assert reached > 0.7, "scores are learned as well"
        worse = scores(predictor, [target.worse for target in unseen])
        shares.append(float((scores(predictor, unseen) > worse).float().mean()))
    assert shares[1] > shares[0] + 0.1, shares


VOCAB = replace(QUICK, projection="vocab")


@pytest.fixture
def head() -> torch.Tensor:
    """An output head of 50 words, some of which are said a hundred times as loudly."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(50, 6, generator=generator) * torch.logspace(-1, 1, 50)[:, None]


def scores(predictor: Predictor, targets: list[Target], head: torch.Tensor | None = None) -> torch.Tensor:
    return torch.tensor(predict(predictor, [target.states for target in targets], head))


@pytest.mark.parametrize("standardize", [True, False])
def test_fit_over_the_vocabulary_is_fused_without_a_change(
    tmp_path: Path, head: torch.Tensor, standardize: bool
) -> None:
    train, validation = planted(64, 0), planted(32, 1)
    if not standardize:  # what standardization is for must not be there then
        train, validation = ([_plain(target) for target in each] for each in (train, validation))
    config = replace(VOCAB, standardize=standardize)
    predictor, reached = fit(train, validation, config, tmp_path / "state", "test", head)
    assert predictor.config.input_size == len(head)
    assert reached > 0.8
    over_logits = predict(predictor, [target.states @ head.T for target in validation])
    over_head, fused = scores(predictor, validation, head), scores(predictor.fuse(head), validation)
    spread = over_head.std()
    assert (over_head - torch.tensor(over_logits)).abs().max() < 2e-3 * spread
    assert (over_head - fused).abs().max() < 2e-3 * spread
    assert srcc(fused, [target.mos for target in validation]) == pytest.approx(reached, abs=0.01)


def _plain(target: Target) -> Target:
    ruler = torch.tensor([1.0, 100.0, 1.0, 0.01, 1.0, 1.0])
    return replace(target, states=(target.states - 5) / ruler, worse=target.worse and _plain(target.worse))


def test_standardization_is_folded_in_exactly(head: torch.Tensor) -> None:
    torch.manual_seed(0)
    train = planted(24, 0)
    raw = [target.states for target in train]
    for projection, matrix in (("hidden", None), ("none", None), ("vocab", head)):
        shape = FitConfig(projection=projection, extractor="none", dim=8).shape(6, len(head))
        predictor = Predictor(shape).eval()
        scaler = Standardizer.of(train, matrix)
        scaled = [target.states.float() for target in scaler.apply(train)]
        inputs = torch.cat(scaled) if matrix is None else torch.cat(scaled) @ scaler.head.T
        assert inputs.mean(0).abs().max() < 0.02
        assert (inputs.std(0) - 1).abs().max() < 0.02
        before = torch.tensor(predict(predictor, scaled, scaler.head))
        scaler.fold_into(predictor)
        after = torch.tensor(predict(predictor, raw, matrix))
        assert (before - after).abs().max() < 5e-3 * before.std(), projection  # states are kept in 16 bit


def test_the_signal_is_found_over_the_vocabulary_as_in_hidden_states(
    tmp_path: Path, head: torch.Tensor
) -> None:
    train, validation = planted(64, 0), planted(32, 1)
    _, hidden = fit(train, validation, QUICK, tmp_path / "hidden", "hidden")
    _, vocab = fit(train, validation, VOCAB, tmp_path / "vocab", "vocab", head)
    assert vocab == pytest.approx(hidden, abs=0.1)


@pytest.mark.parametrize("config", [CONFIG, VOCAB], ids=["xlstm", "vocab"])
def test_fit_resumes_to_exactly_the_same_predictor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: torch.Tensor, config: FitConfig
) -> None:
    train, validation = planted(24, 0), planted(12, 1)
    config = replace(config, epochs=4)
    whole, reached = fit(train, validation, config, tmp_path / "whole", "whole", head)
    _kill_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fit(train, validation, config, tmp_path / "cut", "cut", head)
    monkeypatch.undo()
    resumed, again = fit(train, validation, config, tmp_path / "cut", "resumed", head)
    assert again == reached
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def _kill_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = fit_module._save

    def interrupted(state: Path, done: int, *rest: object) -> None:
        saved(state, done, *rest)
        if done == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "_save", interrupted)


def epochs_of(state: Path) -> int:
    return json.loads((state / "epoch.json").read_text())["done"]


def test_patience_ends_training_once_nothing_is_gained(tmp_path: Path) -> None:
    train, validation = planted(16, 0), planted(12, 1)
    config = replace(QUICK, epochs=12, lr=0.0)  # no epoch after the first is better
    patient, reached = fit(train, validation, replace(config, patience=2), tmp_path / "few", "few")
    assert epochs_of(tmp_path / "few") == 3
    through, same = fit(train, validation, config, tmp_path / "all", "all")
    assert epochs_of(tmp_path / "all") == 12
    assert reached == same
    assert torch.equal(scores(patient, validation), scores(through, validation))
    fit(train, validation, replace(config, patience=2), tmp_path / "few", "again")
    assert epochs_of(tmp_path / "few") == 3, "it has ended and goes on with nothing"


def test_the_best_epoch_is_kept_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = planted(16, 0), planted(12, 1)
    reached = iter([0.1, 0.7, 0.3, 0.6, 0.1, 0.7])
    monkeypatch.setattr(fit_module, "_agreement", lambda *_: next(reached))
    config = replace(QUICK, epochs=4, constant_lr=True)  # a rate that does not know how many are to come
    best, srcc_of_best = fit(train, validation, config, tmp_path / "four", "four")
    assert srcc_of_best == 0.7
    second, _ = fit(train, validation, replace(config, epochs=2), tmp_path / "two", "two")
    assert torch.equal(scores(best, validation), scores(second, validation))


def test_a_joint_predictor_reads_what_is_asked(tmp_path: Path) -> None:
    """Two aspects with opposite signs; the conversation (last channel) tells which is meant."""

    def asked(targets: list[Target], aspect: Aspect, sign: float) -> list[Target]:
        found = []
        for target in targets:
            states = torch.cat([_plain(target).states, torch.full((len(target.states), 1), sign)], dim=1)
            mos = target.mos if sign > 0 else 6 - target.mos
            found.append(replace(target, aspect=aspect, states=states, worse=None, mos=mos))
        return found

    def both(count: int, seed: int) -> list[Target]:
        every = planted(count, seed)
        return asked(every, Aspect.QUALITY, 1.0) + asked(every, Aspect.AUTHENTICITY, -1.0)

    config = replace(QUICK, joint=True, epochs=25, dropout=0.0, input_dropout=0.0)
    config = replace(config, losses=LossConfig(plcc=0.5, rank=0.5))
    train, validation = both(64, 0), both(24, 1)
    predictor, reached = fit(train, validation, config, tmp_path / "state", "joint")
    each = []
    for aspect in (Aspect.QUALITY, Aspect.AUTHENTICITY):
        about = [target for target in validation if target.aspect is aspect]
        each.append(srcc(scores(predictor, about), [target.mos for target in about]))
    assert min(each) > 0.8
    assert reached == pytest.approx(sum(each) / 2, abs=0.02)


@pytest.mark.parametrize("loss", ["plcc", "rank", "fidelity", "within"])
def test_every_loss_about_order_finds_the_signal_alone(tmp_path: Path, loss: str) -> None:
    train, validation = planted(64, 0), planted(32, 1)
    config = replace(QUICK, losses=LossConfig(**{"mse": 0.0, "worse": 0.0, loss: 1.0}))
    _, reached = fit(train, validation, config, tmp_path / "state", loss)
    assert reached > 0.8


def long(count: int, length: int, seed: int) -> list[Target]:
    """Sequences that say their MOS in the last twenty positions."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        mos, states = 1 + 4 * (number % 8) / 7, 0.3 * torch.randn(length, 6, generator=generator)
        states[-20:, 0] += 4 * (mos - 3)
        found.append(Target(Sample(f"{number}", Path("x")), Aspect.QUALITY, states, mos))
    return found


def test_the_end_of_a_long_conversation_reaches_the_predictor(tmp_path: Path) -> None:
    train, validation = long(16, 1500, 0), long(8, 1800, 1)
    config = replace(QUICK, pooling="last", epochs=12, input_dropout=0.0, averaging=0.5)
    predictor, reached = fit(train, validation, config, tmp_path / "state", "test")
    assert predictor.config.context_length == 1875, "a quarter more than the longest that is learned from"
    assert reached > 0.9, "also where it is longer than all of these"
    cut, blind = fit(train, validation, replace(config, context_length=512), tmp_path / "cut", "test")
    assert cut.config.context_length == 512
    assert not blind > 0.8, "what is said after the limit cannot be known"


def test_a_table_of_positions_is_as_long_as_the_limit(tmp_path: Path) -> None:
    train = long(2, 1000, 0)
    config = replace(QUICK, extractor="transformer", dim=4, blocks=1, epochs=1)
    predictor, _ = fit(train, train, config, tmp_path / "state", "test")
    assert predictor.config.context_length == 1250
    states = long(1, 1240, 1)[0].states
    changed = states.clone()
    changed[-1] += 5
    assert predictor.predict(states) != predictor.predict(changed)


def test_the_limit_is_the_same_for_short_conversations(tmp_path: Path) -> None:
    predictor, _ = fit(planted(8, 0), planted(8, 1), replace(QUICK, epochs=1), tmp_path / "state", "test")
    assert predictor.config.context_length == 1024


@pytest.mark.parametrize("length", [0, -5])
def test_a_limit_must_leave_something_to_read(length: int) -> None:
    with pytest.raises(InputError, match=f"fit.context_length must be at least 1, not {length}"):
        FitConfig(context_length=length)


def test_over_the_vocabulary_there_must_be_a_head(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the backbone's output matrix"):
        fit(planted(8, 0), planted(8, 1), VOCAB, tmp_path / "state", "test")


def test_leave_source_out_predicts_what_is_held_out_once(tmp_path: Path) -> None:
    every = planted(48, 0)
    groups = source_groups([target.sample for target in every])
    assert sorted(groups) == [["a"], ["b"]]
    frame = leave_source_out(every, groups, CONFIG, SCALE, tmp_path, "test")
    held_out = [target.sample.id for target in every if target.sample.split == "test"]
    assert sorted(frame["sample"]) == sorted(held_out)
    found = within_source(frame)
    assert found["mean"] == pytest.approx((found["a"] + found["b"]) / 2)
    assert found["mean"] > 0.7


def test_small_sources_are_left_out_together() -> None:
    names = ["big"] * 90 + ["small"] * 6 + ["tiny"] * 4
    samples = [Sample(str(i), Path("x"), source=name) for i, name in enumerate(names)]
    assert source_groups(samples) == [["big"], ["small", "tiny"]]


def test_agreement_of_perfect_and_reversed_scores() -> None:
    true = [1.0, 2.0, 3.0, 4.0, 4.9]
    perfect = agreement(true, true, SCALE)
    assert [perfect[name] for name in ("srcc", "plcc", "krcc")] == pytest.approx([1, 1, 1])
    assert perfect["rmse"] == 0
    assert perfect["accuracy"] == perfect["rough_accuracy"] == 1
    reversed_ = agreement(true[::-1], true, SCALE)
    assert reversed_["srcc"] == pytest.approx(-1)
    assert reversed_["rough_accuracy"] < 1
