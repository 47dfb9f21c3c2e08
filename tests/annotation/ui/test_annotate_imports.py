"""Files given on the Annotate tab, on their way into the queue."""

import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from signed_in import SignedIn
from sqlalchemy import select

from annotation.settings import Settings
from annotation.store import Store
from annotation.store.models import Item, QueueEntry
from annotation.ui.access import Access, Role
from annotation.ui.annotate.tab import ImportHandlers
from annotation.ui.context import Studio
from annotation.ui.model_service import ModelLoader

REQUEST = SimpleNamespace(username=None)
NO_NUMBERS = (0, None, 1.5, "many", "2", [3], {}, float("nan"), 10**9)


@pytest.fixture
def studio(store: Store, loader: ModelLoader, tmp_path: Path) -> Studio:
    return Studio(Settings(data=tmp_path), store, Access(), loader)


@pytest.fixture
def give(tmp_path: Path):
    """A file as Gradio hands it over: in a folder of its own, its owner's name beside it."""
    numbers = iter(range(100))

    def give(name: str, content: bytes) -> dict[str, str]:
        path = tmp_path / "uploads" / f"{next(numbers)}" / "file"
        path.parent.mkdir(parents=True)
        path = path.with_suffix(Path(name).suffix)
        path.write_bytes(content)
        return {"path": str(path), "orig_name": name}

    return give


def bring_in(studio: Studio, files: list[dict] | None, name: str = "", overlap: float | None = 1) -> str:
    return ImportHandlers(studio).bring_in(REQUEST, files, name, overlap, lambda *_, **__: None)


def items(studio: Studio) -> list[tuple[str, str, int]]:
    """Prompt, source and overlap of all items in the queue."""
    query = select(Item, QueueEntry.overlap).join(QueueEntry).order_by(Item.id)
    with studio.store.database.reading() as session:
        return [(item.prompt.text, item.source, overlap) for item, overlap in session.execute(query)]


def test_images_find_their_prompts_beside_them(studio, give, png):
    shown = bring_in(studio, [give("fox.png", png(1)), give("fox.txt", b"a red fox"), give("b.png", png(2))])
    assert "2 images added" in shown
    assert sorted(items(studio)) == [("", "3 files", 1), ("a red fox", "3 files", 1)]


def test_a_csv_finds_its_images_among_the_files(studio, give, png):
    table = give("list.csv", b"image,prompt\nfox.png,a fox\nmissing.png,a ghost\n")
    others = [give(f"other{number}.png", png(2 + number)) for number in range(6)]
    shown = bring_in(studio, [table, give("fox.png", png(1)), *others], name="first round", overlap=3)
    assert "6 other files left out (other0.png, other1.png, other2.png, other3.png, other4.png …)" in shown
    assert "There is no file missing.png" in shown
    assert items(studio) == [("a fox", "first round", 3)]


def test_files_of_the_same_name_from_different_folders(studio, give, png):
    assert "2 images added" in bring_in(studio, [give("a.png", png(1)), give("a.png", png(2))])


def test_whose_prompt_it_is_is_not_guessed(studio, give, png):
    names = ("0.png", "1.png", "1.txt", "1.png", "1.txt")
    shown = bring_in(studio, [give(name, png(i) if "png" in name else b"a") for i, name in enumerate(names)])
    assert "not clear which image 1.txt tells the prompt of" in shown
    assert items(studio) == []


def test_only_admins_bring_in_scores_and_known_answers(studio, give, png):
    def files() -> list[dict]:
        rows = b"image,annotator,quality,gold_quality\n0.png,ben,1,\n1.png,,,5\n2.png,,,\n"
        return [give("t.csv", rows), *(give(f"{i}.png", png(i)) for i in range(3))]

    others = Studio(studio.settings, studio.store, SignedIn(Role.ANNOTATOR), studio.loader)
    shown = bring_in(others, files())
    assert "1 image added" in shown
    assert shown.count("only an admin may bring in") == 2
    shown = bring_in(studio, files())
    assert "1 score of people taken over" in shown
    assert "1 calibration image" in shown


def test_a_zip_and_images_at_once(studio, give, png, tmp_path):
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr("a.png", png(1))
    files = [give("made.zip", (tmp_path / "made.zip").read_bytes()), give("b.png", png(2))]
    assert "left out" not in bring_in(studio, files)
    assert len(items(studio)) == 2


@pytest.mark.parametrize(
    ("files", "overlap", "sentence"),
    [
        (None, 1, "Choose images, a ZIP archive or a CSV file first."),
        ([("notes.doc", b"hello")], 1, "There is no image, ZIP archive or CSV"),
        ([("a.zip", b"PK nothing")], 1, "ZIP"),
        ([("a.csv", b"")], 1, "a.csv"),
        ([("a.png", b"hello")], 1, "This is not an image"),
        ([("<b>.csv", b"")], 1, "&lt;b&gt;.csv"),
        ([("a" * 300 + ".png", b"hello")], 1, "under a shorter name"),
        *(([("a.png", b"hello")], overlap, "whole number from 1 to 100") for overlap in NO_NUMBERS),
    ],
)
def test_what_cannot_be_imported_is_told(studio, give, files, overlap, sentence):
    given = None if files is None else [give(name, content) for name, content in files]
    shown = bring_in(studio, given, overlap=overlap)
    assert sentence in shown
    assert "/uploads/" not in shown, "no path of the server"
    assert items(studio) == []


@pytest.mark.parametrize(
    "files", ["x", 7, [7], [{"path": 7}], [{"path": "\0"}], [{"path": "/" + "a" * 5000}]]
)
def test_what_no_page_sends_is_no_file(studio, files):
    assert "Choose images" in bring_in(studio, files)


@pytest.mark.parametrize("called", ["..", ".", "/", "", 7, None, "\0", "\ud800.png", ["a.png"]])
def test_a_name_that_no_file_can_have_does_no_harm(studio, give, png, called):
    file = {**give("a.png", png(1)), "orig_name": called}
    assert "1 image added" in bring_in(studio, [file])
    assert items(studio) != []


def test_folders_and_files_of_the_server_are_not_imported(studio, give, png, tmp_path):
    (tmp_path / "uploads" / "folder.png").mkdir(parents=True)
    folder = {"path": str(tmp_path / "uploads" / "folder.png"), "orig_name": "folder.png"}
    for file in (folder, {"path": "/etc/hostname", "orig_name": "a.png"}, {"path": str(tmp_path / "no.png")}):
        assert "Choose images" in bring_in(studio, [file])


def test_the_name_of_an_import_is_text(studio, give, png):
    assert "The name of this import must be text, not 7." in bring_in(studio, [give("a.png", png(1))], name=7)
    assert items(studio) == []


def test_viewers_cannot_import(studio, give, png):
    viewers = Studio(studio.settings, studio.store, SignedIn(Role.VIEWER, ""), studio.loader)
    assert "Sign in as an annotator" in bring_in(viewers, [give("a.png", png(1))])
    assert items(studio) == []
