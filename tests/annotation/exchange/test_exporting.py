import csv
import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from seeded_cases import add, pick, say

from annotation.exchange import exporting
from annotation.exchange.exporting import export
from annotation.exchange.importing import import_into
from annotation.store import Database, ImageFiles, Store
from annotation.store.corrections import withdraw_submission
from annotation.store.items import record_assessment
from annotation.store.models import GoldAnswer
from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.assessment import AspectResult, Assessment
from m3agiqa.errors import InputError
from m3agiqa.samples import EXPORT_FORMAT, Sample, read_samples
from training import data as datasets
from training.data.human_feedback import merge, read_annotations
from training.data.splits import SplitConfig

SCALE = MosScale(1, 5)
Q, C, A = Aspect
CARD = SimpleNamespace(title="scripted 1.0", digest="abc", learned_from="a script")


def assess(store: Store, item: int, text: str) -> int:
    """Records what a model says of an item's quality."""
    result = AspectResult(Q, text, SCALE.rating(3), 3.0, 3.0, SCALE)
    assessment = Assessment("x.png", "a cat", {Q: result}, CARD.title, CARD.learned_from, 0.5)
    return store.database.transact(lambda session: record_assessment(session, item, assessment, CARD))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "exports" / "first"


def exported(store: Store, out: Path, **options: object) -> list[Sample]:
    export(store, out, **options)
    return read_samples(out / "samples.jsonl")


def test_picks_of_the_best_image_are_pairs_beside_the_samples(store: Store, out: Path) -> None:
    items = [add(store, number, "a cat") for number in range(3)]
    say(store, items[0], {Q: 3}, "ann")
    scores = dict(zip(items, (3.0, 2.0, 4.5), strict=True))
    for best in items[:2]:  # the second takes the first one's place
        pick(store, best, scores, "=ann")
    report = export(store, out)
    assert report.counts["picks"] == 1 and "and 1 pick of the best image" in report.text
    with (out / "preferences.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [(row["preferred_overall"], row["other_overall"]) for row in rows] == [
        ("2.0", "3.0"),
        ("2.0", "4.5"),
    ]
    assert {row["annotator"] for row in rows} == {"'=ann"}
    assert {row["split"] for row in rows} == {read_samples(out / "samples.jsonl")[0].split}
    assert len({row["other"] for row in rows}) == 2
    assert all((out / row[side]).is_file() for row in rows for side in ("preferred", "other"))
    read = read_annotations(out).preferences
    assert [(pair.preferred.image, pair.other.image) for pair in read] == [
        (out / row["preferred"], out / row["other"]) for row in rows
    ]
    assert {pair.other.prompt for pair in read} == {"a cat"} and {pair.other.split for pair in read} == {
        rows[0]["split"]
    }
    export(store, out)  # in its place


def test_picks_without_scores_are_exported_and_new_ones_are_a_new_version(store: Store, out: Path) -> None:
    scores = {add(store, number, "a cat"): 3.0 for number in range(3)}
    first, second, _ = scores
    pick(store, first, scores)
    versions = []
    for _ in range(2):
        report = export(store, out)
        assert ": 0 images" in report.text and "1 pick of the best image; MOS: none" in report.text
        versions.append(report.version)
        card = (out / "README.md").read_text(encoding="utf-8")
        assert "1 pick of the best image" in card and "data_files: preferences.csv" in card
        assert "data_files: samples.jsonl" not in card, "which is empty"
        read = read_annotations(out)
        assert (read.version, read.samples, len(read.preferences)) == (report.version, [], 2)
        samples, annotated = merge([], SCALE, read)
        assert (len(samples), len(annotated.preferred)) == (3, 2)
    assert len(set(versions)) == 1, "the same picks"
    pick(store, second, scores)
    assert export(store, out).version != versions[0]
    say(store, first, {Q: 3}, "ann")
    scored = export(store, out)
    pick(store, first, scores)
    assert export(store, out).samples_sha256 == scored.samples_sha256
    assert export(store, out).version != scored.version
    with pytest.raises(InputError, match="None of the images"):
        export(store, out, generators=["Typo"])
    assert read_annotations(out).samples, "the export before stays"


# --- what a sample says ------------------------------------------------------------------------


def test_a_sample_has_mean_scores_and_their_raters(store: Store, out: Path) -> None:
    cat = add(store, 1, generator="sd")
    for annotator, score in (("ann", 2), ("bob", 3), ("cat", 4.5)):
        say(store, cat, {Q: score}, annotator)
    say(store, cat, {A: 5}, "ann")
    (sample,) = exported(store, out, method="mean")
    assert sample.mos == {Q: pytest.approx(3.1667, abs=1e-4), A: 5.0}
    assert sample.raters == {Q: 3, A: 1}
    assert (sample.prompt, sample.generator, sample.source) == ("a cat", "sd", "an import")
    assert Image.open(sample.image).size == (64, 48)
    assert sample.image.parent == out / "images"


def test_p910_takes_a_habit_out_that_the_mean_leaves_in(store: Store, out: Path) -> None:
    """ann, who scores a point below the others, is alone with the last image."""
    for number in range(20):
        image, level = add(store, number, f"prompt {number}"), 2 + number % 3
        say(store, image, {Q: level - 1}, "ann")
        say(store, image, {Q: level}, "bob")
    alone = add(store, 20, "the last")
    say(store, alone, {Q: 3}, "ann")
    say(store, alone, {Q: 4}, "bob")
    by_ann = add(store, 21, "of ann alone")
    say(store, by_ann, {Q: 3}, "ann")
    plain, fair = ({s.prompt: s.mos[Q] for s in exported(store, out, method=m)} for m in ("mean", "p910"))
    assert plain["of ann alone"] == 3.0
    assert fair["of ann alone"] == pytest.approx(3.5, abs=0.05)


def test_scores_on_other_scales_are_brought_to_one(store: Store, out: Path) -> None:
    cat = add(store, 1)
    say(store, cat, {Q: 50}, "ann", scale=MosScale(0, 100))
    say(store, cat, {Q: 4}, "bob")
    (sample,) = exported(store, out, method="mean")
    assert sample.mos == {Q: 3.5}
    with (out / "annotations.csv").open() as file:
        assert {(r["score"], r["high"], r["common_score"]) for r in csv.DictReader(file)} == {
            ("50.0", "100.0", "3.0"),
            ("4.0", "5.0", "4.0"),
        }


def test_own_words_go_before_nearer_and_newer_ones(store: Store, out: Path) -> None:
    cat = add(store, 1)
    model = assess(store, cat, "The model's text.")
    say(store, cat, {Q: 1}, "ann", description="far but in own words", assessment_id=model)
    say(store, cat, {Q: 3}, "bob", description="The model's text.", agrees=True, assessment_id=model)
    say(store, cat, {Q: 4}, "cid", description="The  model's text. ", assessment_id=model)
    say(store, cat, {Q: 5}, "dan")
    (sample,) = exported(store, out)
    assert sample.descriptions == {Q: "far but in own words"}


def test_of_own_words_those_nearest_to_the_mean_then_the_newest(store: Store, out: Path) -> None:
    cat = add(store, 1)
    say(store, cat, {Q: 1}, "ann", description="far")
    say(store, cat, {Q: 3}, "bob", description="near, older")
    say(store, cat, {Q: 3}, "cid", description="near, newer")
    (sample,) = exported(store, out, method="mean")
    assert sample.descriptions == {Q: "near, newer"}


def test_a_confirmed_text_counts_and_one_left_standing_does_not(store: Store, out: Path) -> None:
    confirmed, standing = add(store, 1, "one"), add(store, 2, "two")
    say(store, confirmed, {Q: 3}, "ann", agrees=True, assessment_id=assess(store, confirmed, "Right."))
    say(store, standing, {Q: 1}, "ann", description="Wrong.", assessment_id=assess(store, standing, "Wrong."))
    descriptions = {sample.prompt: sample.descriptions for sample in exported(store, out)}
    assert descriptions == {"one": {Q: "Right."}, "two": {}}


def test_texts_that_describe_no_image_are_left_out_unless_asked_for(store: Store, out: Path) -> None:
    for number in range(6):
        image = add(store, number, f"prompt {number}")
        say(store, image, {Q: 3}, "ann", description="It is good." if number % 2 else " it  IS good.")
        say(store, image, {A: 3}, "ann", description="Fine." if number == 0 else f"Text number {number}.")
    report = export(store, out)
    assert report.counts["texts_left_out"] == 7
    assert "7 descriptions left out: one word, the same text under many images, or" in report.text
    plain, asked = exported(store, out), exported(store, out, all_texts=True)
    assert sorted(len(sample.descriptions) for sample in plain) == [0, 1, 1, 1, 1, 1]
    assert all(sample.mos == {Q: 3.0, A: 3.0} for sample in plain)
    assert all(len(sample.descriptions) == 2 for sample in asked)


def test_the_original_file_is_named(store: Store, out: Path) -> None:
    say(store, add(store), {Q: 3}, "ann")
    export(store, out)
    with (out / "annotations.csv").open() as file:
        assert [row["original_file"] for row in csv.DictReader(file)] == ["picture.png"]


def test_only_what_is_in_force_counts(store: Store, out: Path) -> None:
    cat = add(store, 1)
    say(store, cat, {Q: 1}, "ann", description="first words")
    undone = say(store, cat, {Q: 5}, "ann", description="second words").submission_id
    store.database.transact(lambda session: withdraw_submission(session, undone, "ann"))
    (sample,) = exported(store, out)
    assert (sample.mos, sample.descriptions) == ({Q: 1.0}, {Q: "first words"})


# --- filters -----------------------------------------------------------------------------------


def test_filters(store: Store, out: Path) -> None:
    one, two, three = (
        add(store, 1, "one", generator="sd"),
        add(store, 2, "two"),
        add(store, 3, "three", source="dogs"),
    )
    for each in (one, two, three):
        say(store, each, {Q: 3}, "ann")
    say(store, one, {A: 3}, "ann")
    say(store, two, {Q: 3}, "bob")
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


def test_nothing_to_export(store: Store, out: Path) -> None:
    add(store, 1)
    with pytest.raises(InputError, match="no annotations yet"):
        export(store, out)
    assert not out.exists()


# --- the folder --------------------------------------------------------------------------------


def test_manifest_and_version(store: Store, out: Path) -> None:
    say(store, add(store), {Q: 3}, "ann", description="Some words.")
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
        "texts_left_out": 0,
        "picks": 0,
    }
    assert manifest["format"] == EXPORT_FORMAT
    assert manifest["filters"]["aspects"] == ["quality", "authenticity"]
    assert manifest["scale"] == [1, 5]
    assert manifest["mos_method"].startswith("p910")


def test_the_same_annotations_have_the_same_hash_and_others_another(store: Store, out: Path) -> None:
    cat, dog = add(store, 1, "one"), add(store, 2, "two")
    for annotator, score in (("ann", 1.1), ("bob", 2.3), ("cid", 4.7)):
        say(store, cat, {Q: score}, annotator)
        say(store, dog, {Q: 5 - score / 2}, annotator)
    hashes = [export(store, out.with_name(name)).samples_sha256 for name in ("a", "b", "a")]
    assert len(set(hashes)) == 1
    say(store, cat, {Q: 5}, "dan")
    assert export(store, out).samples_sha256 != hashes[0]


def test_conversations_are_those_of_the_authors(store: Store, out: Path) -> None:
    cat = add(store, 1)
    say(store, cat, {Q: 4.5}, "ann", description="A sharp cat.")
    say(store, cat, {A: 2}, "ann")
    export(store, out)
    unsplit, file = SplitConfig(ratios=(1, 0, 0), holdout=0), out / "conversations-quality.json"
    (sample,) = datasets.load(datasets.DataConfig("conversations", file, scale=(1, 5), split=unsplit)).samples
    assert (sample.prompt, sample.descriptions) == ("a cat", {Q: "A sharp cat."})
    assert SCALE.rating(sample.mos[Q]) == "excellent"
    assert not (out / "conversations-authenticity.json").exists()  # nobody described it


def test_a_spreadsheet_finds_no_formula(store: Store, out: Path) -> None:
    cat = add(store, 1, "=HYPERLINK('http://evil')", generator="@sum")
    say(store, cat, {Q: 3}, "+ann", description="-1+1", tags=("=tag",), comment="fine = so")
    export(store, out)
    assert (out / "annotations.csv").read_bytes().startswith(b"\xef\xbb\xbfsample,")  # as Excel wishes
    with (out / "annotations.csv").open(encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file)
    assert not [cell for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    assert (row["prompt"], row["comment"]) == ("'=HYPERLINK('http://evil')", "fine = so")
    assert (out / row["image"]).is_file()


def test_an_earlier_export_is_replaced_and_nothing_else(store: Store, out: Path) -> None:
    say(store, add(store), {Q: 3}, "ann")
    out.mkdir(parents=True)
    export(store, out)  # an empty folder may be filled
    say(store, add(store, 2, "two"), {Q: 3}, "ann")
    assert len(exported(store, out)) == 2
    (out / "my notes.txt").write_text("dear")
    with pytest.raises(InputError, match=r"other things than an export \(my notes.txt\)"):
        export(store, out)
    with pytest.raises(InputError, match="is no folder"):
        export(store, out / "my notes.txt")
    assert (out / "my notes.txt").read_text() == "dear"


def test_a_failed_export_leaves_the_earlier_one(
    store: Store, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cat = add(store, 1)
    say(store, cat, {Q: 3}, "ann")
    export(store, out)
    before = (out / "samples.jsonl").read_bytes()
    say(store, cat, {Q: 5}, "bob")

    def disk_is_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "_write_opinions", disk_is_full)
        with pytest.raises(InputError, match="No space left"):
            export(store, out)
    assert (out / "samples.jsonl").read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["first"]


def test_a_missing_image_file_is_named(store: Store, out: Path) -> None:
    say(store, add(store), {Q: 3}, "ann")
    shutil.rmtree(store.images.folder)
    with pytest.raises(InputError, match="missing; put it back from a backup"):
        export(store, out)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "x" * 61, ".hidden"])
def test_names_that_no_folder_should_have(store: Store, out: Path, name: str) -> None:
    say(store, add(store), {Q: 3}, "ann")
    with pytest.raises(InputError, match="cannot be an export's name"):
        export(store, out, name=name)


# --- the way round -----------------------------------------------------------------------------


def test_what_was_imported_and_corrected_can_be_trained_on(
    store: Store, out: Path, tmp_path: Path, png: Callable[[int], bytes]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows = ["image,prompt,annotator,quality,correspondence,authenticity"]
    for number in range(30):
        (folder / f"{number}.png").write_bytes(png(number))
        rows += [f"{number}.png,prompt {number},{name},{1 + number % 5},3,2" for name in ("ann", "bob")]
    (folder / "t.csv").write_text("\n".join(rows))
    import_into(store, folder / "t.csv", overlap=2)
    say(store, 1, {Q: 5}, "cid", description="A corrected description.")
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
