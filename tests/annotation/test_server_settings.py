"""What the environment tells a server, and what makes no sense."""

from pathlib import Path

import pytest

from annotation.settings import MOST_ANNOTATORS, Settings, as_variable
from m3agiqa.errors import InputError


def test_nothing_set_is_one_local_user_in_the_data_folder() -> None:
    settings = Settings.from_environment({})
    assert settings == Settings()
    assert (settings.overlap, settings.blind, settings.auth) == (1, False, None)
    assert settings.database_url == f"sqlite:///{Path('data/annotations.db')}"


def test_everything_is_read() -> None:
    told = {
        "M3AGIQA_OVERLAP": " 3 ",
        "M3AGIQA_GOLD_EVERY": "0",
        "M3AGIQA_RETRAIN_AFTER": "100",
        "M3AGIQA_QUOTA": "200",
        "M3AGIQA_BLIND": "yes",
        "M3AGIQA_ADMINS": "a, b,",
        "M3AGIQA_QUANTIZE": "8bit",
        "M3AGIQA_DEVICE": " CUDA:1 ",
        "M3AGIQA_REVISION": "a/b=v1, c/d=main",
    }
    settings = Settings.from_environment(told)
    assert (settings.overlap, settings.gold_every, settings.retrain_after) == (3, 0, 100)
    assert settings.quota == 200
    assert settings.blind
    assert settings.admins == {"a", "b"}
    assert (settings.quantize, settings.device) == ("8bit", "cuda:1")
    assert settings.revision == {"a/b": "v1", "c/d": "main"}
    assert Settings.from_environment({"M3AGIQA_OVERLAP": str(MOST_ANNOTATORS)}).overlap == MOST_ANNOTATORS


@pytest.mark.parametrize("text", ["0", "101", "-1", "2.5", "many", "²", "9" * 5000])
def test_an_overlap_that_no_image_can_have_stops_the_start(text: str) -> None:
    with pytest.raises(InputError, match=r"M3AGIQA_OVERLAP is .*whole number from 1 to 100"):
        Settings.from_environment({"M3AGIQA_OVERLAP": text})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("M3AGIQA_GOLD_EVERY", "often"),
        ("M3AGIQA_BLIND", "perhaps"),
        ("M3AGIQA_QUANTIZE", "2bit"),
        ("M3AGIQA_QUANTIZE", "4bit|8bit"),
        ("M3AGIQA_DEVICE", "gpu"),
        ("M3AGIQA_DEVICE", "cuda:"),
    ],
)
def test_the_variable_that_is_wrong_is_named(name: str, text: str) -> None:
    with pytest.raises(InputError, match=f"{name} is '{text}'; give"):
        Settings.from_environment({name: text})


def test_a_revision_that_is_none_is_told_with_its_variable() -> None:
    with pytest.raises(InputError, match="M3AGIQA_REVISION: 'main, a/b=v1' is no revision"):
        Settings.from_environment({"M3AGIQA_REVISION": "main, a/b=v1"})


@pytest.mark.parametrize(
    ("error", "on_the_command_line", "on_a_server"),
    [
        (
            InputError("Leave out {quantize} and {device}.", quantize="", device=""),
            "Leave out --quantize and --device.",
            "Leave out M3AGIQA_QUANTIZE and M3AGIQA_DEVICE.",
        ),
        (
            InputError("With {device} it fits.", device="auto"),
            "With --device auto (in the app, M3AGIQA_DEVICE=auto) it fits.",
            "With M3AGIQA_DEVICE=auto it fits.",
        ),
        (InputError("No {quantize}."), "No {quantize}.", "No {quantize}."),
    ],
)
def test_each_front_end_names_options_in_its_own_way(
    error: InputError, on_the_command_line: str, on_a_server: str
) -> None:
    assert (str(error), error.worded(as_variable)) == (on_the_command_line, on_a_server)
