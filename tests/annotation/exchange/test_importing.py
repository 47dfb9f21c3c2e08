import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from sqlalchemy import event, func, select

from annotation.exchange.importing import import_into
from annotation.store import Database, ImageFiles, Store
from annotation.store.corrections import AspectResponse, NewSubmission, save, withdraw_submission
from annotation.store.current_responses import current_responses
from annotation.store.database import StoreError
from annotation.store.models import AuditEntry, GoldAnswer, Item, QueueEntry
from annotation.store.queue import take
from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.conversation import MAX_PROMPT
from m3agiqa.errors import InputError

Png = Callable[[int], bytes]


@pytest.fixture
def folder(tmp_path: Path, png: Png) -> Path:
    """Three images, two of them with prompts, in folders."""
    folder = tmp_path / "animals"
    (folder / "cats").mkdir(parents=True)
    for number, name in enumerate(("cats/a.png", "cats/b.png", "owl.png")):
        (folder / name).write_bytes(png(number))
    (folder / "cats/a.txt").write_text("a cat\n")
    (folder / "cats/b.txt").write_text("two cats")
    return folder


def items(store: Store) -> set[tuple[str, str, str]]:
    """Image, prompt and source of every item."""
    with store.database.reading() as session:
        return {(i.image.name, i.prompt.text, i.source) for i in session.scalars(select(Item))}


def test_a_folder_comes_in_with_its_prompts(store: Store, folder: Path) -> None:
    (folder / "notes.md").write_text("no image")
    steps = []
    report = import_into(store, folder, overlap=2, progress=lambda *step: steps.append(step))
    expected = {("a.png", "a cat"), ("b.png", "two cats"), ("owl.png", "")}
    assert items(store) == {(*each, "animals") for each in expected}
    assert (report.added, report.known, report.queued, report.left_out) == (3, 0, 3, ["notes.md"])
    assert steps == [(0, 3), (3, 3)]
    with store.database.reading() as session:
        assert session.scalars(select(QueueEntry.overlap)).all() == [2, 2, 2]
        for item in session.scalars(select(Item)):
            assert store.images.path(item.image.file).is_file()


def test_the_same_again_adds_nothing(store: Store, folder: Path) -> None:
    import_into(store, folder, overlap=1)
    (folder / "copy of the owl.png").write_bytes((folder / "owl.png").read_bytes())
    report = import_into(store, folder, overlap=1, name="again")
    assert (report.added, report.known, report.queued) == (0, 4, 0)
    assert len(items(store)) == 3


def test_one_image_with_the_prompt_of_its_generator(store: Store, tmp_path: Path) -> None:
    path, info = tmp_path / "one.png", PngImagePlugin.PngInfo()
    info.add_text("parameters", "a fox\nSteps: 20, Sampler: Euler a")
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    import_into(store, path, overlap=1)
    assert items(store) == {("one.png", "a fox", "one")}


@pytest.mark.parametrize(("name", "called"), [(None, "set 1.5"), ("  ", "set 1.5"), (" mine ", "mine")])
def test_what_an_import_is_called(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, called: str
) -> None:
    monkeypatch.chdir(folder.rename(folder.with_name("set 1.5")))
    import_into(store, Path(), overlap=1, name=name)
    assert {source for _, _, source in items(store)} == {called}


def test_without_overlap_nothing_is_queued(store: Store, folder: Path) -> None:
    assert import_into(store, folder, overlap=0).queued == 0
    assert store.database.transact(lambda session: take(session, "ann", 3)) == []


def test_who_imported_what_is_on_record(store: Store, folder: Path) -> None:
    import_into(store, folder, overlap=1, annotator="lead")
    with store.database.reading() as session:
        (entry,) = session.scalars(select(AuditEntry))
    assert (entry.action, entry.details["name"], entry.details["added"]) == ("import", "animals", 3)


# --- CSV ---------------------------------------------------------------------------------------


def test_a_csv_names_images_prompts_and_generators(store: Store, folder: Path) -> None:
    table = folder / "t.csv"
    table.write_text(
        "image,prompt,generator\ncats/a.png,a lion,sd\ncats\\b.png,a puma,\nnope.png,x,\nowl.png,,\n"
    )
    report = import_into(store, table, overlap=1, name="big cats")
    names = {("a.png", "a lion"), ("b.png", "a puma"), ("owl.png", "")}
    assert items(store) == {(*each, "big cats") for each in names}
    assert report.errors == [("line 4", "There is no file nope.png.")]
    assert "1 entry could not be imported" in report.text
    assert "line 4: There is no file nope.png." in report.text


def test_images_of_a_csv_may_be_elsewhere(store: Store, folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image\nowl.png\nD:\\pictures\\owl.png\n")
    report = import_into(store, table, overlap=1, images=folder)
    assert (report.added, report.known, report.errors) == (1, 1, [])


@pytest.mark.parametrize("name", ["../secret.png", "{folder}/secret.png"])
def test_an_uploaded_csv_cannot_reach_other_files(store: Store, tmp_path: Path, png: Png, name: str) -> None:
    (tmp_path / "upload").mkdir()
    (tmp_path / "secret.png").write_bytes(png(1))
    table = tmp_path / "upload/t.csv"
    table.write_text(f"image\n{name.format(folder=tmp_path)}\n")
    assert import_into(store, table, overlap=1).added == 0
    assert import_into(store, table, overlap=1, trusted=True).added == 1


def test_gold_answers(store: Store, folder: Path) -> None:
    table = folder / "t.csv"
    table.write_text("image,prompt,gold_quality,gold_authenticity,gold_tolerance\nowl.png,owl,4,2,0.5\n")
    assert import_into(store, table, overlap=1).gold == 1
    table.write_text("image,prompt,gold_quality\nowl.png,owl,5\n")
    import_into(store, table, overlap=1)
    with store.database.reading() as session:
        answers = {(g.aspect, g.score, g.tolerance) for g in session.scalars(select(GoldAnswer))}
    assert answers == {(Aspect.QUALITY, 5.0, 1.0), (Aspect.AUTHENTICITY, 2.0, 0.5)}


def test_scores_of_people_are_taken_over_once(store: Store, folder: Path) -> None:
    table = folder / "t.csv"
    header = "image,prompt,annotator,quality,correspondence,authenticity\n"
    table.write_text(header + "owl.png,owl,ann,4,3,2\nowl.png,owl,bob,5,,\nowl.png,,bob,1,,1\n")
    assert import_into(store, table, overlap=1).scores == 6
    assert import_into(store, table, overlap=1).scores == 0
    table.write_text(header + "owl.png,owl,ann,1,3,2\n")
    assert import_into(store, table, overlap=1).scores == 3  # a later answer goes before an earlier one
    with store.database.reading() as session:
        said = current_responses(session)
    assert set(said["place"]) == {"import"}
    said = said[said["prompt"] == "owl"]
    assert {(r.annotator, r.aspect, r.score) for r in said.itertuples()} == {
        ("ann", "quality", 1.0),
        ("ann", "correspondence", 3.0),
        ("ann", "authenticity", 2.0),
        ("bob", "quality", 5.0),
    }


def test_scores_that_were_taken_back_stay_so(store: Store, folder: Path) -> None:
    table = folder / "t.csv"
    table.write_text("image,prompt,annotator,quality\nowl.png,owl,ann,4\n")
    import_into(store, table, overlap=1)
    store.database.transact(lambda session: withdraw_submission(session, 1, "ann"))
    table.write_text("image,prompt,annotator,quality\nowl.png,owl,ann,4\nowl.png,owl,bob,2\n")
    assert import_into(store, table, overlap=1).scores == 1
    with store.database.reading() as session:
        assert current_responses(session)["annotator"].tolist() == ["bob"]


def test_an_image_whose_prompt_cannot_be_read_stays_out(store: Store, folder: Path) -> None:
    (folder / "owl.txt").symlink_to("/proc/self/mem")  # a file whose beginning nobody can read
    report = import_into(store, folder, overlap=1)
    assert report.errors == [("owl.png", "owl.txt cannot be read: Input/output error.")]
    assert report.added == 2


def test_an_old_csv_does_not_undo_what_was_said_since(store: Store, folder: Path) -> None:
    table = folder / "t.csv"
    table.write_text("image,prompt,annotator,quality\nowl.png,owl,ann,4\n")
    import_into(store, table, overlap=1)
    with store.database.reading() as session:
        item = session.scalar(select(Item.id))
    said = AspectResponse(Aspect.QUALITY, 2.0, MosScale(1, 5), revision=2)
    store.database.transact(lambda session: save(session, NewSubmission("t", item, "ann", (said,))))
    import_into(store, table, overlap=1)
    with store.database.reading() as session:
        assert current_responses(session)["score"].tolist() == [2.0]


def test_who_has_scored_all_aspects_elsewhere_is_not_asked_again(store: Store, folder: Path) -> None:
    table = folder / "t.csv"
    table.write_text("image,annotator,quality,authenticity\nowl.png,ann,4,3\nowl.png,bob,4,\n")
    import_into(store, table, overlap=2)
    asked = {name: store.database.transact(lambda s, n=name: len(take(s, n))) for name in ("ann", "bob")}
    assert asked == {"ann": 0, "bob": 1}


def test_correspondence_needs_a_prompt(store: Store, folder: Path) -> None:
    table = folder / "t.csv"
    table.write_text("image,prompt,annotator,correspondence\nowl.png,,ann,4\n")
    report = import_into(store, table, overlap=1)
    assert report.errors == [
        ("line 2", "It has a score for correspondence but no prompt, which that is about.")
    ]
    assert report.added == 0


def test_many_rows_with_bad_ones_among_them(database: Database, tmp_path: Path, png: Png) -> None:
    store = Store(database, ImageFiles(tmp_path / "images"))
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "broken.png").write_bytes(b"no image")
    bad = [
        "broken.png,p,",
        "gone.png,p,",
        '0.png,"p,',
        f"0.png,{'p' * (MAX_PROMPT + 1)},",
        f"0.png,p,{'g' * 201}",
    ]
    rows = [bad[i // 30 % 5] if i % 30 == 7 else f"{i % 10}.png,prompt {i},sd" for i in range(300)]
    (tmp_path / "t.csv").write_text("\n".join(["image,prompt,generator", *rows]))
    report = import_into(store, tmp_path / "t.csv", overlap=1)
    assert (report.added, report.queued) == (290, 290)
    assert sorted(place for place, _ in report.errors) == sorted(f"line {i + 2}" for i in range(7, 300, 30))
    with database.reading() as session:
        assert session.scalar(select(func.count(Item.id))) == 290
        assert session.scalar(select(func.count()).select_from(QueueEntry)) == 290


def test_what_cannot_be_read_is_named_and_the_rest_comes_in(store: Store, tmp_path: Path, png: Png) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1))
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    report = import_into(store, folder, overlap=1)
    assert {place: "cannot be read" in error or "is a pipe" in error for place, error in report.errors} == {
        "circle.png": True,
        "drawing.svg": True,
        "gone.png": True,
        "pipe.png": True,
    }
    assert (report.added, report.left_out) == (1, [])
    (folder / "t.tsv").write_text("File\tseed\na.png\t1\ncircle.png\t2\npipe.png\t3\nhttp://a/b.png\t4\n")
    report = import_into(store, folder / "t.tsv", overlap=1)
    assert [place for place, _ in report.errors] == ["line 5", "line 3", "line 4"]
    assert (report.known, report.notes) == (1, ("t.tsv: not read: seed. Read: File.",))
    assert report.notes[0] in report.text


# --- ZIP ---------------------------------------------------------------------------------------


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_a_zip_comes_in_with_its_prompts(store: Store, tmp_path: Path, png: Png) -> None:
    members = {
        "set/a.png": png(1),
        "set/a.txt": b"\xef\xbb\xbfan ape",
        "b.png": png(2),
        "__MACOSX/set/._a.png": b"?",
        "read me.md": b"hello",
    }
    report = import_into(store, zipped(tmp_path / "apes.zip", members), overlap=1)
    assert items(store) == {("a.png", "an ape", "apes"), ("b.png", "", "apes")}
    assert (report.left_out, report.errors) == (["read me.md"], [])


def test_an_image_whose_prompt_is_damaged_stays_out_alone(store: Store, tmp_path: Path, png: Png) -> None:
    path = zipped(tmp_path / "z.zip", {"a.png": png(1), "a.txt": b"an ape", "b.png": png(2)})
    path.write_bytes(path.read_bytes().replace(b"an ape", b"an apf"))
    report = import_into(store, path, overlap=1)
    assert items(store) == {("b.png", "", "z")}
    assert report.errors == [("a.txt", "The file is damaged within the ZIP; make the ZIP anew.")]


def test_a_csv_within_a_zip_decides(store: Store, tmp_path: Path, png: Png) -> None:
    members = {
        "set/list.csv": b"image,prompt\na.png,ape\n./set/b.png,bee\nc.png,cow\n",
        "set/a.png": png(1),
        "set/b.png": png(2),
        "set/unlisted.png": png(3),
    }
    report = import_into(store, zipped(tmp_path / "z.zip", members), overlap=1)
    assert items(store) == {("a.png", "ape", "z"), ("b.png", "bee", "z")}
    assert report.errors == [("line 4", "There is no file c.png in the ZIP.")]
    assert report.left_out == ["set/unlisted.png"]


def test_nothing_of_a_zip_is_written_outside_the_images(store: Store, tmp_path: Path, png: Png) -> None:
    members = {"../../up.png": png(1), "/abs.png": png(2), "ok.png": png(3), "bad.png": b"junk"}
    path = zipped(tmp_path / "z.zip", members)
    before = set(tmp_path.parent.rglob("*"))
    report = import_into(store, path, overlap=1)
    new = {each for each in set(tmp_path.parent.rglob("*")) - before if each.is_file()}
    assert {each for each in new if "annotations.db" not in each.name} == {
        store.images.path(f"{sha[:2]}/{sha}.png") for sha in _hashes(store)
    }
    assert report.added == 1
    assert sorted(place for place, _ in report.errors) == ["../../up.png", "/abs.png", "bad.png"]


def _hashes(store: Store) -> list[str]:
    with store.database.reading() as session:
        return list(session.scalars(select(Item.image_sha256)))


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path / "nowhere", "no file or folder"),
        (lambda path: path, "no image file in the folder"),
        (lambda path: _written(path / "a.docx", b"x"), "no folder, ZIP, CSV or image"),
        (lambda path: _written(path / "a.zip", b"x"), "damaged or no ZIP"),
        (lambda path: zipped(path / "a.zip", {"a.txt": b"x"}), "no image in the ZIP"),
        (lambda path: zipped(path / "a.zip", {"a.csv": b"", "b.tsv": b""}), "several tables"),
        (lambda path: _written(path / "a.csv", b"x"), "has no column image"),
    ],
)
def test_sources_that_cannot_be_imported(
    store: Store, tmp_path: Path, make: Callable[[Path], Path], sentence: str
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(InputError, match=sentence):
        import_into(store, make(folder), overlap=1)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_an_import_cannot_pass_for_the_demo(store: Store, folder: Path) -> None:
    with pytest.raises(InputError, match="cannot be called demo"):
        import_into(store, folder, overlap=1, name="demo")


def test_fewer_annotators_than_none(store: Store, folder: Path) -> None:
    with pytest.raises(InputError, match="There cannot be -1 annotators"):
        import_into(store, folder, overlap=-1)
    assert items(store) == set()


def test_a_folder_of_images_goes_with_a_csv_only(store: Store, folder: Path) -> None:
    with pytest.raises(InputError, match="goes with a CSV"):
        import_into(store, folder, overlap=1, images=folder)


@pytest.fixture
def long_folder(tmp_path: Path, png: Png) -> Path:
    """Images for three transactions."""
    folder = tmp_path / "long"
    folder.mkdir()
    for number in range(120):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder


def test_an_interrupted_import_goes_on(store: Store, long_folder: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_into(store, long_folder, overlap=1, progress=interrupt)
    assert len(items(store)) == 50
    report = import_into(store, long_folder, overlap=1)
    assert (report.added, report.known, report.queued) == (70, 50, 70)


def test_a_full_disk_in_the_middle(store: Store, long_folder: Path) -> None:
    """What is told to be in is in, nothing is half in, and the same import goes on afterwards."""

    def is_full(connection, cursor, statement, parameters, context, many) -> None:
        if statement.startswith("INSERT INTO items") and next(writes) == 70:
            cursor.execute("PRAGMA max_page_count = 1")  # SQLite takes the least it can: the present size

    writes = iter(range(1000))
    event.listen(store.database.engine, "before_cursor_execute", is_full)
    with pytest.raises(StoreError, match=r"disk is full.* 50 of 120 images are in; import the same again"):
        import_into(store, long_folder, overlap=1)
    event.remove(store.database.engine, "before_cursor_execute", is_full)
    store.database.engine.dispose()
    assert len(items(store)) == 50
    assert import_into(store, long_folder, overlap=1).added == 70
