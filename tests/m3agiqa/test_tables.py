"""The one reader of tables, by what spreadsheets, data sets and people write."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.tables import COLUMN_NAMES, Table, harmless, parse_table, read_table

FIELDS = ("image", "prompt", *Aspect)


def table(content: bytes) -> Table:
    return parse_table(content, "t.csv").select(FIELDS)


READ = {
    "spaces in the header": (b"image, prompt\na.png, a cat\n", "a cat"),
    "spaces before quotation marks": (b'image, prompt\na.png, "a cat, asleep"\n', "a cat, asleep"),
    "capitals": (b"Image,Prompt\na.png,a cat\n", "a cat"),
    "one capital": (b"image,Prompt\na.png,a cat\n", "a cat"),
    "semicolons and a byte order mark": ("\ufeffImage;Prompt\r\na.png;x\r\n".encode(), "x"),
    "empty lines and rows": (b'prompt;image\r\nx;a.png\r\n\r\n;\r\n"";" "\r\n', "x"),
    "old Mac": (b"image,prompt\ra.png,x", "x"),
    "tabs": (b"image\tprompt\na.png\tx, y; z\n", "x, y; z"),
    "Excel's own first line": (b"sep=;\r\nimage;prompt\r\na.png;x\r\n", "x"),
    "Latin-1": ("image,prompt\na.png,Café “tard”\n".encode("cp1252"), "Café “tard”"),
    "UTF-16": ("image,prompt\na.png,Café\n".encode("utf-16"), "Café"),
    "UTF-16 without a mark": ("image,prompt\na.png,Café\n".encode("utf-16-le"), "Café"),
    "UTF-16, big end first": ("image,prompt\na.png,Café\n".encode("utf-16-be"), "Café"),
    "the paper's authors": (b"image_path,prompt\na.png,x\n", "x"),
    "public data sets": (b"name,prompt\na.png,x\n", "x"),
    "image folders of Hugging Face": (b"file_name,text\na.png,x\n", "x"),
    "captions": (b"File Name,Caption\na.png,x\n", "x"),
    "8,000 characters": (b"image,prompt\na.png," + b"x" * 8000 + b"\n", "x" * 8000),
    "a prompt of many lines": (b'image,prompt\na.png,"' + b"x\n" * 500 + b'x"\n', "x\n" * 500 + "x"),
    "a formula as exports escape it": (b"image,prompt\na.png,'=1+1\n", "=1+1"),
}


@pytest.mark.parametrize(("content", "prompt"), READ.values(), ids=READ)
def test_what_is_read(content: bytes, prompt: str) -> None:
    (row,) = table(content).sound_rows()
    assert (row.cells["image"], row.text("prompt")) == ("a.png", prompt)


REFUSED = {
    "two prompts": (
        b"image,prompt,prompt\na.png,x,y\n",
        "several columns for prompt: prompt, prompt. Keep one",
    ),
    "two names of it": (b"image,Prompt,caption\na.png,x,y\n", "several columns for prompt: Prompt, caption"),
    "two images": (b"image_path,file\na.png,b.png\n", "several columns for image: image_path, file"),
    "another name": (
        b"bild,prompt\na.png,x\n",
        "has no column image; it has bild, prompt. Rename the column bild",
    ),
    "none": (b"prompt,quality\nx,3\n", "Rename the column that holds it to image"),
    "no header": (b"a.png,a cat\n", "does not begin with the names of its columns"),
    "nothing": (b"", "is empty"),
    "empty lines": (b"\n\n,\n", "is empty"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "line 1: The row is not UTF-8"),
}


@pytest.mark.parametrize(("content", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(content: bytes, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        table(content)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "image", ["https://example.org/a.png", "file:///etc/passwd", "data:image/png;base64;AA"]
)
def test_a_url_is_called_a_url(image: str) -> None:
    (row,) = table(f"image,prompt\n{image},x\n".encode()).rows
    assert row.problem == f"{image} is a URL; save the image as a file and give the file's path."


@pytest.mark.parametrize(
    ("content", "sentences"),
    [
        (b"image,prompt\na.png,x\n", ()),
        (
            b"image,promt,seed\na.png,x,1\n",
            ("t.csv: not read: promt (did you mean prompt?), seed. Read: image.",),
        ),
        (b"image,\x1b[2J\na.png,x\n", ("t.csv: not read: �[2J. Read: image.",)),
    ],
)
def test_columns_that_are_not_read_are_named(content: bytes, sentences: tuple[str, ...]) -> None:
    assert table(content).notes == sentences


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("мяч", "cp1251"),
        ("мяч на траве", "koi8-r"),
        ("球は赤い", "shift-jis"),
        ("红色的球", "gbk"),
        ("κόκκινη μπάλα", "cp1253"),
    ],
)
def test_other_alphabets_are_not_taken_for_latin_1(text: str, encoding: str) -> None:
    (row,) = table(f"image,prompt\na.png,{text}\n".encode(encoding)).rows
    assert "save the table as “CSV UTF-8”" in row.problem


@pytest.mark.parametrize(("text", "mos"), [("3.5", 3.5), ("3,5", 3.5), (" 4 ", 4.0), ("", None)])
def test_decimals_with_a_comma(text: str, mos: float | None) -> None:
    (row,) = table(f"image;mos\na.png;{text}\n".encode()).rows
    assert row.score("quality", MosScale(1, 5)) == mos


@pytest.mark.parametrize(
    ("cell", "written"),
    [("=1+1", "'=1+1"), (" @x", "' @x"), ("-1.5", "-1.5"), ("-a", "'-a"), ("a=b", "a=b"), (-1.5, -1.5)],
)
def test_no_text_is_a_formula(cell: object, written: object) -> None:
    assert harmless(cell) == written


names = st.sampled_from([*(name for known in COLUMN_NAMES.values() for name in known), "seed", "", "'", '"'])
texts = st.text(max_size=30) | st.sampled_from(["a.png", "3,5", "=1+1", "http://a", '"', "\0", "x" * 5000])
encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "gbk", "utf-32"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    header=st.lists(names, max_size=5),
    rows=st.lists(st.lists(texts, max_size=5), max_size=5),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    encoding=encodings,
    junk=st.binary(max_size=20),
    place=st.integers(0, 200),
)
@example(header=[], rows=[], delimiter=",", encoding="utf-8", junk=b"\t", place=0)  # a first line of blanks
def test_random_tables_give_rows_or_sentences(
    header: list[str], rows: list[list[str]], delimiter: str, encoding: str, junk: bytes, place: int
) -> None:
    text = "\n".join(delimiter.join(cells) for cells in [header, *rows])
    content = text.encode(encoding, errors="ignore")
    content = content[:place] + junk + content[place:]
    try:
        found = table(content)
    except InputError as error:
        assert str(error).startswith("t.csv")
    else:
        for row in found.rows:
            assert row.problem or row.cells["image"]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read .*gone\.csv: No such file"):
        read_table(tmp_path / "gone.csv")
