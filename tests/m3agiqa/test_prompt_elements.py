"""Prompts taken apart, in five styles; and whether the default model sees the elements."""

import re
from pathlib import Path

import pytest

from m3agiqa import Aspect, Assessor
from m3agiqa.prompt_elements import prompt_elements

ROOT = Path(__file__).parents[2]
EXAMPLES_FOLDER = ROOT / "annotation" / "ui" / "assess" / "examples"


def prompts_with_elements() -> dict[str, list[tuple[str, list[str]]]]:
    """Prompts and what they ask for, by style."""
    styles: dict[str, list[tuple[str, list[str]]]] = {}
    lines = Path(__file__).with_name("prompts_with_elements.txt").read_text(encoding="utf-8").splitlines()
    prompt = style = ""
    for line in lines:
        if line.startswith("# "):
            style = line.removeprefix("# ")
        elif line.startswith("    "):
            styles.setdefault(style, []).append((prompt, line.strip().split("; ")))
        else:
            prompt = line
    return styles


CASES = prompts_with_elements()


def named(prompt: str) -> list[str]:
    return [f"{each.kind} {each.text}" for each in prompt_elements(prompt)]


@pytest.mark.parametrize("style", CASES)
def test_elements_of_prompts(style: str) -> None:
    assert len(CASES[style]) == 12
    for prompt, expected in CASES[style]:
        told = named(prompt)
        # Which thing a phrase belongs to cannot always be told, so of relations there may be more.
        told = [each for each in told if each in expected or not each.startswith("relation")]
        assert told == expected, prompt


@pytest.mark.parametrize(
    "prompt", [None, "", "  ", "灯台と海", "<lora:detail:0.8>, BREAK, --ar 3:2", "masterpiece, 8k", "!!!"]
)
def test_nothing_to_see(prompt: str | None) -> None:
    assert prompt_elements(prompt) == ()


def test_a_far_place_is_no_thing() -> None:
    assert named("a castle on a hill in the distance") == named("a castle on a hill")


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
            "a lighthouse beside a green cat, the sea",
            {"thing lighthouse": "seen", "thing sea": "seen", "thing cat": "not seen"}
            | {"colour green cat": "not seen", "relation lighthouse beside cat": "not judged by this model"},
        ),
    ],
)
def test_the_default_model_sees_things_and_colours(
    assessor: Assessor, example: str, prompt: str, presences: dict[str, str]
) -> None:
    assessment = assessor.assess(EXAMPLES_FOLDER / f"{example}.webp", prompt, [Aspect.CORRESPONDENCE])
    told = assessment.to_dict()["aspects"]["correspondence"]["elements"]
    assert presences.items() <= {f"{each['kind']} {each['text']}": each["presence"] for each in told}.items()
