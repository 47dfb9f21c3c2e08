"""The assessor: its rules with a scripted backbone, its promises with the shipped model."""

import io
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from m3agiqa import (
    Aspect,
    AspectResult,
    Assessment,
    Assessor,
    DescriptionDelta,
    InputError,
    M3AgiqaError,
    MosScale,
    Rating,
    Stopped,
)
from m3agiqa.assessment import Event
from m3agiqa.backbones.base import Generation, Request, readable_prompt
from m3agiqa.backbones.nano.language_model import load_language_model
from m3agiqa.conversation import MAX_PROMPT, Conversation, clean_prompt

# --- rules ---------------------------------------------------------------------------------------

EXAMPLE_IMAGES = Path(__file__).parents[2] / "annotation" / "ui" / "assess" / "examples"


def test_mos_lies_within_the_scale_and_the_raw_value_is_kept(scripted: Assessor, image_file: Path) -> None:
    told = scripted.assess(image_file, "a ball").to_dict()
    assert told["image"] == str(image_file)
    assert told["prompt"] == "a ball"
    assert {name: (a["mos"], a["raw_mos"], a["scale"]) for name, a in told["aspects"].items()} == {
        "quality": (3.62, 3.62, [1, 5]),
        "correspondence": (5, 5.31, [1, 5]),
        "authenticity": (1, 0.2, [1, 5]),
    }
    assert (told["model"], told["learned_from"]) == ("scripted 1.2", "nobody")
    assert told["seconds"] >= 0


def test_predictors_of_other_seeds_say_how_sure_a_mos_is(scripted: Assessor, picture: Image.Image) -> None:
    assert "spread" not in scripted.assess(picture).to_dict()["aspects"]["quality"]
    kind = type(scripted.predictors[Aspect.QUALITY])
    others = {Aspect.QUALITY: [kind(3.12), kind(4.12)]}
    assessor = Assessor(scripted.backbone, scripted.predictors, scripted.card, others)
    told = assessor.assess(picture).to_dict()["aspects"]
    assert (told["quality"]["mos"], told["quality"]["spread"]) == (3.62, 0.5)
    assert "spread" not in told["authenticity"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(-100, 200), st.sampled_from([MosScale(1, 5), MosScale(0, 100)]))
def test_there_is_one_verdict(scripted: Assessor, picture: Image.Image, raw: float, scale: MosScale) -> None:
    predictors = dict.fromkeys(Aspect, type(scripted.predictors[Aspect.QUALITY])(raw))
    card = replace(scripted.card, scales=dict.fromkeys(Aspect, scale))
    result = Assessor(scripted.backbone, predictors, card).assess(picture).aspects[Aspect.QUALITY]
    written = result.to_dict()
    assert result.rating is scale.rating(result.mos)
    assert written["rating"] == scale.rating(written["mos"])
    assert (result.spoken_rating, written["spoken_rating"]) == (Rating.FAIR, "fair"), "as the backbone said"


def test_a_mos_has_an_interval_and_a_percentile(calibrated: Assessor, picture: Image.Image) -> None:
    quality, correspondence, authenticity = calibrated.assess(picture, "a ball").to_dict()["aspects"].values()
    figures = {"low": 3.12, "high": 4.12, "percentile": 81, "training_images": 3827}
    assert {name: quality[name] for name in figures} == pytest.approx(figures)
    assert (correspondence["low"], correspondence["high"], correspondence["percentile"]) == (4.5, 5, 100)
    assert (authenticity["low"], authenticity["high"], authenticity["percentile"]) == (1, 1.5, 0)
    assert "unknown_prompt" not in correspondence


def test_an_unknown_script_leaves_correspondence_without_a_percentile(
    calibrated: Assessor, picture: Image.Image
) -> None:
    for assessment in (calibrated.assess(picture, "灯台"), *calibrated.assess_all([(picture, "灯台")])):
        quality, correspondence, authenticity = assessment.to_dict()["aspects"].values()
        assert correspondence["unknown_prompt"] is True
        assert "percentile" not in correspondence and correspondence["low"] == 4.5
        for other in (quality, authenticity):
            assert "percentile" in other and "unknown_prompt" not in other


def test_without_calibration_nothing_is_added(scripted: Assessor, picture: Image.Image) -> None:
    result = scripted.assess(picture).aspects[Aspect.QUALITY]
    assert (result.low, result.high, result.percentile) == (None, None, None)
    written = {"description", "rating", "spoken_rating", "mos", "raw_mos", "scale"}
    assert result.to_dict().keys() == written


@pytest.mark.parametrize("prompt", [None, "", "  \n"])
def test_without_a_prompt_correspondence_is_left_out(
    scripted: Assessor, picture: Image.Image, prompt: str | None
) -> None:
    told = scripted.assess(picture, prompt)
    assert list(told.aspects) == [Aspect.QUALITY, Aspect.AUTHENTICITY]
    assert told.prompt is None
    with pytest.raises(InputError, match="no prompt was given"):
        scripted.assess(picture, prompt, [Aspect.CORRESPONDENCE])


def test_chosen_aspects(scripted: Assessor, picture: Image.Image) -> None:
    chosen = [Aspect.AUTHENTICITY, Aspect.QUALITY, Aspect.AUTHENTICITY]
    assert list(scripted.assess(picture, "a ball", chosen).aspects) == [Aspect.AUTHENTICITY, Aspect.QUALITY]
    assert list(scripted.assess(picture, "a ball", ["authenticity", "quality"]).aspects) == chosen[:2]
    assert list(scripted.assess(picture, "a ball", "quality").aspects) == [Aspect.QUALITY]
    with pytest.raises(InputError, match="cannot judge beauty"):
        scripted.assess(picture, "a ball", ["quality", "beauty"])
    with pytest.raises(InputError, match="cannot judge nothing"):
        scripted.assess(picture, "a ball", [])
    del scripted.predictors[Aspect.QUALITY]
    with pytest.raises(InputError, match="judges correspondence, authenticity; it cannot judge quality"):
        scripted.assess(picture, "a ball", [Aspect.QUALITY])


def test_prompts() -> None:
    assert clean_prompt(" a \n red\tball ") == "a red ball"
    assert clean_prompt("half \ud800 letter") == "half ? letter"
    assert len(clean_prompt("x" * 8000)) == 8000
    with pytest.raises(InputError, match="10,000 characters; at most 8,000"):
        clean_prompt("x" * 10_000)


# --- the shipped model -----------------------------------------------------------------------------


def test_quality_follows_the_detail_that_an_image_really_holds(assessor: Assessor) -> None:
    """Enlarged copies lose, and halved ones hardly change."""
    losses, halved = [], []
    for path in [EXAMPLE_IMAGES / f"{name}.webp" for name in ("hand", "planet", "spheres")]:
        with Image.open(path) as file:
            image = file.convert("RGB")
        thumbnail = image.copy()
        thumbnail.thumbnail((256, 256), Image.Resampling.LANCZOS)
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        original, enlarged, smaller = (
            assessor.assess(copy, aspects=[Aspect.QUALITY]).aspects[Aspect.QUALITY].mos
            for copy in (image, thumbnail.resize(image.size), half)
        )
        losses.append(original - enlarged)
        halved.append(abs(original - smaller))
    assert sum(losses) / len(losses) > 0.5
    assert sum(halved) / len(halved) < 0.3


PROMPT = "a red ball on {green} <|im_end|> ground"


@pytest.fixture(scope="module")
def events(assessor: Assessor, picture: Image.Image) -> list[Event]:
    return list(assessor.stream(picture, PROMPT))


@pytest.fixture(scope="module")
def in_32_bit(assessor: Assessor) -> Assessor:
    if assessor.backbone.llm.dtype == torch.float32:  # where that is faster than 16 bit
        return assessor

    def load(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        llm, tokenizer = load_language_model(path)
        return llm.float(), tokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m3agiqa.backbones.nano.model.load_language_model", load)
        return Assessor.from_pretrained("nano")


@pytest.fixture
def exact(in_32_bit: Assessor, monkeypatch: pytest.MonkeyPatch) -> Assessor:
    """Where 16 bit would hide errors in its noise; of few words."""
    monkeypatch.setattr("m3agiqa.backbones.nano.model.MAX_NEW_TOKENS", 16)
    return in_32_bit


def test_descriptions_grow_side_by_side(events: list[Event]) -> None:
    first_result = next(i for i, event in enumerate(events) if isinstance(event, AspectResult))
    spoken = events[:first_result]
    assert all(isinstance(event, DescriptionDelta) for event in spoken)
    assert {event.aspect for event in spoken[:3]} == set(Aspect)  # the first word of each comes first
    assert {event.aspect for event in spoken[:9]} == set(Aspect)


def test_results_match_what_was_streamed(events: list[Event], assessor: Assessor) -> None:
    *_, assessment = events
    assert isinstance(assessment, Assessment)
    assert list(assessment.aspects) == list(Aspect)
    for aspect, result in assessment.aspects.items():
        streamed = "".join(e.text for e in events if isinstance(e, DescriptionDelta) and e.aspect is aspect)
        assert result.description
        assert streamed.strip().startswith(result.description)
        assert "�" not in result.description
        assert result.scale.low <= result.mos <= result.scale.high
        assert result.rating is result.scale.rating(result.mos)
        assert result.spoken_rating in Rating
        assert result.scale == assessor.card.scales[aspect]
    assert assessment.seconds > 0
    assert (assessment.model, assessment.learned_from) == (assessor.card.title, assessor.card.learned_from)


def test_nano_knows_words_of_english_alone(assessor: Assessor) -> None:
    assert assessor.backbone.knows_words("a lighthouse at dusk, oil painting")
    assert not assessor.backbone.knows_words("夕暮れの灯台")


def test_same_pixels_same_result_whatever_the_file_format(
    events: list[Event], assessor: Assessor, picture: Image.Image
) -> None:
    saved = io.BytesIO()
    picture.save(saved, "WEBP", lossless=True)
    assert assessor.assess(saved.getvalue(), PROMPT).aspects == events[-1].aspects


def test_neighbours_change_no_word_and_no_score(
    events: list[Event], assessor: Assessor, picture: Image.Image
) -> None:
    """Of the scores no more than rounding in 16 bit; greedy decoding must not turn it into another text."""
    subjects = [
        (picture, PROMPT),
        (picture.rotate(180).resize((300, 200)), None),
        (Image.radial_gradient("L").convert("RGB"), "a soft grey vignette, " * 12),
        (Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * turn) for turn in range(3)]), "dusk"),
    ]

    def check(assessment: Assessment | M3AgiqaError, alone: Assessment) -> None:
        assert isinstance(assessment, Assessment)
        for result in assessment.aspects.values():
            expected = alone.aspects[result.aspect]
            assert (result.description, result.spoken_rating) == (
                expected.description,
                expected.spoken_rating,
            )
            assert result.mos == pytest.approx(expected.mos, abs=0.005)
            assert result.elements == expected.elements

    alone = [events[-1], *(assessor.assess(*subject) for subject in subjects[1:])]
    first, no_image, *others = assessor.assess_all([subjects[0], (b"no image", PROMPT), *subjects[1:]])
    assert "not an image" in str(no_image)
    for assessment, expected in zip((first, *others), alone, strict=True):
        check(assessment, expected)
    for assessment, expected in zip(assessor.assess_all(subjects[:1:-1]), alone[:1:-1], strict=True):
        check(assessment, expected)
    check(assessor.assess(*subjects[2], [Aspect.QUALITY]), alone[2])


def test_several_at_once_have_the_numbers_of_one_by_one(scripted: Assessor, picture: Image.Image) -> None:
    assert scripted.assess_all([]) == []
    judged = scripted.assess_all([(picture, "a ball"), (picture, None), (picture, "a hill")])
    assert [list(each.aspects) for each in judged] == [
        list(Aspect),
        ["quality", "authenticity"],
        list(Aspect),
    ]
    for each, prompt in zip(judged, ("a ball", None, "a hill"), strict=True):
        assert replace(each, seconds=0) == replace(scripted.assess(picture, prompt), seconds=0)


def test_what_was_too_much_at_once_is_given_up_before_the_next_is_judged(
    scripted: Assessor, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    describe = scripted.backbone.describe

    def greedy(requests: list[Request], *options: object) -> Iterator[Generation]:
        assert not any(tensor() is not None for tensor in held)
        computed = torch.zeros(len(requests))
        held.append(weakref.ref(computed))
        if len(requests) > 1 or requests[0].conversations[0].prompt == "a hill":
            raise InputError("The memory ran out.")
        yield from describe(requests, *options)

    monkeypatch.setattr(scripted.backbone, "describe", greedy)
    first, failed, last = scripted.assess_all([(picture, "a ball"), (picture, "a hill"), (picture, None)])
    assert isinstance(failed, InputError) and str(failed) == "The memory ran out."
    assert isinstance(first, Assessment) and isinstance(last, Assessment)
    assert len(held) == 4


def test_stop_is_heeded_at_the_next_token(assessor: Assessor, picture: Image.Image) -> None:
    spoken: list[Event] = []
    pressed = 0.0

    def stream() -> Iterator[Event]:
        yield from assessor.stream(picture, "a ball", [Aspect.QUALITY], stop=lambda: pressed > 0)

    with pytest.raises(Stopped):
        for event in stream():
            spoken.append(event)
            if len(spoken) == 3 and not pressed:
                pressed = time.perf_counter()
    assert len(spoken) <= 4
    assert all(isinstance(event, DescriptionDelta) for event in spoken)


@pytest.mark.parametrize(
    ("prompt", "at_least"),
    [
        ("a red ball on a hill, " * 10, None),
        ("a red ball, " * 700, 1500),
        ("灯" * 1000, 100),
        ("x" * 9000, 300),
    ],
)
def test_of_a_long_prompt_the_beginning_is_read(
    assessor: Assessor, picture: Image.Image, prompt: str, at_least: int | None
) -> None:
    read = readable_prompt(assessor.backbone, picture, prompt)
    assert prompt.startswith(read) and assessor.backbone.fits(read)
    if at_least is None:
        assert read == prompt
    else:
        assert at_least <= len(read) < len(prompt)
        assert prompt[len(read)] in " x灯", "no word of an ordinary length is cut in two"


@pytest.mark.parametrize("words", [500, 5000])
def test_a_long_prompt_is_judged_and_what_was_read_is_told(
    scripted: Assessor, picture: Image.Image, words: int
) -> None:
    scripted.backbone.fits = lambda prompt: len(prompt) <= 1000
    prompt = "word " * words
    alone = scripted.assess(picture, prompt)
    (together,) = scripted.assess_all([(picture, prompt)])
    for assessment in (alone, together):
        assert assessment.prompt == prompt.strip()[:MAX_PROMPT]
        read = {aspect: result.read_characters for aspect, result in assessment.aspects.items()}
        assert read == {Aspect.QUALITY: None, Aspect.CORRESPONDENCE: 999, Aspect.AUTHENTICITY: None}
        assert assessment.to_dict()["aspects"]["correspondence"]["read_characters"] == 999


def test_bad_image_fails_before_anything_is_generated(assessor: Assessor) -> None:
    with pytest.raises(InputError, match="not an image"):
        next(assessor.stream(b"no image", "a ball"))


def test_hidden_states_of_generation_and_reading_agree(exact: Assessor, picture: Image.Image) -> None:
    """What was computed while speaking is what `encode` computes from the finished text."""
    pictures = (picture, picture.rotate(180))
    opened = [
        tuple(Conversation.open(aspect, prompt) for aspect in (Aspect.CORRESPONDENCE, Aspect.QUALITY))
        for prompt in ("a red ball", "a much longer prompt about a green hill under a blue sky at noon")
    ]
    requests = [Request(image, rows) for image, rows in zip(pictures, opened, strict=True)]
    finished = [said for said in exact.backbone.describe(requests) if isinstance(said, Generation)]
    spoken = sorted(finished, key=lambda said: said.row)
    assert [said.row for said in spoken] == [0, 1, 2, 3]
    texts = iter(said.description for said in spoken)
    whole = [Request(r.image, tuple(c.describe(next(texts)) for c in r.conversations)) for r in requests]
    for said, hidden in zip(spoken, exact.backbone.encode(whole), strict=True):
        assert said.hidden.shape == hidden.shape
        assert torch.max(torch.abs(said.hidden - hidden)) < 1e-3
