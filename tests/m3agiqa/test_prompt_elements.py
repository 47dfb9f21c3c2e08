"""Prompts taken apart, in five styles; and whether the default model sees the elements."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from m3agiqa import Aspect, Assessor
from m3agiqa.backbones.element_questions import check_by_questions
from m3agiqa.batch_scoring import ScoreFile, score
from m3agiqa.conversation import Conversation
from m3agiqa.prompt_elements import (
    CheckedElement,
    ElementKind,
    Presence,
    PromptElement,
    prompt_elements,
)
from m3agiqa.ranking import rankings_csv
from m3agiqa.score_inputs import read_rows

ROOT = Path(__file__).parents[2]
EXAMPLES_FOLDER = ROOT / "annotation" / "ui" / "assess" / "examples"


def prompts_with_elements() -> dict[str, list[tuple[str, list[str]]]]:
    """Prompts and what they ask for, by style; see the head of the file."""
    styles: dict[str, list[tuple[str, list[str]]]] = {}
    lines = Path(__file__).with_name("prompts_with_elements.txt").read_text(encoding="utf-8").splitlines()
    prompt = style = ""
    for line in lines:
        if line.startswith("##"):
            continue
        if line.startswith("# "):
            style = line.removeprefix("# ")
        elif line.startswith("    "):
            styles.setdefault(style, []).append((prompt, line.strip().split("; ")))
        else:
            prompt = line
    return styles


CASES = prompts_with_elements()
KNOWN_FAULTS = {
    "plain sentence": (50, 9, 11),
    "list of tags": (139, 32, 27),
    "weights and commands": (129, 23, 17),
    "long paragraph": (274, 89, 107),
    "text to be written": (153, 43, 61),
    "made-up commands": (63, 0, 0),
}
"""By style: elements asked for, how many of them are missed, and how many superfluous ones are told."""


def named(prompt: str) -> list[str]:
    return [f"{each.kind} {each.text}" for each in prompt_elements(prompt)]


@pytest.mark.parametrize("style", CASES)
def test_elements_of_prompts(style: str) -> None:
    assert len(CASES[style]) == 12
    asked = missed = superfluous = 0
    for prompt, marked in CASES[style]:
        told = {each.removeprefix("+ ") for each in marked if not each.startswith("- ")}
        assert set(named(prompt)) == told, prompt
        asked += sum(not each.startswith("+ ") for each in marked)
        missed += sum(each.startswith("- ") for each in marked)
        superfluous += sum(each.startswith("+ ") for each in marked)
    assert (asked, missed, superfluous) == KNOWN_FAULTS[style]


@pytest.mark.parametrize(
    "prompt", [None, "", "  ", "灯台と海", "<lora:detail:0.8>, BREAK, --ar 3:2", "masterpiece, 8k", "!!!"]
)
def test_nothing_to_see(prompt: str | None) -> None:
    assert prompt_elements(prompt) == ()


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("Generate an oil painting of a mermaid", "an oil painting of a mermaid"),
        ("on a canvas, create a scene of a person", "on a canvas, a scene of a person"),
        ("please draw me two foxes", "two foxes"),
    ],
)
def test_what_a_chat_is_told_to_do_is_no_thing(prompt: str, plain: str) -> None:
    assert named(prompt) == named(plain) != []


def test_a_far_place_is_no_thing() -> None:
    assert named("a castle on a hill in the distance") == named("a castle on a hill")


def test_a_noun_that_can_describe_is_a_thing_where_it_stands_alone() -> None:
    assert named("an alien beside a crystal") == [
        "thing alien",
        "thing crystal",
        "relation alien beside crystal",
    ]
    assert named("a happy alien queen, small, sad") == [
        "thing queen",
        "attribute happy queen",
        "attribute alien queen",
    ]


def test_commands_leave_no_trace() -> None:
    prompt = (
        "(a (red:1.3) fox:0.9), <lora:fur_v2:0.8> [snow:ice:0.4], owl::2 BREAK ((moon)) --ar 3:2 --no hands"
    )
    text = " ".join(named(prompt))
    assert not re.search(r"\d|lora|fur|break|legs|[()\[\]<>:]|--", text)
    assert named(prompt) == [
        "thing fox",
        "colour red fox",
        "thing snow",
        "thing ice",
        "thing owl",
        "thing moon",
    ]


def test_a_long_prompt_and_hostile_ones_take_no_time() -> None:
    for prompt in ("a cat on a mat, " * 500, "(" * 4000 + "x" + ")" * 4000, "a " * 4000, '"' * 8000):
        assert len(prompt_elements(prompt)) <= 40


@pytest.mark.parametrize(
    ("example", "prompt", "presences"),
    [
        (
            "swapped-balls",
            "a blue sphere and two red spheres, a woman, a green cube, oil painting",
            {"thing sphere": "seen", "thing woman": "not seen", "colour green cube": "not seen"}
            | {
                "count two spheres": "not judged by this model",
                "style oil painting": "not judged by this model",
            },
        ),
        (
            "lighthouse",
            "a lighthouse beside a green horse, the sea",
            {"thing lighthouse": "seen", "thing sea": "seen", "thing horse": "not seen"}
            | {
                "colour green horse": "not seen",
                "relation lighthouse beside horse": "not judged by this model",
            },
        ),
    ],
)
def test_the_default_model_sees_things_and_colours(
    assessor: Assessor, example: str, prompt: str, presences: dict[str, str]
) -> None:
    assessment = assessor.assess(EXAMPLES_FOLDER / f"{example}.webp", prompt, [Aspect.CORRESPONDENCE])
    told = assessment.to_dict()["aspects"]["correspondence"]["elements"]
    assert presences.items() <= {f"{each['kind']} {each['text']}": each["presence"] for each in told}.items()
    for each in told:
        assert ("The score is" in each["comparison"]) is (each["presence"] != "not judged by this model")


def test_elements_are_in_tables_and_rankings(
    scripted: Assessor, picture: Image.Image, tmp_path: Path
) -> None:
    def check_elements(image: Image.Image, elements: Sequence[PromptElement]) -> list[CheckedElement]:
        return [CheckedElement(each, Presence.SEEN, "“Ball”, with all.", 0.83214) for each in elements]

    scripted.backbone.check_elements = check_elements
    expected = {"kind": "colour", "text": "red ball", "presence": "seen", "probability": 0.832}
    for name in ("a.png", "b.png"):
        picture.rotate(ord(name[0])).save(tmp_path / name)
    (tmp_path / "images.csv").write_text("image,prompt\na.png,a red ball\nb.png,\n", encoding="utf-8")
    with ScoreFile(tmp_path / "out.csv") as output:
        output.start(scripted.card.title)
        assert list(score(read_rows(tmp_path / "images.csv"), output, scripted)) == ["", ""]
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        first, second = csv.DictReader(file)
    assert json.loads(first["elements"])[1].items() >= expected.items()
    assert second["elements"] == "", "there is no prompt"
    ranking = scripted.rank([tmp_path / "a.png", tmp_path / "b.png"], "a red ball")
    for image in ranking.to_dict()["images"]:
        assert image["aspects"]["correspondence"]["elements"][1].items() >= expected.items()
    for row in csv.DictReader(io.StringIO(rankings_csv([ranking]))):
        assert json.loads(row["elements"])[1].items() >= expected.items()


@pytest.mark.parametrize(
    ("answers", "presence"),
    [((3.0, 0.0, 2.0, 0.0), "seen"), ((0.0, 3.0, 0.0, 3.0), "not seen"), ((0.0, 3.0, 3.0, 0.0), "not sure")],
)
def test_a_question_is_answered_by_the_likelier_of_yes_and_no(
    picture: Image.Image, answers: tuple[float, ...], presence: str
) -> None:
    """In capital letters or not, whatever else may be likely."""

    class Answering:
        chat = SimpleNamespace(
            first_tokens=lambda words: [["Yes", "No", "yes", "no"].index(w) for w in words]
        )

        def next_token_logits(
            self, image: Image.Image, conversations: Sequence[Conversation]
        ) -> torch.Tensor:
            assert "“a red ball”" in conversations[0].turns[0].content
            return torch.tensor([[*answers, 9.0]])

    [told] = check_by_questions(Answering(), picture, [PromptElement(ElementKind.COLOUR, "a red ball")])
    assert told.presence == presence
    yes, no = (sum(map(math.exp, answers[first::2])) for first in (0, 1))
    assert told.probability == pytest.approx(yes / (yes + no))
    assert f"Probability of yes: {100 * yes / (yes + no):.0f} %" in told.comparison
