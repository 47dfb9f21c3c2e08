import csv
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from waiting import wait_until

from m3agiqa import Aspect, Assessor, InputError
from m3agiqa.backbones.base import Delta, Generation, Request
from m3agiqa.batch_scoring import RESULT_COLUMNS, ScoreFile, score
from m3agiqa.score_inputs import read_rows


def run(source: Path, out: Path, assessor: Assessor) -> list[str]:
    """What the command does: the errors of the rows that were not scored yet."""
    with ScoreFile(out) as output:
        todo = output.remaining(read_rows(source))
        output.start(assessor.card.title)
        return list(score(todo, output, assessor))


def records(out: Path) -> list[dict[str, str]]:
    with out.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def pictures(tmp_path: Path, picture: Image.Image) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name in ("b.png", "a.png", "more/c.png"):
        picture.save(folder / name)
    return folder


@pytest.fixture
def table(pictures: Path) -> Path:
    """Good rows, one without a prompt, and rows that cannot be scored."""
    path = pictures / "rows.csv"
    path.write_text(
        "image,prompt,note\n"
        'a.png,"a ball, red",x\n'
        "gone.png,a ball,x\n"
        "b.png,,x\n"
        f"b.png,{'long ' * 5000},x\n"
        ",a ball,x\n"
        "a.png,a ball, red,x\n"
        'more/c.png,"two\nlines, “ü”",x\n',
        encoding="utf-8",
    )
    return path


def test_table(table: Path, tmp_path: Path, scripted: Assessor) -> None:
    run(table, tmp_path / "out.csv", scripted)
    done = records(tmp_path / "out.csv")
    assert tuple(done[0]) == RESULT_COLUMNS
    images = ["a.png", "gone.png", "b.png", "b.png", "", "a.png", "more/c.png"]
    assert [row["image"] for row in done] == images
    first, gone, promptless, long, nameless, broken, last = done
    assert first["prompt"] == "a ball, red"
    assert {a: (first[f"{a}_mos"], first[f"{a}_raw_mos"]) for a in Aspect} == {
        "quality": ("3.620", "3.620"),
        "correspondence": ("5.000", "5.310"),
        "authenticity": ("1.000", "0.200"),
    }
    assert (first["quality_rating"], first["quality_spoken_rating"]) == ("good", "fair")
    assert first["quality_description"].startswith("It has a calm, even light")
    assert (first["scale"], first["model"], first["error"]) == ("1 to 5", "scripted 1.2", "")
    assert first["learned_from"] == "nobody"
    assert "There is no file" in gone["error"]
    assert gone["quality_mos"] == ""
    assert (promptless["correspondence_mos"], promptless["error"]) == ("", "")
    assert promptless["quality_mos"] == "3.620"
    assert (long["quality_mos"], long["error"]) == ("3.620", "")
    assert long["prompt_origin"] == "CSV, its first 7,999 characters"
    assert nameless["error"] == "The row names no image."
    assert "The row has 4 cells and the header 3" in broken["error"]
    assert (last["prompt"], last["error"]) == ("two\nlines, “ü”", "")


def test_intervals_and_percentiles(table: Path, tmp_path: Path, calibrated: Assessor) -> None:
    run(table, tmp_path / "out.csv", calibrated)
    first, *_, last = records(tmp_path / "out.csv")
    figures = [first[f"quality_{name}"] for name in ("low", "high", "percentile")]
    assert figures == ["3.120", "4.120", "81.000"]
    assert (last["correspondence_low"], last["correspondence_percentile"]) == ("4.500", "")


def test_columns_that_the_documentation_promises() -> None:
    kinds = ("mos", "description")
    promised = ["image", "prompt", *(f"{aspect}_{kind}" for kind in kinds for aspect in Aspect), "error"]
    assert [name for name in RESULT_COLUMNS if name in promised] == promised


def test_unforeseen_error_of_one_row(
    pictures: Path, tmp_path: Path, scripted: Assessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "a.txt").write_text("a red ball")
    describe = scripted.backbone.describe

    def fails_for_the_first(requests: Sequence[Request], *stop: object) -> Iterator[Delta | Generation]:
        if requests[0].conversations[0].prompt == "a red ball":
            raise RuntimeError("tensor too odd")
        yield from describe(requests, *stop)

    monkeypatch.setattr(scripted.backbone, "describe", fails_for_the_first)
    errors = run(pictures, tmp_path / "out.csv", scripted)
    assert errors == ["Unexpected RuntimeError: tensor too odd", "", ""]


def test_folder(pictures: Path, tmp_path: Path, picture: Image.Image, scripted: Assessor) -> None:
    (pictures / "a.txt").write_text("\ufeffa red ball\n", encoding="utf-8")
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a ball\nSteps: 20")
    picture.save(pictures / "b.png", pnginfo=info)
    picture.save(pictures / "a.webp", lossless=True)
    (pictures / "letter.pdf").write_text("no image")
    run(pictures, tmp_path / "out.csv", scripted)
    assert [(r["image"], r["prompt"], r["prompt_origin"]) for r in records(tmp_path / "out.csv")] == [
        ("a.png", "a red ball", "text file of the same name"),
        ("a.webp", "a red ball", "text file of the same name"),
        ("b.png", "a ball", "A1111 parameters (PNG text)"),
        (str(Path("more/c.png")), "", ""),
    ]


def test_an_image_whose_prompt_cannot_be_read_is_not_judged_without(pictures: Path) -> None:
    (pictures / "a.txt").symlink_to("/proc/self/mem")  # a file whose beginning nobody can read
    first, *others = (row.complete() for row in read_rows(pictures))
    assert (first.image, first.error) == ("a.png", "a.txt cannot be read: Input/output error.")
    assert not any(row.error for row in others)


def test_the_first_result_does_not_wait_for_the_prompts_of_all_images(
    pictures: Path, tmp_path: Path, scripted: Assessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []
    monkeypatch.setattr("m3agiqa.batch_scoring.BATCH_SIZE", 1)
    monkeypatch.setattr("m3agiqa.score_inputs.find_prompt", lambda path: searched.append(path.name))
    out = tmp_path / "out.csv"
    with ScoreFile(out) as output:
        todo = output.remaining(read_rows(pictures))
        output.start(scripted.card.title)
        next(score(todo, output, scripted))
    assert searched == ["a.png"]
    assert run(pictures, out, scripted) == ["", ""]


def test_the_row_says_why_a_prompt_is_left_out(
    pictures: Path, tmp_path: Path, picture: Image.Image, scripted: Assessor
) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a " * 2_000_000, zip=True)
    picture.save(pictures / "a.png", pnginfo=info)
    run(pictures, tmp_path / "out.csv", scripted)
    row = records(tmp_path / "out.csv")[0]
    assert (row["prompt"], row["error"]) == ("", "") and row["quality_mos"]
    assert row["prompt_origin"] == "none, as the text in the image file is far too large once unpacked"


def test_what_a_folder_holds_and_cannot_be_read_has_its_row(
    pictures: Path, tmp_path: Path, scripted: Assessor
) -> None:
    (pictures / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (pictures / "photo.JXL").write_bytes(b"\xff\x0a")
    (pictures / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (pictures / "gone.png").symlink_to("nowhere.png")
    (pictures / "circle.png").symlink_to("circle.png")
    os.mkfifo(pictures / "pipe.png")
    (pictures / "device.png").symlink_to("/dev/zero")
    (pictures / "elsewhere").symlink_to(tmp_path)
    (pictures / "letter.pdf").write_text("no image")
    run(pictures, tmp_path / "out.csv", scripted)
    errors = {row["image"]: row["error"] for row in records(tmp_path / "out.csv")}
    sentences = {
        "photo.heic": "cannot be read",
        "photo.JXL": "a JPEG XL picture",
        "drawing.svg": "an SVG drawing",
        "gone.png": "There is no file",
        "circle.png": "Too many levels of symbolic links",
        "pipe.png": "is a pipe or a device",
        "device.png": "is a pipe or a device",
        "elsewhere": "This is a link to another folder; give that folder itself.",
    }
    assert errors.keys() == {"a.png", "b.png", "more/c.png", *sentences}
    assert {image: error for image, error in errors.items() if sentences.get(image, "") not in error} == {}
    assert [image for image, error in errors.items() if not error] == ["a.png", "b.png", "more/c.png"]


def test_rows_that_name_no_readable_file(pictures: Path, tmp_path: Path, scripted: Assessor) -> None:
    os.mkfifo(pictures / "pipe.png")
    images = ["pipe.png", "/dev/zero", "https://example.org/a.png", "x" * 5000, "more", "a.png"]
    path = pictures / "rows.tsv"
    path.write_text("image\tprompt\n" + "".join(f"{image}\t\n" for image in images))
    *errors, good = run(path, tmp_path / "out.csv", scripted)
    assert good == ""
    assert all(errors)
    for error, sentence in zip(errors, ("pipe or a device", "pipe or a device", "is a URL"), strict=False):
        assert sentence in error


def test_prompts_under_another_name_are_read_and_other_columns_named(pictures: Path) -> None:
    path = pictures / "rows.csv"
    path.write_text("image, Caption, seed\na.png, a ball, 1\n")
    notes: list[str] = []
    (row,) = read_rows(path, note=notes.append)
    assert (row.prompt, row.prompt_origin) == ("a ball", "CSV")
    assert notes == [f"{path}: not read: seed. Read: image, Caption."]


def test_image_root(table: Path, tmp_path: Path) -> None:
    moved = tmp_path / "rows.csv"
    table.rename(moved)
    assert next(iter(read_rows(moved))).path == tmp_path / "a.png"
    assert next(iter(read_rows(moved, image_root=table.parent))).path == table.parent / "a.png"
    with pytest.raises(InputError, match="There is no folder"):
        read_rows(moved, image_root=tmp_path / "nowhere")
    with pytest.raises(InputError, match="--image-root"):
        read_rows(table.parent, image_root=tmp_path)


def test_csv_from_a_spreadsheet(pictures: Path) -> None:
    path = pictures / "rows.csv"
    path.write_bytes("\ufeffimage,prompt\r\na.png,„Bälle“\r\n\r\nb.png\r\n".encode())
    assert [(row.image, row.prompt) for row in read_rows(path)] == [("a.png", "„Bälle“"), ("b.png", "")]


BAD_TABLES = {
    "no rows": (b"image,prompt\n", "has no rows"),
    "not UTF-8": ("image,prompt\na.png,мяч\n".encode("cp1251"), "line 2: The row is not UTF-8"),
    "open quote": (b'image,prompt\na.png,"a ball\n', "line 2: The row is no valid CSV"),
    "endless cell": (b"image,prompt\na.png," + b"x" * 200_000, "line 2: The row is no valid CSV"),
}


@pytest.mark.parametrize("content, message", BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)


def test_nothing_to_score(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no image file in the folder"):
        read_rows(tmp_path)
    with pytest.raises(InputError, match="There is no file or folder"):
        read_rows(tmp_path / "gone.csv")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: it is no ordinary file"):
        ScoreFile(Path("/dev/full"))
    with pytest.raises(InputError, match="There is no folder"):
        ScoreFile(tmp_path / "nowhere" / "out.csv")
    with pytest.raises(InputError, match="cannot be written"):
        ScoreFile(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"my diary", b"image,prompt\na.png,b\n", b"\x89PNG\r\n", b'"open\n'])
def test_foreign_files_are_not_touched(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out.csv"
    out.write_bytes(content)
    with pytest.raises(InputError, match="Choose another --out, or delete the file"):
        ScoreFile(out)
    assert out.read_bytes() == content


def test_another_models_scores_are_not_mixed_in(pictures: Path, tmp_path: Path, scripted: Assessor) -> None:
    out = tmp_path / "out.csv"
    run(pictures, out, scripted)
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"holds scores of scripted 1\.2, and this model is nano 9"):
        ScoreFile(out).start("nano 9")
    assert out.read_bytes() == before


def test_the_file_is_one_runs_alone(pictures: Path, tmp_path: Path, scripted: Assessor) -> None:
    out = tmp_path / "out.csv"
    with ScoreFile(out), pytest.raises(InputError, match="Another process is writing to"):
        ScoreFile(out)
    assert not out.exists()  # nothing was written to it
    assert run(pictures, out, scripted) == ["", "", ""]


def test_what_a_spreadsheet_would_run_is_escaped_and_known_again(
    pictures: Path, tmp_path: Path, scripted: Assessor
) -> None:
    path, out = pictures / "rows.csv", tmp_path / "out.csv"
    path.write_text('image,prompt\na.png,"=HYPERLINK(""http://x"")"\nb.png,-5\n')
    assert run(path, out, scripted) == ["", ""]
    assert out.read_bytes().startswith(b"\xef\xbb\xbfimage,")
    assert [row["prompt"] for row in records(out)] == ['\'=HYPERLINK("http://x")', "-5"]
    assert run(path, out, scripted) == []
    out.write_bytes(out.read_bytes().removeprefix(b"\xef\xbb\xbf"))  # as earlier versions wrote it
    assert run(path, out, scripted) == []


def test_second_run_scores_what_is_new(table: Path, tmp_path: Path, scripted: Assessor) -> None:
    out = tmp_path / "out.csv"
    run(table, out, scripted)
    before = out.read_bytes()
    assert run(table, out, scripted) == []
    with table.open("a") as file:
        file.write('a.png,"a ball, red",x\n')  # the same row once more counts as another row
    assert run(table, out, scripted) == [""]
    assert out.read_bytes().startswith(before)


def test_every_place_where_a_run_can_break_off(table: Path, tmp_path: Path, scripted: Assessor) -> None:
    out = tmp_path / "out.csv"
    run(table, out, scripted)
    whole = out.read_bytes()
    for length in range(0, len(whole), 127):
        out.write_bytes(whole[:length])
        run(table, out, scripted)
        assert out.read_bytes() == whole, f"after {length} bytes"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_full_disk(tmp_path: Path) -> None:
    with ScoreFile(tmp_path / "out.csv") as output, Path("/dev/full").open("wb", buffering=0) as full:
        own, output._file = output._file, full
        with pytest.raises(InputError, match=r"No space left on device\. The rows before are kept"):
            output.append({})
        output._file = own


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_run_goes_on(
    pictures: Path, tmp_path: Path, scripted: Assessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3agiqa.batch_scoring.BATCH_SIZE", 1)
    out = tmp_path / "out.csv"
    assess_all = scripted.assess_all

    def slow(*args: object) -> object:
        time.sleep(0.2)
        return assess_all(*args)

    scripted.assess_all = slow
    process = multiprocessing.get_context("fork").Process(target=run, args=(pictures, out, scripted))
    process.start()
    wait_until(lambda: out.exists() and len(records(out)) >= 1)
    with pytest.raises(InputError, match="Another process is writing to"):
        ScoreFile(out)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    scored = len(records(out))
    assert 1 <= scored < 3
    assert run(pictures, out, scripted) == [""] * (3 - scored)
    assert [row["image"] for row in records(out)] == ["a.png", "b.png", str(Path("more/c.png"))]


def test_file_names_that_are_no_text(pictures: Path, tmp_path: Path, scripted: Assessor) -> None:
    (pictures / "a.png").rename(pictures / os.fsdecode(b"a\xff.png"))
    assert run(pictures, tmp_path / "out.csv", scripted) == ["", "", ""]
    assert run(pictures, tmp_path / "out.csv", scripted) == []


odd_cells = ["a.png", "more", "../a.png", "a.png/b", "loop.png", "=1", '"', "a.png,b", "/dev/zero"]
cells = st.text(max_size=40) | st.sampled_from([*odd_cells, "x" * 5000, "a" * 9000])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(cells, cells), min_size=1, max_size=6),
    st.sampled_from(["utf-8", "utf-16", "latin-1"]),
    st.booleans(),
)
def test_every_row_of_a_random_table_has_a_score_or_a_sentence(
    pictures: Path, scripted: Assessor, rows: list[tuple[str, str]], encoding: str, quoted: bool
) -> None:
    out, path, loop = pictures / "out.csv", pictures / "rows.csv", pictures / "loop.png"
    out.unlink(missing_ok=True)
    loop.unlink(missing_ok=True)
    loop.symlink_to(loop)
    with path.open("w", encoding=encoding, errors="ignore", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL) if quoted else None
        for row in [("image", "prompt"), *rows]:
            writer.writerow(row) if writer else file.write(",".join(row) + "\n")
    try:
        errors = run(path, out, scripted)
    except InputError as error:
        assert str(path) in str(error)
        return
    done = records(out)
    assert [bool(row["error"]) for row in done] == [error != "" for error in errors]
    assert not [row for row in done if row["error"].startswith("Unexpected")]
    assert all(row["quality_mos"] or row["error"] for row in done)
    assert run(path, out, scripted) == []  # each is known again


def tensor_bytes() -> int:
    """Of all that this process holds."""
    gc.collect()
    held = {
        storage.data_ptr(): storage.nbytes()
        for each in gc.get_objects()
        if type(each) in (torch.Tensor, torch.nn.Parameter) and not (each.is_mkldnn or each.is_meta)
        for storage in [each.untyped_storage()]
    }
    return sum(held.values())


def test_memory_stays_as_it_is(
    pictures: Path, tmp_path: Path, picture: Image.Image, assessor: Assessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process as a whole: benchmarks/score_memory.py."""
    monkeypatch.setattr("m3agiqa.backbones.nano.model.MAX_NEW_TOKENS", 2)
    monkeypatch.setattr("m3agiqa.batch_scoring.BATCH_SIZE", 2)
    for number in range(4):
        picture.resize((64, 64)).rotate(number).save(pictures / f"{number}.png")
    path = pictures / "rows.csv"
    path.write_text("image\n" + "".join(f"{number}.png\n" for number in range(4)))
    with ScoreFile(tmp_path / "out.csv") as output:
        output.start(assessor.card.title)
        held = [tensor_bytes() for _ in score(read_rows(path), output, assessor)]
    assert held[-1] <= held[0] + 10_000


def test_with_the_shipped_model(pictures: Path, tmp_path: Path, assessor: Assessor) -> None:
    path = pictures / "rows.csv"
    path.write_text("image,prompt\na.png,\n")
    assert run(path, tmp_path / "out.csv", assessor) == [""]
    (row,) = records(tmp_path / "out.csv")
    for aspect in (Aspect.QUALITY, Aspect.AUTHENTICITY):
        scale = assessor.card.scales[aspect]
        assert scale.low <= float(row[f"{aspect}_mos"]) <= scale.high
        assert row[f"{aspect}_description"]
    assert row["model"] == assessor.card.title
