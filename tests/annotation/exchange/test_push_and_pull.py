"""Exports and models on the Hub, as the command line pushes and pulls them."""

import json
import re
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import constants
from seeded_cases import add, say

from annotation.__main__ import main
from annotation.exchange.exporting import MANIFEST_FILE, export
from annotation.store import Store
from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.card import SHIPPED_FOLDER, read_card
from m3agiqa.checkpoint.registry import push_model
from m3agiqa.download import hub as hub_downloads
from m3agiqa.samples import read_samples

REPOSITORY = "team/annotations"


@pytest.fixture
def first(store: Store, tmp_path: Path) -> Path:
    """An export of two images."""
    for number in range(2):
        say(store, add(store, number, "a cat"), {Aspect.QUALITY: 3}, "ann")
    return export(store, tmp_path / "first", name="pilot").folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def version(folder: Path) -> str:
    return json.loads((folder / MANIFEST_FILE).read_text())["version"]


def export_and_push(data: Path, out: Path, *more: str) -> int:
    command = ["export", "--data", str(data), "--out", str(out), "--name", "pilot"]
    return main([*command, "--push", REPOSITORY, *more], {})


def test_an_export_comes_back_as_it_was_in_each_version(
    hub: Hub, store: Store, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_and_push(tmp_path, first) == 0
    assert f"Pushed to {hub.url}" in capsys.readouterr().out
    assert hub.private == {REPOSITORY: True} and hub.messages == [version(first)]
    card = files(first)["README.md"].decode()
    assert "# pilot-" in card and "|quality|2|" in card and "data_files: samples.jsonl" in card

    say(store, add(store, 5, "a dog"), {Aspect.QUALITY: 2}, "bob")
    second = tmp_path / "second"
    assert export_and_push(tmp_path, second) == 0
    pulled = tmp_path / "pulled"
    assert main(["pull", REPOSITORY, "--out", str(pulled)], {}) == 0
    assert files(pulled) == files(second)
    assert main(["pull", f"{REPOSITORY}@{version(first)}", "--out", str(pulled)], {}) == 0
    assert files(pulled) == files(first)
    assert len(read_samples(pulled / "samples.jsonl")) == 2


def test_images_stay_here_if_asked(hub: Hub, store: Store, first: Path, tmp_path: Path) -> None:
    assert export_and_push(tmp_path, first, "--without-images") == 0
    assert main(["pull", REPOSITORY, "--out", str(tmp_path / "pulled")], {}) == 0
    assert files(tmp_path / "pulled") == {
        name: content for name, content in files(first).items() if not name.startswith("images/")
    }


def test_what_is_not_possible_is_told(
    hub: Hub,
    store: Store,
    first: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.folder, folder = None, hub.folder
    assert export_and_push(tmp_path, first) == 2
    said = "could not be pushed to team/annotations, the Hub says: This token may only read. .* HF_TOKEN"
    assert re.search(said, capsys.readouterr().err)
    with monkeypatch.context() as without_token:
        without_token.delenv("HF_TOKEN")
        without_token.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        assert export_and_push(tmp_path, first) == 2
    assert re.search("no token for the Hugging Face Hub .* HF_TOKEN", capsys.readouterr().err)
    assert main(["pull", REPOSITORY, "--out", str(tmp_path / "x")], {}) == 2
    assert f"Hub has no {REPOSITORY}" in capsys.readouterr().err
    hub.folder = folder
    (other := tmp_path / "other").mkdir()
    (other / "diary.txt").write_text("mine")
    hub.publish("team/other", other)
    assert main(["pull", "team/other", "--out", str(tmp_path / "x")], {}) == 2
    assert "is not an export: it has no manifest.json" in capsys.readouterr().err
    assert export_and_push(tmp_path, first) == 0
    assert main(["pull", REPOSITORY, "--out", str(other)], {}) == 2
    assert "holds other things than an export" in capsys.readouterr().err and (other / "diary.txt").exists()


def test_a_model_is_pushed_with_a_card_and_its_version(hub: Hub) -> None:
    shipped = read_card(SHIPPED_FOLDER / "nano")
    push_model(SHIPPED_FOLDER / "nano", "team/judge")
    folder = hub_downloads.snapshot("team/judge", revision=shipped.title.replace(" ", "-"))
    assert read_card(folder) == shipped  # which looks at every file
    text = (folder / "README.md").read_text()
    assert f"# {shipped.title}" in text and shipped.learned_from in text and "--model team/judge" in text
