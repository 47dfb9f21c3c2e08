import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from test_batch_scoring import records, run

from m3agiqa import Assessor, InputError
from m3agiqa.score_inputs import ScoreRow, read_rows

Member = tuple[str, bytes]


def encoded(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def write_tar(path: Path, members: list[Member]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def samples(picture: Image.Image) -> list[Member]:
    """Of WebDataset: prompts in text and JSON files, two names for it, one in no file, and odd samples."""
    content = encoded(picture)
    return [
        ("a/1.png", content),
        ("a/1.txt", b"\xef\xbb\xbfa ball\n"),
        ("a/2.json", json.dumps({"seed": 1, "Caption": "a red ball"}).encode()),
        ("a/2.PNG", content),
        ("a/2.mask.png", b"no image of its own"),
        ("3.png", content),
        ("4.png", b"damaged"),
        ("5.txt", b"a ball without an image"),
        ("6.png", content),
        ("6.json", b"{"),
    ]


EXPECTED_PROMPTS = {
    "a/1.png": "a ball",
    "a/2.PNG": "a red ball",
    "3.png": "",
    "4.png": "",
    "5": "",
    "6.png": "",
}
EXPECTED_ERRORS = {"4.png": "not an image", "5": "has no image file", "6.png": "6.json is not JSON"}


def test_tars(tmp_path: Path, samples: list[Member], scripted: Assessor) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    shards = [write_tar(folder / f"images-{number:02}.tar", samples) for number in (8, 9, 10)]
    run(folder, tmp_path / "out.csv", scripted)
    done = records(tmp_path / "out.csv")
    expected = [(f"{shard}/{name}", prompt) for shard in shards for name, prompt in EXPECTED_PROMPTS.items()]
    assert [(row["image"], row["prompt"]) for row in done] == expected
    for row in done:
        assert EXPECTED_ERRORS.get(row["image"].partition(".tar/")[2], "") in row["error"]
        assert bool(row["quality_mos"]) != bool(row["error"])
    assert scripted.backbone.seen[0].size == (160, 120)
    numbered = read_rows(folder / "images-{08..10}.tar")
    assert list(numbered) == list(read_rows(*shards)) == list(read_rows(folder))
    assert run(folder, tmp_path / "out.csv", scripted) == []
    with pytest.raises(InputError, match=r"There is no file .*images-11\.tar"):
        read_rows(folder / "images-{08..11}.tar")


def test_a_tar_that_breaks_off_anywhere(tmp_path: Path, samples: list[Member]) -> None:
    """What is whole is read, with its prompt, and one row says that there may have been more."""
    whole = write_tar(tmp_path / "whole.tar", samples[:4]).read_bytes()
    rows = {row.image.rpartition("/")[2]: row for row in read_rows(tmp_path / "whole.tar")}
    cut = tmp_path / "cut.tar"
    with tarfile.open(tmp_path / "whole.tar") as tar:
        end = tar.getmembers()[-1].offset_data + tar.getmembers()[-1].size
    for length in range(0, end, 100):
        cut.write_bytes(whole[:length])
        *complete, last = read_rows(cut)
        assert str(cut) in last.image
        assert (
            "breaks off at or after" if length > 512 else "is damaged, compressed or no tar"
        ) in last.error
        for row in complete:
            assert row.prompt == rows[row.image.rpartition("/")[2]].prompt and not row.error


def test_files_that_are_no_tars_have_their_row(
    tmp_path: Path, samples: list[Member], scripted: Assessor
) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with tarfile.open(tmp_path / "b.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    write_tar(tmp_path / "c.tar", samples[:2])
    errors = run(tmp_path, tmp_path / "out.csv", scripted)
    assert ["damaged, compressed or no tar" in error for error in errors] == [True, True, False]
    assert errors[-1] == ""


def parquet(path: Path, **columns: list[object]) -> Path:
    why = "pyarrow is not installed: pip install -r requirements-scale.txt"
    table = pytest.importorskip("pyarrow", reason=why).table(columns)
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    return path


def test_parquet(tmp_path: Path, picture: Image.Image, scripted: Assessor) -> None:
    picture.save(tmp_path / "a.png")
    images, prompts = ["a.png", "a.png", "gone.png", None], ["a ball", None, "x", "y"]
    path = parquet(tmp_path / "rows.parquet", image=images, seed=[1, 2, 3, 4], Caption=prompts)
    notes: list[str] = []
    list(read_rows(path, note=notes.append))
    assert notes == [f"{path}: not read: seed. Read: image, Caption."]
    errors = run(path, tmp_path / "out.csv", scripted)
    assert errors[:2] == ["", ""]
    assert "There is no file" in errors[2] and errors[3] == "The row names no image."
    rows = records(tmp_path / "out.csv")
    assert [(row["image"], row["prompt"]) for row in rows[:2]] == [("a.png", "a ball"), ("a.png", "")]
    other = parquet(tmp_path / "rows-2.parquet", image=["a.png"])
    assert [row.image for row in read_rows(path, other)] == ["a.png", "a.png", "gone.png", "", "a.png"]


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"picture_id": [1], "prompt": ["a"]}, "has no column image; it has picture_id, prompt"),
        ({"image": ["a.png"], "prompt": ["a"], "text": ["b"]}, "several columns for prompt"),
        ({"image": [{"bytes": b"x", "path": "a.png"}]}, "holds images themselves"),
        ({"image": []}, "has no rows"),
    ],
)
def test_parquet_without_the_columns(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_rows(parquet(tmp_path / "rows.parquet", **columns))


def test_what_is_no_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "rows.parquet", image=["a.png"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_rows(path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        InputError, match=r'need pyarrow, which is not installed: pip install "m3agiqa\[scale\]"'
    ):
        read_rows(path)


def test_sources_that_do_not_go_together(tmp_path: Path, samples: list[Member]) -> None:
    tar = write_tar(tmp_path / "a.tar", samples)
    (tmp_path / "b.csv").write_text("image\na.png\n")
    for sources in ([tar, tmp_path / "b.csv"], [tmp_path / "b.csv"] * 2, [tmp_path, tmp_path]):
        with pytest.raises(InputError, match="Give one table or one folder, or several"):
            read_rows(*sources)


def test_rows_can_be_written_down() -> None:
    row = ScoreRow("a\udcff.png", Path("/tmp/a\udcff.png"), "two\nlines", "CSV", "", True, (512, 7))
    assert ScoreRow.from_json(row.to_json()) == row
    assert row.to_json().count(b"\n") == 1


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Of reading a table and of knowing what is scored already, as allocated by Python."""
    import tracemalloc

    from m3agiqa.batch_scoring import ScoreFile

    def peak(count: int) -> int:
        table, out = tmp_path / f"{count}.csv", tmp_path / f"{count}.out.csv"
        table.write_text("image,prompt\n" + "".join(f"{n}.png,a ball {n}\n" for n in range(count)))
        with ScoreFile(out) as output:
            output.start("scripted")
            for number in range(0, count, 2):
                output.append({"image": f"{number}.png", "prompt": f"a ball {number}", "model": "scripted"})
        tracemalloc.start()
        with ScoreFile(out) as output:
            todo = output.remaining(read_rows(table))
            assert (len(todo), todo.total, sum(1 for _ in todo)) == (count // 2, count, count // 2)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(8000) < peak(1000) + 100_000
