"""Images that a program sends to be scored: what they are taken for, and what the server keeps to itself."""

import csv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from waiting import wait_until

from annotation.store import exposures
from annotation.store.items import add_item
from annotation.store.models import AnswersOf
from annotation.ui import scoring
from annotation.ui.access import Person, Role
from annotation.ui.assess.runs import RunStage
from annotation.ui.context import Studio
from annotation.ui.images import Upload
from annotation.ui.scoring import ScoreRun
from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError
from m3agiqa.images import open_image

Send = Callable[..., Upload]


@pytest.fixture
def send(tmp_path: Path) -> Send:
    """Uploads a file as Gradio does: each in a folder of its own."""

    def make(name: str, content: str | bytes | None = None) -> Upload:
        path = tmp_path / f"upload-{len(list(tmp_path.iterdir()))}" / name
        path.parent.mkdir()
        if content is None:
            Image.new("RGB", (64, 64), "teal").save(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Upload(path, name)

    return make


@pytest.fixture(autouse=True)
def images_are_read(assessor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the model without weights, as a real one does."""
    judge = assessor.assess_all

    def judged(subject: tuple[Path, str | None]) -> Any:
        try:
            open_image(subject[0])
        except InputError as error:
            return error
        return judge([subject])[0]

    monkeypatch.setattr(assessor, "assess_all", lambda subjects, **_: list(map(judged, subjects)))


def scored(studio: Studio, *files: Upload) -> tuple[ScoreRun, dict[str, dict[str, str]]]:
    """The run, and the rows of its CSV by image."""
    out = studio.settings.data / "scores.csv"
    run = ScoreRun(files, Person("ann", Role.ANNOTATOR), out, studio)
    run.start()
    wait_until(lambda: run.state.over)
    if not out.exists():
        return run, {}
    with out.open(encoding="utf-8-sig", newline="") as file:
        return run, {row["image"]: row for row in csv.DictReader(file)}


def test_prompts_come_from_a_csv_or_from_texts(studio: Studio, send: Send) -> None:
    table = send("list.csv", "image,prompt\na.png,a square\nmissing.png,nothing\n")
    run, rows = scored(studio, send("a.png"), table, send("other.png"), send("a.txt", "not used"))
    assert list(rows) == ["a.png", "missing.png"]
    assert run.state.notes == (
        "list.csv does not list 2 of the other files, which are left out: a.txt, other.png.",
    )
    assert (run.state.stage, run.state.scored, run.state.failed) == (RunStage.FINISHED, 2, 1)
    assert (rows["a.png"]["prompt"], rows["a.png"]["correspondence_mos"]) == ("a square", "4.000")
    (studio.settings.data / "scores.csv").unlink()
    run, rows = scored(studio, send("b.png"), send("b.txt", "another square"))
    assert run.state.notes == ()
    assert rows["b.png"]["prompt"] == "another square"


def test_no_other_file_of_the_server_is_read_or_told_of(studio: Studio, send: Send, upload: Upload) -> None:
    table = send("list.csv", f"image\n{upload.path}\n../{upload.path.name}\nmissing.png\n")
    run, rows = scored(studio, table)
    assert run.state.failed == 3
    assert all("leads out of what was sent" in rows[image]["error"] for image in list(rows)[:2])
    assert str(studio.settings.data) not in rows["missing.png"]["error"]
    assert list(studio.settings.data.glob("import-*")) == []


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "There are no files"),
        (["a.txt"], "There is no image"),
        (["a.csv", "b.csv"], "There are several tables"),
        (["a.zip", "b.png"], "Give one ZIP alone"),
        (["a.zip"], "damaged or no ZIP"),
        (["a.csv"], "no column"),
    ],
)
def test_what_cannot_be_scored_is_a_sentence(
    studio: Studio, send: Send, names: list[str], sentence: str
) -> None:
    run, rows = scored(studio, *(send(name, "neither this nor that") for name in names))
    assert run.state.stage is RunStage.FAILED
    assert sentence in run.state.error and str(studio.settings.data) not in run.state.error
    assert rows == {}


def test_a_zip_is_unpacked_within_limits(studio: Studio, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = send("images.zip", b"")
    with zipfile.ZipFile(archive.path, "w") as file:
        file.write(send("a.png").path, "deep/a.png")
        file.writestr("../out.png", "leads out")
    _, rows = scored(studio, archive)
    assert rows["deep/a.png"]["quality_mos"] == "4.000"
    assert "leads out of the ZIP" in rows["../out.png"]["error"]
    monkeypatch.setattr(scoring, "MAX_UNPACKED", 10)
    (studio.settings.data / "scores.csv").unlink()
    run, _ = scored(studio, archive)
    assert "would unpack to" in run.state.error


def test_who_has_scores_from_a_program_does_not_score_blind(studio: Studio, send: Send) -> None:
    image = send("a.png")
    stored = studio.store.images.add(image.path, image.name)
    item = studio.store.database.transact(lambda session: add_item(session, stored, "a square", "demo")[0].id)
    scored(studio, image, send("a.txt", "a square"))
    with studio.store.database.reading() as session:
        told = exposures.recorded(session, "ann", AnswersOf.MODEL, {item})
    assert told == {(item, aspect) for aspect in Aspect}


def test_others_get_their_turn_between_batches(studio: Studio, send: Send, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_SIZE", 1)
    turns: list[str] = []
    turn = studio.line.turn
    monkeypatch.setattr(studio.line, "turn", lambda *given: turns.append("a turn") or turn(*given))
    told: list[int] = []
    follow = ScoreRun.set_state
    monkeypatch.setattr(
        ScoreRun, "set_state", lambda run, state: told.append(state.scored) or follow(run, state)
    )
    _, rows = scored(studio, *(send(f"{number}.png") for number in range(3)))
    assert len(turns) == len(rows) == 3
    assert sorted(set(told)) == [0, 1, 2, 3]
