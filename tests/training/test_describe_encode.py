"""Shares and interruptions change nothing of what is spoken and read, and nothing stale is used."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scripted_backbone import ScriptedBackbone, drawings, states

from m3agiqa.aspects import RATING_WORDS, Aspect, MosScale
from m3agiqa.backbones.base import Request
from m3agiqa.conversation import Conversation
from m3agiqa.errors import WeightsError
from m3agiqa.samples import Sample
from training.data.variants import Variant, all_variants, own_variants
from training.parallel import Shard
from training.stages import describe as describe_module
from training.stages.describe import describe, encode, given
from training.stages.hidden_cache import HiddenCache, backbone_id

pytestmark = pytest.mark.usefixtures("scripted")

BASE = Path("no adapters")
Asked = list[list[tuple[bytes, tuple[Conversation, ...]]]]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    found = drawings(tmp_path / "data", 14, MosScale(1, 5), tuple(Aspect))
    return [
        replace(sample, split="test", descriptions={Aspect.QUALITY: f"Grey, says a person of {sample.id}."})
        for sample in found
    ]


@pytest.fixture
def cases(samples: list[Sample]) -> list[Variant]:
    """With damaged copies and unrelated prompts."""
    return all_variants(samples, tuple(Aspect), seed=0)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe_module, "DESCRIBE_BATCH_SIZE", 12)
    monkeypatch.setattr(describe_module, "ENCODE_BATCH_SIZE", 4)


def contents(cache: HiddenCache) -> dict[str, tuple]:
    again = HiddenCache(cache.folder)
    found = again.states(again.entries)
    return {key: (entry, found[key].tolist()) for key, entry in again.entries.items()}


def batches(asked: list[list[Request]]) -> Asked:
    return [[(each.image.tobytes(), each.conversations) for each in requests] for requests in asked]


def test_everything_is_described_and_kept_as_it_was_generated(cases: list[Variant], tmp_path: Path) -> None:
    cache = HiddenCache(tmp_path / "hidden")
    describe(cases, "nano", BASE, cache)
    identity = backbone_id("nano", BASE)
    wanted = {case.key(aspect, identity): (case, aspect) for case in cases for aspect in case.aspects}
    assert cache.entries.keys() == wanted.keys()
    found = cache.states(wanted)
    for key, (case, aspect) in wanted.items():
        entry = cache.entries[key]
        assert (entry.sample, entry.aspect, entry.kind) == (case.sample.id, aspect, case.kind)
        assert (entry.damage, entry.prompt) == (case.damage, case.prompt)
        assert entry.description.startswith(str(aspect))
        assert entry.rating in RATING_WORDS
        told = Conversation.open(aspect, case.prompt).describe(entry.description)
        assert torch.equal(found[key], states(case.image(), told))


def test_cases_about_one_image_share_its_request(cases: list[Variant], tmp_path: Path) -> None:
    describe(cases, "nano", BASE, HiddenCache(tmp_path / "hidden"))
    for requests in ScriptedBackbone.asked:
        images = Counter(request.image.tobytes() for request in requests)
        assert set(images.values()) == {1}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shares_together_are_what_one_process_makes(cases: list[Variant], tmp_path: Path, count: int) -> None:
    whole = HiddenCache(tmp_path / "whole")
    describe(cases, "nano", BASE, whole)
    for index in range(count):
        cache = HiddenCache(tmp_path / "shared")
        before = len(cache.entries)
        describe(cases, "nano", BASE, cache, Shard(index, count))
        assert len(cache.entries) > before
    shared = HiddenCache(tmp_path / "shared")
    assert contents(shared) == contents(whole)
    spoken = len(ScriptedBackbone.asked)
    describe(cases, "nano", BASE, shared)
    assert len(ScriptedBackbone.asked) == spoken, "nothing is left for a process that has no share"


def test_describe_resumes_with_the_same_batches(
    cases: list[Variant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = HiddenCache(tmp_path / "whole")
    describe(cases, "nano", BASE, whole)
    expected = batches(ScriptedBackbone.asked)
    assert len(expected) > 3
    for killed in (1, 2, 4):
        folder = tmp_path / f"cut-{killed}"
        monkeypatch.setattr(ScriptedBackbone, "asked", [])
        monkeypatch.setattr(ScriptedBackbone, "fails_at", killed)
        with pytest.raises(KeyboardInterrupt):
            describe(cases, "nano", BASE, HiddenCache(folder))
        assert len(HiddenCache(folder).entries) < len(whole.entries)
        monkeypatch.setattr(ScriptedBackbone, "fails_at", None)
        describe(cases, "nano", BASE, HiddenCache(folder))
        found = batches(ScriptedBackbone.asked)
        assert found[: killed - 1] + found[killed:] == expected, "the batch that failed is asked for again"
        assert contents(HiddenCache(folder)) == contents(whole)


def test_only_what_has_changed_is_described_again(samples: list[Sample], tmp_path: Path) -> None:
    cases = own_variants(samples, (Aspect.QUALITY,))
    cache = HiddenCache(tmp_path / "hidden")
    describe(cases, "nano", BASE, cache)
    old = dict(cache.entries)
    ScriptedBackbone.asked.clear()

    Image.new("RGB", (64, 64), "red").save(samples[3].image)
    other = [
        replace(sample, prompt="another prompt") if i == 6 else sample for i, sample in enumerate(samples)
    ]
    changed = own_variants(other, (Aspect.QUALITY,))
    assert len(changed) > describe_module.DESCRIBE_BATCH_SIZE
    describe(changed, "nano", BASE, cache)
    identity = backbone_id("nano", BASE)
    new = {case.key(Aspect.QUALITY, identity): case.sample.id for case in changed}
    assert {each for key, each in new.items() if key not in old} == {"d3", "d6"}
    assert set(new) <= set(cache.entries)
    red = Conversation.open(Aspect.QUALITY, samples[3].prompt)
    key = next(key for key, each in new.items() if each == "d3")
    told = red.describe(cache.entries[key].description)
    assert torch.equal(cache.states([key])[key], states(Image.new("RGB", (64, 64), "red"), told))

    found = batches(ScriptedBackbone.asked)
    ScriptedBackbone.asked.clear()
    describe(changed, "nano", BASE, HiddenCache(tmp_path / "fresh"))
    whole = batches(ScriptedBackbone.asked)
    assert found == whole[:1], "the batch of the two as it is without a cache, and no other"


def test_another_adapter_has_an_identity_of_its_own(tmp_path: Path) -> None:
    identities = [backbone_id("nano", tmp_path)]
    for number, name in enumerate(("adapter", "adapter", "quality/adapter")):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        save_file({"a": torch.full((2,), float(number))}, tmp_path / name / "adapter_model.safetensors")
        identities.append(backbone_id("nano", tmp_path))
    assert len(set(identities)) == 4
    save_file({"a": torch.zeros(2)}, tmp_path / "predictor-quality.safetensors")
    assert backbone_id("nano", tmp_path) == identities[-1], "what reads it does not change what is spoken"


def test_an_unknown_backbone_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no backbone 'pico' in this version; there are nano"):
        backbone_id("pico", tmp_path)


# --- encode --------------------------------------------------------------------------------------


def test_given_descriptions_are_encoded_once(samples: list[Sample], tmp_path: Path) -> None:
    conversations = given(samples)
    cache = HiddenCache(tmp_path / "hidden")
    encode(conversations, "nano", BASE, cache)
    identity = backbone_id("nano", BASE)
    for conversation in conversations:
        key = conversation.key(identity)
        sample = conversation.variant.sample
        assert cache.entries[key].description == sample.descriptions[Aspect.QUALITY]
        assert cache.entries[key].rating is None
        told = Conversation.open(Aspect.QUALITY, sample.prompt).describe(sample.descriptions[Aspect.QUALITY])
        assert torch.equal(cache.states([key])[key], states(conversation.variant.image(), told))
    asked = len(ScriptedBackbone.asked)
    encode(conversations, "nano", BASE, HiddenCache(tmp_path / "hidden"))
    assert len(ScriptedBackbone.asked) == asked


def test_encode_in_shares_and_interrupted_is_the_same(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations = given(samples)
    whole = HiddenCache(tmp_path / "whole")
    encode(conversations, "nano", BASE, whole)
    expected = batches(ScriptedBackbone.asked)
    for index in range(3):
        encode(conversations, "nano", BASE, HiddenCache(tmp_path / "shared"), Shard(index, 3))
    assert contents(HiddenCache(tmp_path / "shared")) == contents(whole)

    monkeypatch.setattr(ScriptedBackbone, "asked", [])
    monkeypatch.setattr(ScriptedBackbone, "fails_at", 3)
    with pytest.raises(KeyboardInterrupt):
        encode(conversations, "nano", BASE, HiddenCache(tmp_path / "cut"))
    encode(conversations, "nano", BASE, HiddenCache(tmp_path / "cut"))
    found = batches(ScriptedBackbone.asked)
    assert found[:2] + found[3:] == expected
    assert contents(HiddenCache(tmp_path / "cut")) == contents(whole)


def test_a_changed_description_or_image_is_encoded_anew(samples: list[Sample], tmp_path: Path) -> None:
    cache = HiddenCache(tmp_path / "hidden")
    encode(given(samples), "nano", BASE, cache)
    before = set(cache.entries)
    Image.new("RGB", (64, 64), "blue").save(samples[1].image)
    samples[0] = replace(samples[0], descriptions={Aspect.QUALITY: "Said anew."})
    encode(given(samples), "nano", BASE, cache)
    assert sorted(cache.entries[key].sample for key in set(cache.entries) - before) == ["d0", "d1"]
