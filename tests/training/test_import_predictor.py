"""A checkpoint in the authors' form, made by the xlstm package itself, becomes the same function."""

import json
from pathlib import Path

import pytest
import torch
from lightning_checkpoint import Surprise, Theirs, lightning_file
from safetensors.torch import save_file

from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.predictor_weights import load_predictor
from m3agiqa.predictor.config import PredictorConfig
from m3agiqa.predictor.model import Predictor
from training.__main__ import main
from training.convert import PREDICTOR_FILE

VOCABULARY, LENGTH = 97, 24


@pytest.fixture
def theirs() -> Theirs:
    return Theirs(VOCABULARY, LENGTH)


def run(*arguments: object) -> int:
    return main(["import-predictor", *map(str, arguments), "--aspect", "quality"])


def imported(folder: Path) -> Predictor:
    shape = json.loads((folder / PREDICTOR_FILE).read_text())["predictor"]
    return load_predictor(folder, Aspect.QUALITY, PredictorConfig(**shape))


@pytest.mark.parametrize("cuda", [True, False])
def test_converted_predictor_is_the_same_function(theirs: Theirs, tmp_path: Path, cuda: bool) -> None:
    file = lightning_file(theirs, tmp_path / "best.ckpt", cuda=cuda)
    assert run(file, "--out", tmp_path / "out") == 0
    predictor = imported(tmp_path / "out")
    assert predictor.config.projection == "vocab"
    logits = torch.randn(3, LENGTH, VOCABULARY)
    with torch.inference_mode():
        expected = theirs(logits)
        assert expected.std() > 0.01
        found = predictor(logits, torch.full((3,), LENGTH))
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("mask", "options", "length"),
    [(None, (), 512), (24, (), 24), (None, ("--context-length", 768), 768)],
    ids=["theirs", "of the mask", "given"],
)
def test_sequences_are_cut_as_they_were_in_training(
    theirs: Theirs, tmp_path: Path, mask: int | None, options: tuple, length: int
) -> None:
    file = lightning_file(theirs, tmp_path / "best.ckpt", mask=mask)
    assert run(file, "--out", tmp_path / "out", *options) == 0
    assert imported(tmp_path / "out").config.context_length == length


def test_fused_with_a_head_it_reads_hidden_states(theirs: Theirs, tmp_path: Path) -> None:
    file = lightning_file(theirs, tmp_path / "best.ckpt")
    head = torch.randn(VOCABULARY, 12)
    save_file({"lm_head.weight": head}, tmp_path / "head.safetensors")
    assert run(file, "--out", tmp_path / "out", "--head", tmp_path / "head.safetensors") == 0
    predictor = imported(tmp_path / "out")
    assert (predictor.config.projection, predictor.config.input_size) == ("hidden", 12)
    hidden = torch.randn(2, LENGTH, 12)
    with torch.inference_mode():
        found = predictor(hidden, torch.full((2,), LENGTH))
        assert torch.allclose(found, theirs(hidden @ head.T), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"state_dict": {"model.W.weight": torch.zeros(2, 2)}}, "is not a predictor of the paper's authors"),
        ({"weights": 1}, "has no state_dict"),
        ({"state_dict": {}, "extra": Surprise()}, "holds more than weights"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, capsys, content, sentence: str) -> None:
    torch.save(content, tmp_path / "file.ckpt")
    assert run(tmp_path / "file.ckpt", "--out", tmp_path / "out") == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert "a pickle was run" not in told.out
    assert not (tmp_path / "out").exists()


def test_missing_and_garbled_files_are_named(theirs: Theirs, tmp_path: Path, capsys) -> None:
    assert run(tmp_path / "none.ckpt", "--out", tmp_path) == 2
    assert "Cannot read" in capsys.readouterr().err
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    assert run(tmp_path / "text.ckpt", "--out", tmp_path) == 2
    file = lightning_file(theirs, tmp_path / "best.ckpt")
    save_file({"lm_head.weight": torch.zeros(5, 5)}, tmp_path / "head.safetensors")
    assert run(file, "--out", tmp_path / "out", "--head", tmp_path / "head.safetensors") == 2
    assert "must hold one matrix with 97 rows" in capsys.readouterr().err
