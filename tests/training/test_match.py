"""The matcher is fitted to what is said about images, here of drawn features."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.nano.colors import COLOUR_NAMES
from m3agiqa.backbones.nano.connector import GRID_TOKENS, ImageFeatures
from m3agiqa.backbones.nano.efficientnet_lite import N_STATISTICS
from m3agiqa.backbones.nano.nss_features import N_APPEARANCE
from m3agiqa.backbones.nano.prompt_alignment import HEAD_CHANNELS, PromptAligners
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS
from m3agiqa.samples import Sample
from training.nano.fit_prompt_alignment import (
    AlignmentData,
    ImageTexts,
    alignment_data,
    fit_and_hold_out,
    fit_prompt_aligners,
    texts_of_sample,
)

SCALE = MosScale(1.0, 5.0)
THINGS = ("dog", "house", "boat", "guitar", "zebra", "castle", "pizza", "train")
SETTINGS = ("beach", "forest", "kitchen", "desert")


class Letters:
    """Stands in for what words mean: a random direction for each."""

    def is_one_token(self, word: str) -> bool:
        return len(word) < 6

    def states(self, words: list[str]) -> Tensor:
        return torch.stack([self._state(word) for word in words])

    @staticmethod
    def _state(word: str) -> Tensor:
        seed = int.from_bytes(word.encode()[:7])
        return torch.randn(64, generator=torch.Generator().manual_seed(seed % 2**62))


class Encoder:
    """As much of nano as the matcher is fitted with."""

    def __init__(self) -> None:
        self.word_states = Letters()
        vision = torch.nn.Module()
        vision._fc = torch.nn.Linear(HEAD_CHANNELS, 1000)
        self.image_encoder = SimpleNamespace(vision=vision)


def drawn(count: int, seed: int = 0) -> tuple[list[Sample], ImageFeatures]:
    """Images of a thing in a setting: each lights up some channels of its own."""
    generator = torch.Generator().manual_seed(seed)
    places = 0.3 * torch.rand(count, GRID_TOKENS, HEAD_CHANNELS, generator=generator)
    samples = []
    for i in range(count):
        thing, setting = i % len(THINGS), (i // 5) % len(SETTINGS)
        where = int(torch.randint(GRID_TOKENS, (), generator=generator))
        places[i, where, 20 * thing : 20 * thing + 20] += 9
        places[i, :, 600 + 20 * setting : 620 + 20 * setting] += 1
        source = i // 8 % 4
        prompt = f"{('a', 'one big', 'the very big')[i % 3]} {THINGS[thing]} at the {SETTINGS[setting]}"
        prompt += (" today", " tonight", " again", " there")[source]
        split = "test" if i % 5 == 0 else "train"
        mos = {Aspect.CORRESPONDENCE: 2.0 + i % 3}
        sample = Sample(str(i), Path(f"{i}.png"), prompt, mos, {}, split, "pen", f"source {source}")
        samples.append(sample)
    other = (
        torch.zeros(count, N_STATISTICS),
        torch.zeros(count, N_APPEARANCE),
        torch.zeros(count, len(COLOUR_NAMES)),
        torch.zeros(count, len(JUDGED_ASPECTS)),
    )
    return samples, ImageFeatures(places, *other)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


def material(samples: list[Sample], seen: ImageFeatures, encoder: Encoder) -> AlignmentData:
    told = [texts_of_sample(sample, row, SCALE) for row, sample in enumerate(samples)]
    return AlignmentData(seen, told, encoder.image_encoder.vision._fc.weight.detach(), encoder.word_states)


def test_new_images_match_what_they_show(encoder: Encoder) -> None:
    samples, seen = drawn(160)
    prompt_aligners = fit_prompt_aligners(material(samples, seen, encoder))
    _, new = drawn(32, seed=1)
    aligned_images = prompt_aligners.align(new)
    right = [f"a {THINGS[i % 8]}" for i in range(32)]
    table = {prompt: prompt_aligners.match(aligned_images, prompt, encoder.word_states) for prompt in right}
    best = [max(table, key=lambda prompt, i=i: table[prompt][i]) for i in range(32)]
    assert sum(b == r for b, r in zip(best, right, strict=True)) > 20


def test_it_is_measured_how_well_that_goes_on_new_sources(encoder: Encoder) -> None:
    samples, seen = drawn(160)
    rows = {sample.image: row for row, sample in enumerate(samples)}
    prompt_aligners, found = fit_and_hold_out(encoder, samples, None, SCALE, seen, rows)
    assert found.facts["unrelated_below"] > 0.7
    assert set(found.facts["changed_below"]) <= {"object", "place", "number"}
    assert found.facts["changed_below"]["object"] > 0.6
    assert found.own.isfinite().all() and abs(found.own.mean()) < 0.3
    assert all(torch.equal(prompt_aligner.usual, found.usual) for prompt_aligner in prompt_aligners.each)
    again = PromptAligners.of(load(save(prompt_aligners.state_dict())))
    aligned_images, prompt = prompt_aligners.align(seen), samples[0].prompt
    expected = prompt_aligners.match(aligned_images, prompt, encoder.word_states)
    assert torch.equal(again.match(aligned_images, prompt, encoder.word_states), expected)
    agreement = found.agreement(found.own)
    assert {"all", "clean"} == set(agreement) and set(agreement["all"]) >= {"source 0", "mean", "plain"}


def test_nothing_is_learned_from_what_says_a_prompt_that_is_held_out(encoder: Encoder) -> None:
    samples, seen = drawn(60)
    every = material(samples, seen, encoder)
    caption = ImageTexts(3, ((0.5, "something else"), (0.5, " a dog at the beach today")), 1.0)
    left = replace(every, image_texts=[*every.image_texts, caption]).without(
        set(), {"a dog at the beach today"}
    )
    assert left.image_texts and caption not in left.image_texts
    assert not any("a dog at the beach today" in text for said in left.image_texts for _, text in said.texts)
    assert {said.row for said in every.without({0, 7}, set()).image_texts} == set(range(60)) - {0, 7}


def test_each_prompt_aligner_knows_no_prompt_as_long_as_those_it_judges(encoder: Encoder) -> None:
    samples, seen = drawn(60)
    for number in range(3):
        lengths = {
            len(said.prompt.split()) % 3
            for said in material(samples, seen, encoder).without_length(number).image_texts
        }
        assert number not in lengths and lengths


def test_without_any_prompt_all_match_alike(encoder: Encoder) -> None:
    samples, seen = drawn(12)
    silent = [replace(sample, prompt=None) for sample in samples]
    rows = {sample.image: row for row, sample in enumerate(samples)}
    prompt_aligners, found = fit_and_hold_out(encoder, silent, None, SCALE, seen, rows)
    assert not prompt_aligners.match(
        prompt_aligners.align(seen), "a dog at the beach", encoder.word_states
    ).any()
    assert found.facts == {"changed_below": {}}


def test_a_captioned_photograph_is_not_learned_from_where_it_is_a_sample(
    encoder: Encoder, tmp_path: Path
) -> None:
    samples, seen = drawn(20)
    (tmp_path / "captions").mkdir()
    said = [("photo.png", samples[3].prompt.upper()), ("other.png", "a quiet street")]
    lines = [json.dumps({"image": name, "captions": [caption]}) for name, caption in said]
    (tmp_path / "captions" / "captions.jsonl").write_text("\n".join(lines))
    for name, _ in said:
        Image.new("RGB", (8, 8)).save(tmp_path / "captions" / name)
    rows = {sample.image: row for row, sample in enumerate(samples)}
    rows |= {tmp_path / "captions" / "photo.png": 3, tmp_path / "captions" / "other.png": 4}
    found = alignment_data(encoder, samples, tmp_path, SCALE, seen, rows, prompted_too=False)
    assert [told.texts for told in found.image_texts if told.prompt is None] == [((1.0, "a quiet street"),)]
