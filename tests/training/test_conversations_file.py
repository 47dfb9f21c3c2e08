"""The authors' conversation files: import, export, and what comes back after both."""

import json
from collections import Counter
from pathlib import Path

import pytest
from drawings import draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3agiqa.aspects import RATING_WORDS, Aspect, MosScale
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample
from training.data import DataConfig, load
from training.data.checks import ImageFinder, checked
from training.data.conversations import (
    IMAGE_FOLDERS,
    cited_prompt,
    conversation_entries,
    export_conversations,
)
from training.data.nano_teacher import load_published_conversations
from training.data.splits import SplitConfig

Q, C, A = Aspect.QUALITY, Aspect.CORRESPONDENCE, Aspect.AUTHENTICITY
SCALE = MosScale(0.0, 5.0)
OLDER = (
    "<image>\nTake a close look at this AI-generated image and tell me everything you can about what "
    "you see. It's original prompt is: 'it's a 'boat', HDR'. Could you please help to analyze the image's "
    "quality?"
)
OLDER_ABOUT_A_BICYCLE = OLDER.replace("it's a 'boat', HDR", "a bicycle on top of a boat")
CORRESPONDENCE = (
    "<image>\nPlease closely examine this AI-generated image and provide a detailed analysis of how well it "
    "aligns with the original prompt: 'a bicycle on top of a boat'."
)


def read(
    path: Path,
    aspect: Aspect,
    images: Path | None = None,
    scale: MosScale = SCALE,
    mos: Path | None = None,
) -> list[Sample]:
    """One file about an aspect, as a data set of this format is read."""
    finder = ImageFinder(images or path.parent, IMAGE_FOLDERS)
    return checked(conversation_entries(path, [aspect], finder, scale, mos), finder, scale, path)


def item(number: int, question: str = OLDER, rating: str = "fair", **others) -> dict:
    """An entry as the authors write it, with the path of another machine."""
    contents = (question, f"Description {number}.", "Choose one word.", rating)
    turns = [
        {"role": role, "content": content}
        for role, content in zip(("user", "assistant") * 2, contents, strict=True)
    ]
    return {"id": str(number), "image": f"/home/them/images/{number}.jpg", "conversations": turns, **others}


def put(path: Path, *items: dict, lines: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(each) + "\n" for each in items) if lines else json.dumps(items, indent=4)
    path.write_text(text)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """images/0.jpg to 5.jpg."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        draw("bar", "green", 32, number).save(tmp_path / "images" / f"{number}.jpg")
    return tmp_path / "images"


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("name", ["x_test_quality.jsonl", "x_test_quality.json"])
def test_lists_and_lines_are_read_whatever_the_file_is_called(
    tmp_path: Path, images: Path, name: str, lines: bool
) -> None:
    path = put(tmp_path / name, item(0), item(1, rating="Excellent."), lines=lines)
    first, second = read(path, Q, images)
    assert first == Sample(
        "0", images / "0.jpg", "it's a 'boat', HDR", {Q: 2.5}, {Q: "Description 0."}, split="test"
    )
    assert second.mos == {Q: 4.5}


@pytest.mark.parametrize("below", ["images", ""])
def test_images_are_found_by_the_end_of_their_path(tmp_path: Path, images: Path, below: str) -> None:
    path = put(tmp_path / "elsewhere" / "train_quality.json", item(0))
    (sample,) = read(path, Q, tmp_path / below)
    assert sample.image == images / "0.jpg"
    with pytest.raises(InputError, match=r"1 of 1 images are missing; the first is 0\.jpg .*entry 1"):
        read(path, Q)


@pytest.mark.parametrize("rating", RATING_WORDS)
def test_a_word_becomes_the_middle_of_its_fifth(tmp_path: Path, images: Path, rating: str) -> None:
    scale = MosScale(0.0, 100.0)
    path = put(tmp_path / "q.json", item(0, rating=rating))
    (sample,) = read(path, Q, images, scale)
    assert sample.mos[Q] == pytest.approx(10 + 20 * RATING_WORDS.index(rating))
    assert scale.rating(sample.mos[Q]) == rating


def test_a_table_gives_the_true_scores(tmp_path: Path, images: Path) -> None:
    path = put(tmp_path / "c.json", item(0, CORRESPONDENCE), item(1, CORRESPONDENCE))
    table = tmp_path / "data.csv"
    table.write_text("name,mos_quality,mos_align\n0.jpg,1,3.21\n1.jpg,1,0.5\n")
    found = read(path, C, images, mos=table)
    assert [sample.mos for sample in found] == [{C: 3.21}, {C: 0.5}]
    table.write_text("name,mos_quality,mos_align\n0.jpg,1,3.21\n")
    with pytest.raises(InputError, match=r"entry 2: the table of scores has no correspondence for 1\.jpg"):
        read(path, C, images, mos=table)
    table.write_text("name,mos_align\n0.jpg,1\n0.jpg,2\n")
    with pytest.raises(InputError, match=r"data\.csv, line 3: 0\.jpg was given before"):
        read(path, C, images, mos=table)


@pytest.mark.parametrize("aspect", Aspect)
@given(prompt=st.text(st.characters(codec="utf-8")).map(lambda text: " ".join(text.split())))
def test_prompts_are_found_in_what_the_project_asks(aspect: Aspect, prompt: str) -> None:
    if not prompt and aspect.needs_prompt:
        return
    question = Conversation.open(aspect, prompt).turns[0].content
    assert cited_prompt(question, aspect) == (prompt or None)
    assert cited_prompt(f"<image>\n{question}\n", aspect) == (prompt or None)


descriptions = st.text(st.characters(codec="utf-8"), min_size=1)
prompts = st.text(st.characters(codec="utf-8")).map(lambda text: " ".join(text.split())).filter(bool)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    rows=st.lists(st.tuples(prompts, descriptions, st.floats(0, 5)), min_size=1, max_size=3),
    aspect=st.sampled_from(Aspect),
)
def test_round_trip(tmp_path: Path, images: Path, rows: list[tuple], aspect: Aspect) -> None:
    samples = [
        Sample(f"s{i}", images / f"{i}.jpg", prompt, {aspect: mos}, {aspect: text})
        for i, (prompt, text, mos) in enumerate(rows)
    ]
    path = tmp_path / "out.json"
    export_conversations(samples, aspect, SCALE, path)
    again = read(path, aspect)
    for before, after in zip(samples, again, strict=True):
        assert (after.id, after.image, after.prompt) == (before.id, before.image, before.prompt)
        assert after.descriptions == before.descriptions
        assert SCALE.rating(after.mos[aspect]) == SCALE.rating(before.mos[aspect])
        assert abs(after.mos[aspect] - before.mos[aspect]) <= 0.5
    export_conversations(again, aspect, SCALE, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()


def test_export_has_the_form_of_the_authors_files(tmp_path: Path, images: Path) -> None:
    samples = [
        Sample("7", images / "0.jpg", "a boat", {Q: 4.9}, {Q: "Sharp."}, split="train"),
        Sample("8", images / "1.jpg", None, {Q: 0.1}, {Q: "Blurred."}, split="train"),
    ]
    path = tmp_path / "m3-agiqa-conversations" / "mine_train_quality.json"
    export_conversations(samples, Q, SCALE, path)
    first, second = json.loads(path.read_text())
    assert list(first) == ["id", "image", "conversations"]
    assert (first["id"], first["image"]) == ("7", str(images / "0.jpg"))
    assert [turn["role"] for turn in first["conversations"]] == ["user", "assistant"] * 2
    texts = [turn["content"] for turn in first["conversations"]]
    assert texts[0].startswith("<image>\nPlease closely examine") and "'a boat'" in texts[0]
    assert texts[1] == "Sharp." and "Choose one word" in texts[2] and texts[3] == "excellent"
    assert second["conversations"][3]["content"] == "bad"
    assert [aspect for aspect, _ in load_published_conversations(tmp_path)] == [Q, Q]


def test_what_cannot_be_exported_is_named(tmp_path: Path, images: Path) -> None:
    samples = [
        Sample("a", images / "0.jpg", "p", {Q: 1}, {Q: "t"}),
        Sample("b", images / "1.jpg", "p", {Q: 1}),
    ]
    with pytest.raises(InputError, match=r"1 of 2 samples have no description or no MOS for quality.* is b"):
        export_conversations(samples, Q, SCALE, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("mos", [6, -0.5, float("nan"), None])
def test_scores_off_the_scale_are_not_exported(tmp_path: Path, images: Path, mos: float | None) -> None:
    samples = [
        Sample(each, images / "0.jpg", "p", {Q: 1.0 if each == "a" else mos}, {Q: "t"}) for each in "ab"
    ]
    with pytest.raises(
        InputError, match=r"Sample b: quality is (6|-0\.5|nan), outside|Sample b: quality is not"
    ):
        export_conversations(samples, Q, SCALE, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def turns_without(index: int) -> dict:
    wrong = item(1)
    del wrong["conversations"][index]
    return wrong


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (item(1, rating="splendid"), r"entry 2: 'splendid' is none of bad, poor, fair, good, excellent"),
        (item(1, rating=""), "entry 2 needs id, image and four turns"),
        (turns_without(3), "entry 2 needs id, image and four turns"),
        (turns_without(0), "entry 2 needs id, image and four turns"),
        ({"id": "1", "conversations": item(1)["conversations"]}, "entry 2 lacks id, image or conversations"),
        ({"id": "1", "image": "1.jpg"}, "entry 2 lacks id, image or conversations"),
        ("text", "entry 2 lacks id, image or conversations"),
        (item(0), "entry 2: the id 0 was given before, in .*entry 1"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, images: Path, wrong: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(put(tmp_path / "quality.json", item(0), wrong), Q, images)


def test_wrong_files_are_named(tmp_path: Path, images: Path) -> None:
    (tmp_path / "broken.json").write_text('[{"id": ')
    with pytest.raises(InputError, match=r"broken\.json is not JSON"):
        read(tmp_path / "broken.json", Q, images)
    (tmp_path / "broken.jsonl").write_text(json.dumps(item(0)) + "\n{\n")
    with pytest.raises(InputError, match=r"broken\.jsonl, line 2 is not JSON"):
        read(tmp_path / "broken.jsonl", Q, images)
    with pytest.raises(InputError, match=r"no prompt was found .*Is the file about correspondence"):
        read(put(tmp_path / "c.json", item(0)), C, images)


# --- loaded as a data set ------------------------------------------------------------------------


def folder(tmp_path: Path, *, other_split: bool = False) -> Path:
    """Files about two aspects, which number the images each in its own way; and a model's answers."""
    there = tmp_path / "published"
    put(there / "gemini_train_quality.json", item(0), item(1), item(2), item(3))
    put(there / "gemini_val_quality.json", item(4), item(5))
    train = [{**item(i, CORRESPONDENCE, "good"), "id": str(9 - i)} for i in range(3 if other_split else 4)]
    val = [{**item(i, CORRESPONDENCE, "good"), "id": str(9 - i)} for i in range(3 if other_split else 4, 6)]
    put(there / "gemini_train_alignment.jsonl", *train, lines=True)
    put(there / "gemini_val_alignment.jsonl", *val)
    put(there / "gemini_val_quality_res.json", *(item(i, response_0="x", response_1="fair") for i in (4, 5)))
    put(there / "notes.json", {"of": "ours"})
    return there


def test_a_folder_of_files_goes_together_by_image(tmp_path: Path, images: Path) -> None:
    path = folder(tmp_path)
    for each in (path / "gemini_train_quality.json", path / "gemini_val_quality.json"):
        text = each.read_text().replace(json.dumps(OLDER), json.dumps(OLDER_ABOUT_A_BICYCLE))
        each.write_text(text)
    found = load(
        DataConfig("conversations", path, images=images, split=SplitConfig(ratios=(3, 1, 0), holdout=0))
    )
    assert [s.id for s in sorted(found.samples, key=lambda s: s.id)] == [f"{i}.jpg" for i in range(6)]
    assert all(s.mos == {Q: 2.5, C: 3.5} and s.descriptions.keys() == {Q, C} for s in found.samples)
    assert Counter(s.split for s in found.samples) == {"train": 4, "test": 2}


def test_aspects_that_disagree_are_loaded_one_at_a_time(tmp_path: Path, images: Path) -> None:
    path = folder(tmp_path, other_split=True)
    with pytest.raises(InputError, match=r"of [0-9]\.jpg is .*Load one aspect at a time"):
        load(DataConfig("conversations", path, images=images))
    found = load(DataConfig("conversations", path, images=images, aspects=(C,), split=SplitConfig(holdout=0)))
    assert len(found.samples) == 6 and {a for s in found.samples for a in s.mos} == {C}


def test_one_file_needs_an_aspect(tmp_path: Path, images: Path) -> None:
    split = SplitConfig("image", holdout=0)
    path = put(tmp_path / "unnamed.json", *(item(i) for i in range(6)))
    with pytest.raises(InputError, match=r"unnamed\.json does not tell its aspect"):
        load(DataConfig("conversations", path, images=images, split=split))
    found = load(DataConfig("conversations", path, images=images, aspects=(Q,), split=split))
    assert [s.id for s in found.samples] == [str(i) for i in range(6)]
