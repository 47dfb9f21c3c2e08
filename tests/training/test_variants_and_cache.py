"""What is encoded, under which keys, and that the cache never gives a stale or half answer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample, read_samples, write_samples
from tests.training.teacher_samples import load_teacher
from training.data import fingerprint
from training.data.variants import Variant, all_variants, own_variants
from training.stages.fit_data import targets
from training.stages.hidden_cache import Entry, HiddenCache

SCALE = MosScale(1.0, 5.0)


def test_every_test_image_gets_all_sanity_cases(data: Path) -> None:
    samples = load_teacher(data)
    cases = all_variants(samples, tuple(Aspect), seed=0)
    test = [case for case in cases if case.sample.split == "test"]
    count = sum(sample.split == "test" for sample in samples)
    assert [case.kind for case in test].count("unrelated") == count
    assert [case.kind for case in test].count("changed") == count
    assert [case.damage for case in test].count("blur") == count
    assert [case.damage for case in test].count("noise") == count
    assert not [case for case in cases if case.sample.split == "validation" and case.kind != "own"]


def test_no_prompt_no_correspondence(data: Path) -> None:
    without = [case for case in all_variants(load_teacher(data), tuple(Aspect), 0) if case.prompt is None]
    assert without
    assert all(Aspect.CORRESPONDENCE not in case.aspects for case in without)


@pytest.mark.parametrize("aspects", [(Aspect.QUALITY,), (Aspect.CORRESPONDENCE, Aspect.AUTHENTICITY)])
def test_only_the_wanted_aspects_are_described(data: Path, aspects: tuple[Aspect, ...]) -> None:
    samples = load_teacher(data)
    cases = all_variants(samples, aspects, 0)
    assert {aspect for case in cases for aspect in case.aspects} == set(aspects)
    own = [case for case in cases if case.kind == "own"]
    assert own == own_variants(samples, aspects)
    assert len(own) == len(samples), "without its prompt there is authenticity or quality left to ask for"
    worse = {"damaged"} if Aspect.QUALITY in aspects else {"unrelated", "changed"}
    assert {case.kind for case in cases} == {"own", *worse}


def test_a_sample_that_cannot_be_asked_about_is_no_case(data: Path) -> None:
    samples = load_teacher(data)
    cases = own_variants(samples, [Aspect.CORRESPONDENCE])
    assert [case.sample for case in cases] == [sample for sample in samples if sample.prompt]


def test_unrelated_prompts_come_from_the_same_split(data: Path) -> None:
    samples = load_teacher(data)
    splits = {sample.prompt: sample.split for sample in samples}
    unrelated = [case for case in all_variants(samples, tuple(Aspect), 0) if case.kind == "unrelated"]
    assert unrelated
    assert all(splits[case.prompt] == case.sample.split for case in unrelated)


def test_key_changes_with_everything_it_depends_on(data: Path, tmp_path: Path) -> None:
    sample = load_teacher(data)[0]
    other_image = tmp_path / "other.png"
    Image.new("RGB", (64, 64), "black").save(other_image)
    case = Variant(sample, "own", tuple(Aspect), sample.prompt)
    told = Conversation.open(Aspect.QUALITY, sample.prompt).describe("A given description.")

    def other(**changes: object) -> Variant:
        return replace(case, **changes)

    keys = [
        case.key(Aspect.QUALITY, "backbone"),
        case.key(Aspect.AUTHENTICITY, "backbone"),
        case.key(Aspect.QUALITY, "other backbone"),
        other(prompt="something else").key(Aspect.QUALITY, "backbone"),
        other(damage="blur").key(Aspect.QUALITY, "backbone"),
        other(damage="noise").key(Aspect.QUALITY, "backbone"),
        other(sample=replace(sample, image=other_image)).key(Aspect.QUALITY, "backbone"),
        case.given_key(told, "backbone"),
        case.given_key(told, "other backbone"),
        case.given_key(told.rate(Rating.FAIR), "backbone"),
        case.given_key(told.rate(Rating.GOOD), "backbone"),
        case.given_key(Conversation.open(Aspect.QUALITY, sample.prompt).describe("Another."), "backbone"),
        case.given_key(replace(told, aspect=Aspect.AUTHENTICITY), "backbone"),
        other(damage="blur").given_key(told, "backbone"),
        other(sample=replace(sample, image=other_image)).given_key(told, "backbone"),
    ]
    assert len(set(keys)) == len(keys)
    again = Variant(sample, "own", (Aspect.QUALITY,), sample.prompt)
    assert again.key(Aspect.QUALITY, "backbone") == keys[0], (
        "what else is asked about the image does not matter"
    )


def entry(key: str) -> Entry:
    return Entry(key, "t0", Aspect.QUALITY, "own", None, "a prompt", "A description.", Rating.FAIR)


def test_cache_returns_what_was_added(tmp_path: Path) -> None:
    states = {key: torch.randn(length, 4).bfloat16() for key, length in (("a", 3), ("b", 5), ("c", 2))}
    cache = HiddenCache(tmp_path)
    cache.add([(entry("a"), states["a"]), (entry("b"), states["b"])])
    cache.add([(entry("c"), states["c"])])
    again = HiddenCache(tmp_path)
    assert again.entries["a"] == entry("a")
    for key, value in again.states(["a", "b", "c"]).items():
        assert torch.equal(value, states[key])


def test_half_written_shard_does_not_count(tmp_path: Path) -> None:
    HiddenCache(tmp_path).add([(entry("a"), torch.zeros(2, 4))])
    (tmp_path / "shard-00001.safetensors").write_bytes(b"cut off")
    (tmp_path / "shard-00001.partial").write_text('{"key": "b"')
    cache = HiddenCache(tmp_path)
    assert list(cache.entries) == ["a"]
    cache.add([(entry("b"), torch.ones(2, 4))])
    assert torch.equal(HiddenCache(tmp_path).states(["b"])["b"], torch.ones(2, 4))


def test_several_writers_share_a_folder(tmp_path: Path) -> None:
    first, second = HiddenCache(tmp_path), HiddenCache(tmp_path)
    for number in range(3):
        first.add([(entry(f"a{number}"), torch.full((2, 4), number))])
        second.add([(entry(f"b{number}"), torch.full((2, 4), 10 + number))])
    whole = HiddenCache(tmp_path)
    whole.add([(entry("c"), torch.full((2, 4), 20))])
    found = HiddenCache(tmp_path).states(["a0", "a1", "a2", "b0", "b1", "b2", "c"])
    assert [int(states[0, 0]) for states in found.values()] == [0, 1, 2, 10, 11, 12, 20]


def test_reading_a_cache_writes_nothing(tmp_path: Path) -> None:
    assert HiddenCache(tmp_path / "hidden").entries == {}
    assert not (tmp_path / "hidden").exists()


def test_wrong_prompts_for_training_are_of_both_kinds(data: Path) -> None:
    samples = [replace(sample, id=f"{sample.id} {i}") for i in range(20) for sample in load_teacher(data)]
    wrong = [c for c in all_variants(samples, tuple(Aspect), 0) if c.kind in ("unrelated", "changed")]
    train = [case for case in wrong if case.sample.split == "train"]
    kinds = [case.kind for case in train]
    assert 0.3 < kinds.count("changed") / len(kinds) < 0.7
    assert len({case.sample.id for case in train}) == len(train), "one of them an image"
    assert all(case.prompt != case.sample.prompt for case in wrong)


def test_targets_pair_an_image_with_its_worse_case(data: Path, tmp_path: Path) -> None:
    samples = load_teacher(data)
    cases = all_variants(samples, tuple(Aspect), seed=0)
    cache = HiddenCache(tmp_path)
    states = {}
    for number, case in enumerate(cases):
        for aspect in case.aspects:
            key = case.key(aspect, "nano")
            states[key] = torch.full((2, 4), float(number))
            cache.add([(replace(entry(key), aspect=aspect), states[key])])
    found = targets(cases, cache, "nano", Aspect.CORRESPONDENCE, SCALE)
    assert len(found) == sum(Aspect.CORRESPONDENCE in sample.mos for sample in samples)
    for target in found:
        wrong = [c for c in cases if c.kind in ("unrelated", "changed") and c.sample == target.sample]
        if not wrong:
            assert target.worse is None
            continue
        worse = [states[case.key(Aspect.CORRESPONDENCE, "nano")] for case in wrong]
        assert any(torch.equal(target.worse.states, each) for each in worse)
    assert any(target.worse is not None for target in found)


def test_worse_cases_have_made_up_scores(data: Path) -> None:
    samples = [replace(sample, mos=dict.fromkeys(Aspect, 4.0)) for sample in load_teacher(data)]
    scores = {
        (case.kind, aspect): case.mos(aspect, SCALE)
        for case in all_variants(samples, tuple(Aspect), seed=0)
        for aspect in case.aspects
    }
    assert scores.pop(("unrelated", Aspect.CORRESPONDENCE)) == pytest.approx(1.1)
    assert scores.pop(("changed", Aspect.CORRESPONDENCE)) == pytest.approx(2.5)
    assert scores.pop(("damaged", Aspect.QUALITY)) == pytest.approx(1.6)
    assert set(scores.values()) == {4.0} and len(scores) == len(Aspect)
    unscored = own_variants([replace(samples[0], mos={})], [Aspect.QUALITY])
    assert unscored[0].mos(Aspect.QUALITY, SCALE) is None


def test_samples_survive_a_round_trip(data: Path, tmp_path: Path) -> None:
    samples = load_teacher(data)
    write_samples(samples, tmp_path / "samples.jsonl")
    again = read_samples(tmp_path / "samples.jsonl")
    assert fingerprint(again) == fingerprint(samples)
    assert [s.image.read_bytes() for s in again] == [s.image.read_bytes() for s in samples]
    changed = [replace(samples[0], prompt="another"), *samples[1:]]
    assert fingerprint(changed) != fingerprint(samples)


def test_raters_change_the_fingerprint_and_their_absence_does_not() -> None:
    sample = Sample("a", Path("a.png"), "a cat", {Aspect.QUALITY: 2.5}, {Aspect.QUALITY: "Sharp."})
    before = "189f1263ec0376004cc70b0b48c9253e3f928b3a51fdadbaebea739412b485cb"
    assert fingerprint([sample]) == before, "as in runs from before there were raters"
    assert fingerprint([replace(sample, raters={Aspect.QUALITY: 2})]) != before


def test_missing_and_broken_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="agi-teacher"):
        load_teacher(tmp_path)
    (tmp_path / "agi-teacher").mkdir()
    (tmp_path / "agi-teacher" / "samples.jsonl").write_text("{not json\n")
    with pytest.raises(InputError, match="line 1"):
        load_teacher(tmp_path)
