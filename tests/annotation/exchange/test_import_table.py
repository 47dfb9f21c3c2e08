import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotation.exchange.import_csv import Gold, Row, read_import_table
from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError


def read_table(content: bytes, name: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """The good rows, and places and reasons of the bad ones."""
    table = read_import_table(content, name)
    return table.rows, table.errors


def test_all_columns() -> None:
    (row,), errors = read_table(
        b"image,Prompt,generator,annotator,quality,authenticity,gold_correspondence,gold_tolerance,note\n"
        b'a.png,"a cat, asleep",sd,ann,4.5,,2,0.5,whatever\n',
        "t.csv",
    )
    assert not errors
    assert (row.place, row.image, row.prompt, row.generator) == ("line 2", "a.png", "a cat, asleep", "sd")
    assert row.scores == {Aspect.QUALITY: 4.5}
    assert row.annotator == "ann"
    assert row.gold == (Gold(Aspect.CORRESPONDENCE, 2.0, 0.5),)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (",cat,ann,3", "names no image"),
        ("a.png,cat,ann,5.1", "quality is 5.1; give a number from 1 to 5"),
        ("a.png,cat,ann,nan", "quality is nan"),
        ("a.png,cat,ann,good", "quality is not a number: 'good'"),
        ("a.png,cat,,3", "names no annotator"),
        ("a.png,a cat, asleep,ann,3", "5 cells and the header 4; put texts that hold commas"),
        ("a.png,cat", "2 cells and the header 4"),
        ('a.png,"cat"s,ann,3', "quotation mark"),
        ('a.png,"cat,ann,3', "quotation mark"),
    ],
)
def test_a_bad_row_is_told_and_spoils_no_other(line: str, sentence: str) -> None:
    text = f"image,prompt,annotator,quality\nb.png,dog,ann,1\n{line}\nc.png,owl,ann,2\n"
    rows, ((place, reason),) = read_table(text.encode(), "t.csv")
    assert [row.image for row in rows] == ["b.png", "c.png"]
    assert place == "line 3"
    assert sentence in reason


def test_a_row_that_is_not_utf8_among_others_that_are() -> None:
    rows, errors = read_table("image,prompt\na.png,café\n".encode() + b"b.png,caf\xe9\nc.png,tea\n", "t.csv")
    assert [row.image for row in rows] == ["a.png", "c.png"]
    assert errors == [("line 3", "The row is not UTF-8; save the table as “CSV UTF-8”.")]


@pytest.mark.parametrize(
    ("content", "scores", "notes"),
    [
        (b"image,annotator,mos_quality\na.png,ann,2.5\n", {Aspect.QUALITY: 2.5}, ()),
        (b"image;annotator;quality\na.png;ann;2,5\n", {Aspect.QUALITY: 2.5}, ()),
        (b"image,mos_quality\na.png,2.5\n", {}, ("t.csv: not read: mos_quality. Read: image.",)),
    ],
)
def test_mean_scores_are_read_only_beside_who_gave_them(
    content: bytes, scores: dict[Aspect, float], notes: tuple[str, ...]
) -> None:
    table = read_import_table(content, "t.csv")
    assert ([row.scores for row in table.rows], table.notes) == ([scores], notes)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfe\xfd\x00", "has no column image"),
        (b"image,prompt\n", "no rows below its header"),
        (b"image,quality\na,3\n", "no column annotator"),
        (b"image\n" + b"a\n" * 300_000, "has 300,001 lines; at most 300,000"),
    ],
)
def test_tables_that_make_no_sense(content: bytes, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_table(content, "t.csv")


prompts = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\r\t,\";'"), min_size=1, max_size=30
).filter(lambda text: text.strip() == text and text[0] not in '",')
bad_lines = st.sampled_from(['x.png,"never closed', "x.png,too,many", 'x.png,"a"b', ",nothing", "x.png,\x81"])


@given(st.lists(prompts | bad_lines.map(lambda line: (line,)), min_size=1, max_size=30))
def test_every_good_row_is_read_whatever_is_between(table: list[str | tuple[str]]) -> None:
    text = io.StringIO("image,prompt\r\n", newline="")
    text.seek(0, io.SEEK_END)
    good = []
    for row in table:
        if isinstance(row, tuple):
            text.write(row[0] + "\r\n")
        else:
            csv.writer(text).writerow(["a.png", row])
            good.append(row)
    content = text.getvalue().encode().replace("x.png,\x81".encode(), b"x.png,\x81")
    rows, errors = read_table(content, "t.csv")
    assert [row.prompt for row in rows] == good
    assert len(errors) >= len(table) - len(good)


@given(st.binary(max_size=300))
def test_no_bytes_end_in_anything_but_rows_or_a_sentence(content: bytes) -> None:
    try:
        rows, errors = read_table(b"image,prompt\n" + content, "t.csv")
    except InputError as error:
        assert "no rows" in str(error)
    else:
        assert rows or errors
