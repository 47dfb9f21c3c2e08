import json
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select
from waiting import wait_until

from annotation.__main__ import main
from annotation.store import Store
from annotation.store.models import Item, QueueEntry

Png = Callable[[int], bytes]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"M3AGIQA_DATA": str(tmp_path / "data")}


@pytest.fixture
def table(tmp_path: Path, png: Png) -> Path:
    (tmp_path / "cat.png").write_bytes(png(1))
    path = tmp_path / "table.csv"
    path.write_text("image,prompt,annotator,quality\ncat.png,a cat,ann,4\ngone.png,a dog,ann,3\n")
    return path


def opened(tmp_path: Path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/data/annotations.db", tmp_path / "data/images")


def test_import_then_export(
    table: Path, tmp_path: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(table), "--overlap", "3", "--name", "pets"], environment) == 0
    said = capsys.readouterr()
    assert said.out.startswith("1 image added")
    assert "line 3: There is no file gone.png." in said.err
    out = tmp_path / "out"
    arguments = ["export", "--out", str(out), "--aspect", "quality", "--min-raters", "1", "--mos", "mean"]
    assert main([*arguments, "--source", "pets"], environment) == 0
    assert "1 image (" in capsys.readouterr().out
    assert json.loads((out / "samples.jsonl").read_text())["mos"] == {"quality": 4.0}
    with opened(tmp_path).database.reading() as session:
        assert session.scalar(select(QueueEntry.overlap)) == 3


def test_the_data_folder_can_be_given(table: Path, tmp_path: Path) -> None:
    assert main(["import", str(table), "--data", str(tmp_path / "data")], {}) == 0
    assert (tmp_path / "data/annotations.db").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["import", "nowhere.csv"], "There is no file or folder nowhere.csv."),
        (["export", "--out", "out"], "There are no annotations yet: nobody has scored an image."),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str], sentence: str, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments, environment) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == sentence


def test_if_nothing_could_be_imported_the_exit_code_says_so(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    path = tmp_path / "table.csv"
    path.write_text("image\ngone.png\n")
    assert main(["import", str(path)], environment) == 2


def test_ctrl_c_says_what_is_in(
    tmp_path: Path, png: Png, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number}.png").write_bytes(png(number))

    def press() -> None:
        wait_until(lambda: sum(1 for _ in (tmp_path / "data/images").glob("*/*")) >= 70)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background have none
    try:
        threading.Thread(target=press, daemon=True).start()
        assert main(["import", str(folder)], environment) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    told = int(re.search(r"Interrupted: (\d+) of 300 images are in", capsys.readouterr().err)[1])
    with opened(tmp_path).database.reading() as session:
        there = session.scalar(select(func.count(Item.id)))
    assert 50 <= told <= there < 300
    assert main(["import", str(folder)], environment) == 0
    assert f"{300 - there} images added, {there} known already" in capsys.readouterr().out
