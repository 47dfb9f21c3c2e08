"""Readers of data sets: every layout gives the same kind of samples, and every wrong row is named."""

import csv
import json
import sys
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawings import draw
from scipy.io import savemat

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample, write_samples
from training.data import DATA_FORMATS, DataConfig, Dataset, load
from training.data.splits import SplitConfig, write_split

Q, C, A = Aspect.QUALITY, Aspect.CORRESPONDENCE, Aspect.AUTHENTICITY
UNSPLIT = SplitConfig(ratios=(1, 0, 0), holdout=0)
"""Leaves the parts as the data has them, and all for training is fine."""


def put_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw("circle", "red", 32, number).save(path)


def put_csv(path: Path, *rows: tuple, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def read(format: str, path: Path, **others) -> Dataset:
    return load(DataConfig(format, path, **{"split": UNSPLIT, **others}))


def by_id(dataset: Dataset) -> dict[str, Sample]:
    return {sample.id: sample for sample in dataset.samples}


# --- AGIQA-3k ------------------------------------------------------------------------------------

AGIQA_NAMES = (
    "AttnGAN_normal_000.jpg",
    "sd1.5_highcorr_247.jpg",
    "xl2.2_normal_289.jpg",
    "DALLE2_normal_1.jpg",
)


def agiqa(folder: Path) -> Path:
    head = ["name", "prompt", "adj1", "adj2", "style", "mos_quality", "std_quality", "mos_align", "std_align"]
    rows = [
        (name, f'a "statue", number {i}', "", "", "", 0.5 + i, 0.2, i, 0.6)
        for i, name in enumerate(AGIQA_NAMES)
    ]
    put_csv(folder / "data.csv", head, *rows)
    return folder


@pytest.mark.parametrize("where", ["", "images", "image"])
def test_agiqa_3k_with_images_where_downloads_have_them(tmp_path: Path, where: str) -> None:
    put_images(agiqa(tmp_path) / where, *AGIQA_NAMES)
    found = read("agiqa_3k", tmp_path)
    assert found.scale == MosScale(0, 5)
    assert [s.generator for s in found.samples] == ["AttnGAN", "sd1.5", "xl2.2", "DALLE2"]
    assert found.samples[1] == Sample(
        "sd1.5_highcorr_247.jpg",
        tmp_path / where / "sd1.5_highcorr_247.jpg",
        'a "statue", number 1',
        {Q: 1.5, C: 1.0},
        generator="sd1.5",
    )
    assert read("agiqa_3k", tmp_path / "data.csv").samples == found.samples


def test_images_may_be_elsewhere(tmp_path: Path) -> None:
    put_images(tmp_path / "disk" / "images", *AGIQA_NAMES)
    agiqa(tmp_path / "set")
    for images in (tmp_path / "disk", tmp_path / "disk" / "images"):
        found = read("agiqa_3k", tmp_path / "set", images=images)
        assert found.samples[0].image == tmp_path / "disk" / "images" / AGIQA_NAMES[0]


def test_missing_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    put_images(agiqa(tmp_path) / "images", *AGIQA_NAMES[::2])
    with pytest.raises(InputError) as caught:
        read("agiqa_3k", tmp_path)
    message = str(caught.value)
    assert "2 of 4 images are missing; the first is sd1.5_highcorr_247.jpg" in message
    assert f"{tmp_path / 'data.csv'}, line 3" in message
    assert str(tmp_path / "images") in message


# --- AIGCIQA2023 ---------------------------------------------------------------------------------

PROMPTS = ("a corgi", "a girl, smiling")


def aigciqa2023(folder: Path, variable: str = "MOSz", count: int = 48) -> dict[Aspect, np.ndarray]:
    """The release with two prompts: six models, four images of each prompt."""
    put_images(folder / "Image" / "allimg", *(f"{i}.png" for i in range(48)))
    (folder / "DATA" / "MOS").mkdir(parents=True)
    rng = np.random.default_rng(0)
    scores = {aspect: rng.uniform(20, 80, (count, 1)) for aspect in (Q, A, C)}
    for number, values in enumerate(scores.values(), 1):
        savemat(folder / "DATA" / "MOS" / f"mosz{number}.mat", {variable: values})
    return scores


@pytest.mark.parametrize("form", ["csv", "txt", "headless csv", "xlsx"])
def test_aigciqa2023_release(tmp_path: Path, form: str) -> None:
    scores = aigciqa2023(tmp_path)
    if form == "csv":
        put_csv(tmp_path / "AIGCIQA2023_Prompts.csv", ("style", "prompt"), *(("basic", p) for p in PROMPTS))
    elif form == "txt":
        (tmp_path / "DATA" / "prompts.txt").write_text("".join(f"{p}\n" for p in PROMPTS))
    elif form == "headless csv":
        put_csv(tmp_path / "AIGCIQA2023_Prompts.csv", *(("scene", "simple", p, "x") for p in PROMPTS))
    else:
        book = pytest.importorskip("openpyxl").Workbook()
        for prompt in PROMPTS:
            book.active.append(["scene", "simple", prompt, None])
        book.save(tmp_path / "AIGCIQA2023_Prompts.xlsx")
    found = read("aigciqa2023", tmp_path)
    assert found.scale == MosScale(0, 100)
    assert len(found.samples) == 48
    for number in (0, 3, 4, 7, 8, 47):
        sample = found.samples[number]
        assert sample.image == tmp_path / "Image" / "allimg" / f"{number}.png"
        assert sample.prompt == PROMPTS[number % 8 // 4]
        assert sample.generator == f"model {number // 8 + 1}"
        assert sample.mos == {aspect: values[number, 0] for aspect, values in scores.items()}
    by_prompt = Counter((s.generator, s.prompt) for s in found.samples)
    assert len(by_prompt) == 12 and set(by_prompt.values()) == {4}


def test_aigciqa2023_prompts_from_conversations(tmp_path: Path) -> None:
    aigciqa2023(tmp_path)
    with pytest.raises(InputError, match=r"no prompts for 48 of 48 images .*0\.png.*AIGCIQA2023_Prompts"):
        read("aigciqa2023", tmp_path)
    question = (
        "<image>\nPlease closely examine this AI-generated image and provide a detailed analysis of how well "
    )
    rows = []
    for number in range(48):
        asked = f"{question}it aligns with the original prompt: '{PROMPTS[number % 8 // 4]}'."
        turns = [{"role": role, "content": "fair"} for role in ("user", "assistant") * 2]
        turns[0]["content"] = asked
        rows.append({"id": str(number), "image": f"/far/images/{number}.png", "conversations": turns})
    (tmp_path / "train_alignment.json").write_text(json.dumps(rows))
    assert read("aigciqa2023", tmp_path).samples[4].prompt == PROMPTS[1]
    (tmp_path / "train_alignment.json").write_text(json.dumps(rows[:-2]))
    with pytest.raises(InputError, match=r"no prompts for 2 of 48 images \(the first is 46\.png\)"):
        read("aigciqa2023", tmp_path)


def test_aigciqa2023_as_one_table(tmp_path: Path) -> None:
    put_images(tmp_path / "images", "0.png", "2399.png")
    header = ("name", "prompt", "mos_quality", "mos_authenticity", "mos_correspondence")
    put_csv(
        tmp_path / "data.csv", header, ("0.png", "a corgi", 50, 40, 30), ("2399.png", "a bay", 51, 41, 31)
    )
    found = read("aigciqa2023", tmp_path)
    assert found.samples[0].mos == {Q: 50, A: 40, C: 30}
    assert [s.generator for s in found.samples] == ["model 1", "model 6"]


def test_aigciqa2023_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither DATA/MOS/mosz1\.mat"):
        read("aigciqa2023", tmp_path)
    aigciqa2023(tmp_path / "a", variable="SD")
    with pytest.raises(InputError, match=r"mosz1\.mat has no numbers in a variable MOSz"):
        read("aigciqa2023", tmp_path / "a")
    aigciqa2023(tmp_path / "b")
    (tmp_path / "b" / "prompts.txt").write_text("only one\n")
    with pytest.raises(
        InputError, match=r"prompts\.txt has 1 prompts and there are 48 scores.* would make 24"
    ):
        read("aigciqa2023", tmp_path / "b")
    (tmp_path / "b" / "prompts.txt").write_text("\n".join(PROMPTS))
    savemat(tmp_path / "b" / "DATA" / "MOS" / "mosz3.mat", {"MOSz": np.full((47, 1), 50.0)})
    with pytest.raises(InputError, match=r"mosz3\.mat has 47 scores"):
        read("aigciqa2023", tmp_path / "b")
    savemat(tmp_path / "b" / "DATA" / "MOS" / "mosz3.mat", {"MOSz": np.full((48, 1), 101.0)})
    with pytest.raises(InputError, match=r"MOS, score 1: correspondence is 101, outside the scale"):
        read("aigciqa2023", tmp_path / "b")
    (tmp_path / "b" / "DATA" / "MOS" / "mosz2.mat").write_bytes(b"no matrix " * 30)
    with pytest.raises(InputError, match=r"mosz2\.mat cannot be read"):
        read("aigciqa2023", tmp_path / "b")


# --- AIGCIQA-20k ---------------------------------------------------------------------------------


def aigciqa_20k(folder: Path, with_scores: tuple[str, ...] = ("train", "val", "test")) -> None:
    whole = [("name", "mos")]
    for number, name in enumerate(("train", "val", "test")):
        images = [f"DALLE3_{number}0.png", f"LCM_SD1.5_{number}1.png"]
        put_images(folder / name, *images)
        rows = [(image, f"prompt of {image}", number + i) for i, image in enumerate(images)]
        whole += [(image, mos) for image, _, mos in rows]
        cut = 3 if name in with_scores else 2
        put_csv(folder / f"info_{name}.csv", ("name", "prompt", "mos")[:cut], *(row[:cut] for row in rows))
    if len(with_scores) < 3:
        put_csv(folder / "info_merge.csv", *whole)


@pytest.mark.parametrize("with_scores", [("train", "val", "test"), ("train",)])
def test_aigciqa_20k_keeps_its_official_parts(tmp_path: Path, with_scores: tuple[str, ...]) -> None:
    aigciqa_20k(tmp_path, with_scores)
    found = read("aigciqa_20k", tmp_path, split=SplitConfig(ratios=(7, 2, 1)))
    assert found.scale == MosScale(0, 5)
    assert [s.split for s in found.samples] == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert [s.mos for s in found.samples] == [{Q: 0}, {Q: 1}, {Q: 1}, {Q: 2}, {Q: 2}, {Q: 3}]
    assert [s.generator for s in found.samples[:2]] == ["DALLE3", "LCM_SD1.5"]
    assert found.samples[2].image == tmp_path / "val" / "DALLE3_10.png"


def test_aigciqa_20k_as_one_table(tmp_path: Path) -> None:
    put_images(tmp_path / "images", "MJ_1.png", "IF_2.png")
    rows = (("name", "prompt", "mos"), ("MJ_1.png", "a", 3), ("IF_2.png", "b", 4.5))
    for name in ("data.csv", "AIGCIQA-20k_all.csv"):
        table = put_csv(tmp_path / name, *rows)
        assert [s.mos[Q] for s in read("aigciqa_20k", tmp_path).samples] == [3, 4.5]
        table.unlink()
    with pytest.raises(InputError, match=r"neither info_train\.csv"):
        read("aigciqa_20k", tmp_path)


def test_aigciqa_20k_says_which_scores_are_missing(tmp_path: Path) -> None:
    aigciqa_20k(tmp_path, ("train",))
    put_csv(tmp_path / "info_merge.csv", ("name", "mos"), ("DALLE3_10.png", 1))
    with pytest.raises(InputError, match=r"info_val\.csv, line 3: LCM_SD1\.5_11\.png has no score"):
        read("aigciqa_20k", tmp_path)
    (tmp_path / "info_merge.csv").unlink()
    with pytest.raises(InputError, match=r"info_val\.csv has no column mos"):
        read("aigciqa_20k", tmp_path)


# --- tables --------------------------------------------------------------------------------------


LINES = "two lines,\nof prompt"


def test_a_table_with_every_column(tmp_path: Path) -> None:
    put_images(tmp_path / "pictures", "ü 1.png", "2.png")
    header = ("id", "Image", "prompt", "quality", "alignment", "realism", "generator", "split", "source")
    put_csv(
        tmp_path / "mine.csv",
        (*header, "quality_description", "notes"),
        ("x", "pictures/ü 1.png", LINES, 1, 5, 2.5, "pen", "val", "left", "It is blurred.", "n"),
        ("y", "pictures/2.png", "", 3, "", "", "", "", "", "", ""),
        ("",) * 11,
        encoding="utf-8-sig",
    )
    found = read("table", tmp_path / "mine.csv", scale=(1, 5))
    folder, mos = tmp_path / "pictures", {Q: 1, C: 5, A: 2.5}
    assert found.samples == [
        Sample("x", folder / "ü 1.png", LINES, mos, {Q: "It is blurred."}, "validation", "pen", "left"),
        Sample("y", folder / "2.png", None, {Q: 3}),
    ]


def test_prompts_that_look_like_missing_values_stay_texts(tmp_path: Path) -> None:
    put_images(tmp_path, "1.png", "2.png")
    put_csv(tmp_path / "t.csv", ("image", "prompt", "quality"), ("1.png", "None", 1), ("2.png", "nan", 0))
    assert [s.prompt for s in read("table", tmp_path / "t.csv", scale=(0, 5)).samples] == ["None", "nan"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,prompt\n1.png,a\n", r"t\.csv has no column with scores"),
        ("prompt,quality\na,1\n", r"t\.csv has no column image; it has prompt, quality"),
        ("image,quality\n1.png,1\n2.png,bright\n", r"t\.csv, line 3: quality is not a number: 'bright'"),
        ("image,quality\n1.png,1\n2.png,6\n", r"t\.csv, line 3: quality is 6, outside the scale from 1 to 5"),
        ("image,quality\n1.png,nan\n", r"t\.csv, line 2: quality is nan, outside the scale"),
        ("image,quality\n1.png,1\n2.png,\n", r"t\.csv, line 3: 2\.png has no score"),
        ("image,quality\n,1\n", r"t\.csv, line 2: The row names no image"),
        ("image,prompt,alignment\n1.png,,3\n", r"line 2: 1\.png has a correspondence score but no prompt"),
        ('image,quality\n1.png,1\n2.png,"1\n', r"t\.csv, line 3: The row is no valid CSV"),
        ("image,quality,split\n1.png,1,exam\n", r"t\.csv, line 2: 'exam' is no part of a split"),
        (
            "image,quality\n1.png,1\n\n1.png,2\n",
            r"line 4: the id 1\.png was given before, in .*t\.csv, line 2",
        ),
        ("image,quality\n1.png,1\n3.png,1\n", r"1 of 2 images are missing; the first is 3\.png .*line 3"),
        (f"image,quality\n{'x' * 5000},1\n", r"1 of 1 images are missing"),
        ("image,quality\n", r"t\.csv holds no samples"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    put_images(tmp_path, "1.png", "2.png")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read("table", tmp_path / "t.csv", scale=(1, 5))


def test_a_table_as_spreadsheets_and_people_write_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_images(tmp_path, "grün.png")
    text = "Image Path; Caption; MOS-Quality; Qualty\r\ngrün.png; a pond; 3,5; x\r\n"
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    (sample,) = read("table", tmp_path / "t.csv", scale=(1, 5)).samples
    assert (sample.image.name, sample.prompt, sample.mos) == ("grün.png", "a pond", {Q: 3.5})
    encoding, unread = caplog.messages
    assert "read as Windows-1252 (Latin-1), such as “grün”" in encoding
    assert unread.endswith("not read: Qualty. Read: Image Path, Caption, MOS-Quality.")


def test_excel_without_openpyxl_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as book:
        book.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(InputError, match=r"Reading .*t\.xlsx needs openpyxl.*save the table as CSV"):
        read("table", tmp_path / "t.xlsx", scale=(1, 5))
    (tmp_path / "t.xlsx").write_bytes(b"no workbook")
    with pytest.raises(InputError, match=r"t\.xlsx is not an Excel file"):
        read("table", tmp_path / "t.xlsx", scale=(1, 5))


# --- samples and teacher -------------------------------------------------------------------------


def test_our_json_lines(tmp_path: Path) -> None:
    put_images(tmp_path, "images/1.png", "images/2.png")
    samples = [
        Sample("a", tmp_path / "images/1.png", "p", {Q: 2.0}, {Q: "Dull."}, "test", "pen", "left", True),
        Sample("b", tmp_path / "images/2.png", None, {A: 5.0}, split="validation"),
    ]
    write_samples(samples, tmp_path / "samples.jsonl")
    for path in (tmp_path, tmp_path / "samples.jsonl"):
        assert read("samples", path, scale=(1, 5), split=SplitConfig(holdout=0)).samples == samples
    with pytest.raises(InputError, match=r"samples\.jsonl, line 2: authenticity is 5, outside the scale"):
        read("samples", tmp_path, scale=(0, 4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mos": {"quality": "good"}}, "line 1: quality is not a number: 'good'"),
        ({"split": "exam"}, "line 1: 'exam' is no part of a split"),
        ({"mos": {"beauty": 1}}, "line 1 is not a sample"),
    ],
)
def test_wrong_samples_are_named(tmp_path: Path, wrong: dict, message: str) -> None:
    put_images(tmp_path, "1.png")
    (tmp_path / "s.jsonl").write_text(json.dumps({"id": "1", "image": "1.png", **wrong}) + "\n")
    with pytest.raises(InputError, match=message):
        read("samples", tmp_path / "s.jsonl", scale=(1, 5))


def test_a_prompt_of_white_space_is_none(tmp_path: Path) -> None:
    put_images(tmp_path, "1.png", "2.png")
    prompts = (" \t\n", "  a boat ")
    samples = [Sample(str(i), tmp_path / f"{i}.png", prompt, {Q: 2.0}) for i, prompt in enumerate(prompts, 1)]
    write_samples(samples, tmp_path / "s.jsonl")
    found = read("samples", tmp_path / "s.jsonl", scale=(1, 5)).samples
    assert [sample.prompt for sample in found] == [None, "a boat"]


def test_the_teacher_s_data(data: Path) -> None:
    found = read("teacher", data, split=SplitConfig())
    assert found.scale == MosScale(1, 5)
    assert Counter(s.split for s in found.samples) == {"train": 8, "validation": 4, "test": 4}
    assert all(s.descriptions.keys() == s.mos.keys() for s in found.samples)


def test_wrong_teacher_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "agi-teacher").mkdir()
    (tmp_path / "agi-teacher" / "samples.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(InputError, match=r"samples\.jsonl, line 1 is not a row of agi-teacher"):
        read("teacher", tmp_path)


# --- what all formats share ----------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A table of 200 rows about one image file each, with two aspects for every other row."""
    put_images(tmp_path, "one.png")
    for number in range(200):
        (tmp_path / f"{number}.png").hardlink_to(tmp_path / "one.png")
    rows = [(f"{i}.png", f"prompt {i}", 1 + i % 5, i % 5 + 1 if i % 2 else "") for i in range(200)]
    return put_csv(tmp_path / "many.csv", ("image", "prompt", "quality", "correspondence"), *rows)


def test_a_limit_keeps_the_shares_of_the_parts(many: Path) -> None:
    split = SplitConfig("image", (6, 3, 1), seed=3)
    whole = by_id(read("table", many, scale=(1, 5), split=split))
    found = read("table", many, scale=(1, 5), split=split, limit=20).samples
    assert Counter(s.split for s in found) == {"train": 12, "test": 6, "validation": 2}
    assert all(whole[sample.id] == sample for sample in found)
    assert len(read("table", many, scale=(1, 5), split=split, limit=1000).samples) == 200
    other = read("table", many, scale=(1, 5), split=replace(split, seed=4), limit=20).samples
    assert {s.id for s in other} != {s.id for s in found}


def test_other_aspects_are_left_out(many: Path) -> None:
    found = read("table", many, scale=(1, 5), aspects=(C,)).samples
    assert len(found) == 100 and all(set(s.mos) == {C} for s in found)
    with pytest.raises(InputError, match="has nothing about authenticity"):
        read("table", many, scale=(1, 5), aspects=(A,))


@pytest.mark.parametrize("by", ["image", "prompt", "generator"])
@pytest.mark.parametrize("form", ["table", "samples"])
def test_parts_of_the_data_s_own_are_not_passed_over(tmp_path: Path, form: str, by: str) -> None:
    names = [f"{i}.png" for i in range(8)]
    put_images(tmp_path, *names)
    parts = ["train", "test", "val", ""] * 2
    rows = [(name, f"p {name}", f"g {name}", 3, part) for name, part in zip(names, parts, strict=True)]
    path = put_csv(tmp_path / "t.csv", ("image", "prompt", "generator", "quality", "split"), *rows)
    found = read("table", path, scale=(1, 5), split=SplitConfig())
    assert [sample.split for sample in found.samples] == ["train", "test", "validation", "train"] * 2
    if form == "samples":
        path = tmp_path / "s.jsonl"
        write_samples(found.samples, path)
    drawn = SplitConfig(by, (2, 1, 1))
    with pytest.raises(
        InputError, match=r"has parts of its own \(test, train, validation\)\. Set data.split.by"
    ):
        read(form, path, scale=(1, 5), split=drawn)
    write_split(found.samples, tmp_path / "split.csv")
    published = SplitConfig(by, file=tmp_path / "split.csv")
    assert read(form, path, scale=(1, 5), split=published).samples == found.samples
    if form == "table":
        put_csv(
            path, ("image", "prompt", "generator", "quality", "split"), *((*r[:4], "train") for r in rows)
        )
        parts = Counter(sample.split for sample in read(form, path, scale=(1, 5), split=drawn).samples)
        assert parts == {"train": 4, "test": 2, "validation": 2}


def test_official_parts_may_be_drawn_anew(tmp_path: Path) -> None:
    for part in ("train", "test"):
        names = [f"DALLE3_{part}{i}.png" for i in range(5)]
        put_images(tmp_path / part, *names)
        put_csv(tmp_path / f"info_{part}.csv", ("name", "prompt", "mos"), *((n, f"p {n}", 3) for n in names))
    found = read("aigciqa_20k", tmp_path, split=SplitConfig("image", (8, 1, 1))).samples
    assert Counter(sample.split for sample in found) == {"train": 8, "test": 1, "validation": 1}


def test_a_published_split_goes_with_any_format(many: Path, tmp_path: Path) -> None:
    found = read("table", many, scale=(1, 5), split=SplitConfig("prompt")).samples
    write_split(found, tmp_path / "split.csv")
    assert read("table", many, scale=(1, 5), split=SplitConfig(file=tmp_path / "split.csv")).samples == found


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"format": "imagenet"}, "no data format 'imagenet'; there are agiqa_3k"),
        ({"scale": None}, r"Set the scale that the scores of .*many\.csv are on"),
        ({"scale": (5, 1)}, r"scale of .*many\.csv is not low and high"),
        ({"path": Path("nowhere")}, "There is no data set nowhere"),
        ({"mos": Path("x.csv")}, "goes with conversations only"),
        ({"limit": 0}, "cannot be limited to 0"),
        ({"split": SplitConfig()}, "without a split"),
    ],
)
def test_wrong_settings_are_named(many: Path, config: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(DataConfig(**{"format": "table", "path": many, "scale": (1, 5), "split": UNSPLIT, **config}))


def test_every_format_refuses_an_empty_folder(tmp_path: Path) -> None:
    for name in DATA_FORMATS:
        with pytest.raises(InputError, match=str(tmp_path)):
            read(name, tmp_path, scale=(1, 5))


def test_twenty_thousand_rows_are_read_quickly(tmp_path: Path) -> None:
    for number in range(20_000):
        (tmp_path / f"{number}.png").touch()
    rows = ((f"{i}.png", f"prompt {i // 3}", i % 6) for i in range(20_000))
    put_csv(tmp_path / "data.csv", ("name", "prompt", "mos"), *rows)
    start = time.process_time()
    found = read("aigciqa_20k", tmp_path, split=SplitConfig("prompt", (7, 2, 1)))
    assert time.process_time() - start < 10
    parts = Counter(s.split for s in found.samples)
    assert abs(parts["test"] - 4000) <= 1 and abs(parts["validation"] - 2000) <= 1
