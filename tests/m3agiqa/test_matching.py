"""Words of prompts, colours of images, and a matcher with made-up weights in a tiny nano."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from test_nano import opened, whole
from tiny_nano import tiny_nano
from torch import Tensor

from m3agiqa import Aspect
from m3agiqa.backbones.base import Generation, Request
from m3agiqa.backbones.nano import CONNECTOR_FILE, PROMPT_ALIGNERS_FILE, NanoBackbone
from m3agiqa.backbones.nano.colors import COLOUR_NAMES, colours, named_colours
from m3agiqa.backbones.nano.connector import GRID_TOKENS, VISUAL_TOKENS
from m3agiqa.backbones.nano.efficientnet_lite import views
from m3agiqa.backbones.nano.prompt_alignment import (
    HEAD_CHANNELS,
    MAX_MATCH,
    PromptAligner,
    PromptAligners,
    correspondence_logit,
    rotate,
    unfitted_weights,
)
from m3agiqa.backbones.nano.text import content_words, foreign_words
from m3agiqa.conversation import Conversation
from m3agiqa.errors import WeightsError

WORDS = {"dog": 2.0, "ball": 1.0, "red": 1.5, "ride": 3.0, "city": 2.5, "glass": 2.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Two dogs are riding in the cities", ["two", "dog", "ride", "city"]),
        ("A DOG, a dog; dogs' balls!", ["dog", "ball"]),
        ("a glass of the men", ["glass", "man"]),
        ("für die Dörfer", ["die"]),
        ("红色的狗 и собака", []),
        ("", []),
    ],
)
def test_words_are_in_base_form(text: str, words: list[str]) -> None:
    assert content_words(text, WORDS) == words


@pytest.mark.parametrize("name", COLOUR_NAMES)
def test_a_colour_is_seen_where_it_is(name: str) -> None:
    shown = {"grey": "#808080", "green": "#00a000", "brown": "#7a4a1e"}.get(name, name)
    image = Image.new("RGB", (96, 96), "white" if name == "black" else "black")
    plain = pixels_of(image)
    image.paste(shown, (10, 10, 50, 50))
    more = (colours(pixels_of(image)) - colours(plain))[0]
    assert COLOUR_NAMES[more.argmax()] == name
    assert more.isfinite().all()


def pixels_of(image: Image.Image) -> Tensor:
    return (views([image]).whole * 128 + 127) / 255


def test_colours_have_several_names() -> None:
    assert named_colours("A Gray cat and a golden, gray dog") == [
        COLOUR_NAMES.index("yellow"),
        COLOUR_NAMES.index("grey"),
    ]
    assert named_colours("a redwood") == []


def made_up(states: int, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a matcher that knows some words, and finds them at random."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        **unfitted_weights(states),
        "letters": torch.tensor(list("\n".join(WORDS).encode()), dtype=torch.uint8),
        "rarity": torch.tensor(list(WORDS.values())),
        "state_map": noise(states, 6),
        "text_map": noise(6, 5),
        "text_centre": torch.zeros(5),
        "image_maps": noise(2, HEAD_CHANNELS, 5),
        "image_centres": noise(2, 5),
        "references": noise(4, GRID_TOKENS, 5),
    }


@pytest.fixture
def nano() -> NanoBackbone:
    return with_prompt_aligners(0, 1)


def with_prompt_aligners(*seeds: int) -> NanoBackbone:
    nano = tiny_nano()
    nano.image_encoder.prompt_aligners = PromptAligners(
        [PromptAligner(made_up(nano.hidden_size, seed)) for seed in seeds]
    )
    return nano


def match(nano: NanoBackbone, prompt: str, *images: Image.Image) -> Tensor:
    return nano.image_encoder.prompt_aligners.match(
        nano.image_encoder.encode(images).aligned, prompt, nano.word_states
    )


def test_prompts_match_differently_and_each_image_for_itself(
    nano: NanoBackbone, picture: Image.Image
) -> None:
    other = picture.rotate(90)
    both = match(nano, "a red ball", picture, other)
    assert torch.allclose(
        both, torch.cat([match(nano, "a red ball", each) for each in (picture, other)]), atol=1e-4
    )
    assert both[0] != both[1]
    assert match(nano, "a dog in the city", picture) != both[0]
    assert torch.equal(match(nano, "the red balls", picture), match(nano, "a red ball", picture))


@pytest.mark.parametrize(
    "prompt",
    ["", "!?", "the and", "红色的狗", "ein großer Hund mit rotem ball", "一只红色的狗在城市里 red dog"],
)
def test_what_is_not_understood_matches_as_is_usual(
    nano: NanoBackbone, picture: Image.Image, prompt: str
) -> None:
    assert match(nano, prompt, picture).tolist() == [0.0]


@given(st.text(max_size=60))
def test_any_text_can_be_matched(text: str) -> None:
    nano = ALWAYS
    found = nano.image_encoder.prompt_aligners.match(SIGHTS, f"a dog and {text}", nano.word_states)
    assert found.isfinite().all() and found.abs().max() <= MAX_MATCH


ALWAYS = with_prompt_aligners(0, 1)
with torch.inference_mode():
    SIGHTS = ALWAYS.image_encoder.encode([Image.new("RGB", (64, 64), "teal")]).aligned


def test_a_word_that_stands_in_every_text_tells_nothing(picture: Image.Image) -> None:
    nano = tiny_nano()
    weights = made_up(nano.hidden_size)
    weights["rarity"][0] = 0.0
    nano.image_encoder.prompt_aligners = PromptAligners([PromptAligner(weights)])
    assert match(nano, "a dog", picture).isfinite().all()


def test_a_word_means_the_same_whatever_is_read_with_it(nano: NanoBackbone) -> None:
    alone = nano.word_states.states(["ball"])[0]
    among = tiny_nano().word_states.states(["dog", "ball", "a much longer one"])[1]
    assert torch.allclose(alone, among, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "count"),
    [("two dogs", 0), ("ein großer Hund", 1), ("собака и кот", 3), ("红色的狗", 2), ("猫", 1)],
)
def test_words_in_other_letters_are_counted(text: str, count: int) -> None:
    assert foreign_words(text) == count


def test_a_verdict_leans_on_looks_and_turns_a_token_from_worst_to_best() -> None:
    usual = torch.zeros(2)
    assert correspondence_logit(torch.tensor(1.0), usual) > correspondence_logit(torch.tensor(-1.0), usual)
    assert correspondence_logit(torch.tensor(1.0), usual + 1) > correspondence_logit(
        torch.tensor(1.0), usual - 1
    )
    worst, best = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    likeness = [torch.dot(rotate(worst, best, torch.tensor(v)), best).item() for v in (-2.0, 0.0, 2.0)]
    assert likeness == sorted(likeness)
    assert math.isclose(rotate(worst, best, torch.tensor(1.3)).norm().item(), 1, rel_tol=1e-5)


@torch.inference_mode()
def test_only_conversations_about_the_prompt_hear_of_the_match(
    nano: NanoBackbone, picture: Image.Image
) -> None:
    request = Request(picture, whole(Aspect.QUALITY, Aspect.CORRESPONDENCE))
    quality, correspondence = nano.encode([request])
    nano.image_encoder.prompt_aligners = with_prompt_aligners(2, 3).image_encoder.prompt_aligners
    same, other = nano.encode([request])
    assert torch.equal(quality, same)
    header = len(nano.chat.before_image)
    image = slice(header, header + VISUAL_TOKENS)
    assert torch.equal(correspondence[:header], other[:header])
    assert not torch.allclose(correspondence[image], other[image], atol=1e-4), "the predictor reads it"
    after = header + VISUAL_TOKENS
    assert not torch.allclose(correspondence[after:], other[after:], atol=1e-4), "so does the language model"
    assert len(correspondence) == after + 1 + len(nano.chat.tokens(request.conversations[1]).ids)


def test_what_is_generated_and_what_is_read_are_the_same(
    nano: NanoBackbone, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3agiqa.backbones.nano.model.MAX_NEW_TOKENS", 6)
    asked = (*opened(Aspect.QUALITY, Aspect.CORRESPONDENCE), Conversation.open(Aspect.CORRESPONDENCE, "dogs"))
    spoken = [said for said in nano.describe([Request(picture, asked)]) if isinstance(said, Generation)]
    assert len(spoken) == 3
    for said in spoken:
        (states,) = nano.encode([Request(picture, (asked[said.row].describe(said.description),))])
        before = len(nano.chat.before_image) + VISUAL_TOKENS + len(nano.chat.tokens(asked[said.row]).ids)
        assert torch.allclose(said.hidden[:before], states[:before], atol=1e-3)


def test_a_folder_keeps_the_prompt_aligner(
    nano: NanoBackbone, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NanoBackbone, "from_base", classmethod(lambda cls, progress=None: tiny_nano()))
    save_file(nano.image_encoder.connector.state_dict(), tmp_path / CONNECTOR_FILE)
    without = NanoBackbone.load(tmp_path)
    save_file(nano.parts["matchers"].module.state_dict(), tmp_path / PROMPT_ALIGNERS_FILE)
    loaded, begun = NanoBackbone.load(tmp_path), NanoBackbone.for_training(tmp_path)
    expected = match(nano, "a red ball", picture)
    assert expected != 0 and match(without, "a red ball", picture) == 0
    for again in (loaded, begun):
        assert torch.allclose(match(again, "a red ball", picture), expected, atol=1e-4)


def test_a_folder_of_another_version_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NanoBackbone, "from_base", classmethod(lambda cls, progress=None: tiny_nano()))
    save_file({"up.weight": torch.zeros(3, 3)}, tmp_path / CONNECTOR_FILE)
    for use in (NanoBackbone.load, NanoBackbone.for_training):
        with pytest.raises(WeightsError, match=r"another version of this project.*Train the model again"):
            use(tmp_path)
