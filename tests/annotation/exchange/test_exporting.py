from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from annotation.exchange import exporting
from annotation.exchange.exporting import export
from annotation.exchange.importing import import_into
from annotation.store import Database, ImageFiles, Store
from annotation.store.corrections import AspectResponse, NewSubmission, save, withdraw_submission
from annotation.store.items import add_item, record_assessment
from annotation.store.models import GoldAnswer
from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.assessor import AspectResult, Assessment
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample, read_samples
from training import data as datasets
from training.data.conversations import import_conversations

SCALE = MosScale(1, 5)
Q, C, A = Aspect
CARD = SimpleNamespace(title="scripted 1.0", digest="abc", learned_from="a script")
Item = Callable[..., int]
Say = Callable[..., int]


@pytest.fixture
def item(store: Store, png: Callable[[int], bytes]) -> Item:
    """Adds an item with an image of its own."""

    def add(number: int = 1, prompt: str | None = "a cat", source: str = "cats", **options: str) -> int:
        image = store.images.add(png(number), f"{number}.png")
        return store.database.transact(
            lambda session: add_item(session, image, prompt, source, **options)[0].id
        )

    return add


@pytest.fixture
def say(store: Store) -> Say:
    """Saves one person's opinion of one aspect."""

    def save_one(
        item_id: int,
        annotator: str,
        score: float,
        description: str | None = None,
        aspect: Aspect = Q,
        scale: MosScale = SCALE,
        assessment_id: int | None = None,
        **options: object,
    ) -> int:
        said = AspectResponse(aspect, score, scale, description, **options)
        token = f"{item_id} {annotator} {aspect} {said.revision}"
        draft = NewSubmission(token, item_id, annotator, (said,), assessment_id)
        return store.database.transact(lambda session: save(session, draft)).submission_id

    return save_one


@pytest.fixture
def assess(store: Store) -> Callable[[int, str], int]:
    """Records what a model says of an item's quality."""

    def record(item_id: int, text: str) -> int:
        result = AspectResult(Q, text, SCALE.rating(3), 3.0, 3.0, SCALE)
        assessment = Assessment("x.png", "a cat", {Q: result}, CARD.title, CARD.learned_from, 0.5)
        return store.database.transact(lambda session: record_assessment(session, item_id, assessment, CARD))

    return record


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "exports" / "first"


def exported(store: Store, out: Path, **options: object) -> list[Sample]:
    export(store, out, **options)
    return read_samples(out / "samples.jsonl")


# --- what a sample says ------------------------------------------------------------------------


def test_a_sample_has_mean_scores_and_their_raters(store: Store, item: Item, say: Say, out: Path) -> None:
    cat = item(generator="sd")
    for annotator, score in (("ann", 2), ("bob", 3), ("cat", 4.5)):
        say(cat, annotator, score)
    say(cat, "ann", 5, aspect=A)
    (sample,) = exported(store, out, method="mean")
    assert sample.mos == {Q: pytest.approx(3.1667, abs=1e-4), A: 5.0}
    assert sample.raters == {Q: 3, A: 1}
    assert (sample.prompt, sample.generator, sample.source) == ("a cat", "sd", "cats")
    assert Image.open(sample.image).size == (64, 48)
    assert sample.image.parent == out / "images"


def test_p910_takes_a_habit_out_that_the_mean_leaves_in(
    store: Store, item: Item, say: Say, out: Path
) -> None:
    """ann, who scores a point below the others, is alone with the last image."""
    for number in range(20):
        image, level = item(number, f"prompt {number}"), 2 + number % 3
        say(image, "ann", level - 1)
        say(image, "bob", level)
    alone = item(20, "the last")
    say(alone, "ann", 3)
    say(alone, "bob", 4)
    by_ann = item(21, "of ann alone")
    say(by_ann, "ann", 3)
    plain, fair = ({s.prompt: s.mos[Q] for s in exported(store, out, method=m)} for m in ("mean", "p910"))
    assert plain["of ann alone"] == 3.0
    assert fair["of ann alone"] == pytest.approx(3.5, abs=0.05)


def test_scores_on_other_scales_are_brought_to_one(store: Store, item: Item, say: Say, out: Path) -> None:
    cat = item()
    say(cat, "ann", 50, scale=MosScale(0, 100))
    say(cat, "bob", 4)
    (sample,) = exported(store, out, method="mean")
    assert sample.mos == {Q: 3.5}
    with (out / "annotations.csv").open() as file:
        assert {(r["score"], r["high"], r["common_score"]) for r in csv.DictReader(file)} == {
            ("50.0", "100.0", "3.0"),
            ("4.0", "5.0", "4.0"),
        }


def test_own_words_go_before_nearer_and_newer_ones(
    store: Store, item: Item, say: Say, assess: Callable[[int, str], int], out: Path
) -> None:
    cat = item()
    model = assess(cat, "The model's text.")
    say(cat, "ann", 1, "far but in own words", assessment_id=model)
    say(cat, "bob", 3, "The model's text.", agrees=True, assessment_id=model)
    say(cat, "cid", 4, "The  model's text. ", assessment_id=model)
    say(cat, "dan", 5)
    (sample,) = exported(store, out)
    assert sample.descriptions == {Q: "far but in own words"}


def test_of_own_words_those_nearest_to_the_mean_then_the_newest(
    store: Store, item: Item, say: Say, out: Path
) -> None:
    cat = item()
    say(cat, "ann", 1, "far")
    say(cat, "bob", 3, "near, older")
    say(cat, "cid", 3, "near, newer")
    (sample,) = exported(store, out, method="mean")
    assert sample.descriptions == {Q: "near, newer"}


def test_a_confirmed_text_counts_and_one_left_standing_does_not(
    store: Store, item: Item, say: Say, assess: Callable[[int, str], int], out: Path
) -> None:
    confirmed, standing = item(1, "one"), item(2, "two")
    say(confirmed, "ann", 3, agrees=True, assessment_id=assess(confirmed, "Right."))
    say(standing, "ann", 1, "Wrong.", assessment_id=assess(standing, "Wrong."))
    descriptions = {sample.prompt: sample.descriptions for sample in exported(store, out)}
    assert descriptions == {"one": {Q: "Right."}, "two": {}}


def test_only_what_is_in_force_counts(store: Store, item: Item, say: Say, out: Path) -> None:
    cat = item()
    say(cat, "ann", 1, "first")
    undone = say(cat, "ann", 5, "second", revision=2)
    store.database.transact(lambda session: withdraw_submission(session, undone, "ann"))
    (sample,) = exported(store, out)
    assert (sample.mos, sample.descriptions) == ({Q: 1.0}, {Q: "first"})


# --- filters -----------------------------------------------------------------------------------


def test_filters(store: Store, item: Item, say: Say, out: Path) -> None:
    one, two, three = item(1, "one", generator="sd"), item(2, "two"), item(3, "three", "dogs")
    for each in (one, two, three):
        say(each, "ann", 3)
    say(one, "ann", 3, aspect=A)
    say(two, "bob", 3)
    store.database.transact(lambda session: session.add(GoldAnswer(item_id=three, aspect=Q, score=3)))

    def prompts(**options: object) -> set[str]:
        return {sample.prompt for sample in exported(store, out, **options)}

    assert prompts() == {"one", "two"}
    assert prompts(gold=True) == {"one", "two", "three"}
    assert prompts(gold=True, sources=["dogs"]) == {"three"}
    assert prompts(generators=["sd"]) == {"one"}
    assert prompts(aspects=[A]) == {"one"}
    assert prompts(min_raters=2) == {"two"}
    (sample,) = exported(store, out, generators=["sd"], aspects=[Q])
    assert sample.mos == {Q: 3.0}
    with pytest.raises(InputError, match="3 annotators"):
        export(store, out, min_raters=3)


def test_nothing_to_export(store: Store, item: Item, out: Path) -> None:
    item()
    with pytest.raises(InputError, match="no annotations yet"):
        export(store, out)
    assert not out.exists()


# --- the folder --------------------------------------------------------------------------------


def test_manifest_and_version(store: Store, item: Item, say: Say, out: Path) -> None:
    say(item(), "ann", 3, "Some words.")
    report = export(store, out, name="pilot", min_raters=1, aspects=[Q, A])
    manifest = json.loads((out / "manifest.json").read_text())
    digest = sha256((out / "samples.jsonl").read_bytes()).hexdigest()
    assert manifest["samples_sha256"] == report.samples_sha256 == digest
    assert manifest["version"] == report.version
    assert report.version.startswith("pilot-")
    assert report.version.endswith(digest[:8])
    assert manifest["counts"] | {"train": 0, "test": 0} == {
        "samples": 1,
        "train": 0,
        "test": 0,
        "images": 1,
        "mos": {"quality": 1},
        "descriptions": {"quality": 1},
        "opinions": 1,
        "annotators": 1,
    }
    assert manifest["filters"]["aspects"] == ["quality", "authenticity"]
    assert manifest["scale"] == [1, 5]
    assert manifest["mos_method"].startswith("p910")


def test_the_same_annotations_have_the_same_hash_and_others_another(
    store: Store, item: Item, say: Say, out: Path
) -> None:
    cat, dog = item(1, "one"), item(2, "two")
    for annotator, score in (("ann", 1.1), ("bob", 2.3), ("cid", 4.7)):
        say(cat, annotator, score)
        say(dog, annotator, 5 - score / 2)
    hashes = [export(store, out.with_name(name)).samples_sha256 for name in ("a", "b", "a")]
    assert len(set(hashes)) == 1
    say(cat, "dan", 5)
    assert export(store, out).samples_sha256 != hashes[0]


def test_conversations_are_those_of_the_authors(store: Store, item: Item, say: Say, out: Path) -> None:
    cat = item()
    say(cat, "ann", 4.5, "A sharp cat.")
    say(cat, "ann", 2, aspect=A)
    export(store, out)
    (sample,) = import_conversations(out / "conversations-quality.json", Q, scale=SCALE)
    assert (sample.prompt, sample.descriptions) == ("a cat", {Q: "A sharp cat."})
    assert SCALE.rating(sample.mos[Q]) == "excellent"
    assert not (out / "conversations-authenticity.json").exists()  # nobody described it


def test_a_spreadsheet_finds_no_formula(store: Store, item: Item, say: Say, out: Path) -> None:
    cat = item(1, "=HYPERLINK('http://evil')", generator="@sum")
    say(cat, "+ann", 3, "-1+1", tags=("=tag",), comment="fine = so")
    export(store, out)
    with (out / "annotations.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert not [cell for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    assert (row["prompt"], row["comment"]) == ("'=HYPERLINK('http://evil')", "fine = so")
    assert (out / row["image"]).is_file()


def test_an_earlier_export_is_replaced_and_nothing_else(
    store: Store, item: Item, say: Say, out: Path
) -> None:
    say(item(), "ann", 3)
    out.mkdir(parents=True)
    export(store, out)  # an empty folder may be filled
    say(item(2, "two"), "ann", 3)
    assert len(exported(store, out)) == 2
    (out / "my notes.txt").write_text("dear")
    with pytest.raises(InputError, match=r"other things than an export \(my notes.txt\)"):
        export(store, out)
    with pytest.raises(InputError, match="is no folder"):
        export(store, out / "my notes.txt")
    assert (out / "my notes.txt").read_text() == "dear"


def test_a_failed_export_leaves_the_earlier_one(
    store: Store, item: Item, say: Say, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cat = item()
    say(cat, "ann", 3)
    export(store, out)
    before = (out / "samples.jsonl").read_bytes()
    say(cat, "bob", 5)

    def disk_is_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "_write_opinions", disk_is_full)
        with pytest.raises(InputError, match="No space left"):
            export(store, out)
    assert (out / "samples.jsonl").read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["first"]


def test_a_missing_image_file_is_named(store: Store, item: Item, say: Say, out: Path) -> None:
    say(item(), "ann", 3)
    shutil.rmtree(store.images.folder)
    with pytest.raises(InputError, match="missing; put it back from a backup"):
        export(store, out)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "x" * 61, ".hidden"])
def test_names_that_no_folder_should_have(store: Store, item: Item, say: Say, out: Path, name: str) -> None:
    say(item(), "ann", 3)
    with pytest.raises(InputError, match="cannot be an export's name"):
        export(store, out, name=name)


# --- the way round -----------------------------------------------------------------------------


def test_what_was_imported_and_corrected_can_be_trained_on(
    store: Store, say: Say, out: Path, tmp_path: Path, png: Callable[[int], bytes]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows = ["image,prompt,annotator,quality,correspondence,authenticity"]
    for number in range(30):
        (folder / f"{number}.png").write_bytes(png(number))
        rows += [f"{number}.png,prompt {number},{name},{1 + number % 5},3,2" for name in ("ann", "bob")]
    (folder / "t.csv").write_text("\n".join(rows))
    import_into(store, folder / "t.csv", overlap=2)
    say(1, "cid", 5, "A corrected description.")
    export(store, out)
    data = datasets.load(datasets.DataConfig("samples", out, scale=(1, 5)))
    assert len(data.samples) == 30
    assert {sample.split for sample in data.samples} == {"train", "validation", "test"}
    described = [sample for sample in data.samples if sample.descriptions]
    assert [sample.descriptions for sample in described] == [{Q: "A corrected description."}]
    assert described[0].raters == {Q: 3, C: 2, A: 2}
    assert all(sample.mos.keys() == set(Aspect) for sample in data.samples)


def test_both_databases_export_the_same(
    database: Database, out: Path, tmp_path: Path, png: Callable[[int], bytes]
) -> None:
    (tmp_path / "cat.png").write_bytes(png(1))
    rows = ["image,prompt,annotator,quality", "cat.png,a cat,ann,4", "cat.png,a cat,bob,2"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    store = Store(database, ImageFiles(tmp_path / "images"))
    import_into(store, tmp_path / "t.csv", overlap=1)
    (sample,) = exported(store, out)
    assert (sample.prompt, sample.mos, sample.raters) == ("a cat", {Q: 3.0}, {Q: 2})
    assert sample.id == f"{sha256(png(1)).hexdigest()[:16]}-{sha256(b'a cat').hexdigest()[:8]}"
