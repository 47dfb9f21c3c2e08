"""Published response files against true scores."""

import json
from pathlib import Path

import pytest

from m3agiqa.aspects import Rating
from training.__main__ import main
from training.evaluation.rating_words import classification

MOS = {"a.png": 4.6, "b.png": 3.2, "c.png": 3.9, "d.png": 0.4}
ANSWERS = {"a.png": "excellent", "b.png": "Good.", "c.png": "fair", "d.png": "It would be bad"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A response file, a JSON list in spite of its name, and scores of one image more."""
    entries = [
        {"id": str(i), "image": f"/home/someone/images/{name}", "response_0": "…", "response_1": answer}
        for i, (name, answer) in enumerate(ANSWERS.items())
    ]
    responses, mos = tmp_path / "res.jsonl", tmp_path / "data.csv"
    responses.write_text(json.dumps(entries))
    rows = "".join(f"{name},{value}\n" for name, value in {**MOS, "e.png": 1.0}.items())
    mos.write_text("name,mos_quality\n" + rows)
    return responses, mos


def _run(responses: Path, mos: Path, *more: str) -> int:
    return main(
        ["evaluate-responses", str(responses), "--mos", str(mos), "--mos-column", "mos_quality", *more]
    )


def test_one_json_line_with_all_that_table_v_has(files, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(*files) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    found = json.loads(line)
    # true: excellent, good, good, bad; said: excellent, good, fair, nothing
    assert (found["n"], found["unparsed"]) == (4, 1)
    assert found["accuracy"] == 0.5
    assert found["rough_accuracy"] == 0.75
    assert found["precision_weighted"] == pytest.approx((1 + 2 * 1 + 0) / 4)
    assert found["precision_macro"] == pytest.approx((1 + 1 + 0 + 0) / 4)  # bad and fair have none
    assert found["f1_weighted"] == pytest.approx((1 + 2 * (2 / 3) + 0) / 4)
    assert found["f1_macro"] == pytest.approx((1 + 2 / 3) / 4)


def test_json_lines_do_as_well(files, capsys: pytest.CaptureFixture[str]) -> None:
    responses, mos = files
    entries = json.loads(responses.read_text())
    responses.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert _run(responses, mos) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 4


@pytest.mark.parametrize("answer", ["good", " Good.\n", '"GOOD"', "**good**"])
def test_punctuation_around_a_word_is_forgiven(answer: str) -> None:
    assert Rating.parse(answer) is Rating.GOOD


@pytest.mark.parametrize("answer", ["", "The image is good", "goodish", "good or fair"])
def test_an_answer_that_is_no_word_is_wrong(answer: str) -> None:
    assert Rating.parse(answer) is None
    assert classification([None], [Rating.GOOD])["accuracy"] == 0


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda responses, mos: responses.unlink(), "Cannot read"),
        (lambda responses, mos: responses.write_text("[]"), "has no entries"),
        (lambda responses, mos: responses.write_text("{"), "line 1 is not JSON"),
        (lambda responses, mos: responses.write_text("[1, "), "is not JSON"),
        (lambda responses, mos: responses.write_text('[{"image": "a.png"}]'), "entry 1: every entry needs"),
        (lambda responses, mos: mos.write_text("name,mos_quality\nz.png,1\n"), "no row for the image a.png"),
        (lambda responses, mos: mos.write_text("name,mos_quality\na.png,high\n"), "line 2: mos_quality"),
        (
            lambda responses, mos: mos.write_text("name,score\na.png,1\n"),
            "has no column mos_quality; it has name, score",
        ),
    ],
)
def test_what_is_wrong_with_the_files_is_named(files, spoil, sentence: str, capsys) -> None:
    spoil(*files)
    assert _run(*files) == 2
    assert sentence in capsys.readouterr().err


def test_a_scale_upside_down_is_named(files, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(*files, "--scale", "5", "0") == 2
    assert "LOW below HIGH" in capsys.readouterr().err
