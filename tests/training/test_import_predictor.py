"""A checkpoint in the authors' form, made by the xlstm package itself, becomes the same function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMBlockStack,
    xLSTMBlockStackConfig,
)
from xlstm.blocks.slstm.cell import sLSTMCell_cuda, sLSTMCellConfig

from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint import load_predictor
from m3agiqa.predictor import PredictorConfig
from training.__main__ import main
from training.import_predictor import PREDICTOR_FILE

VOCABULARY, DIM, LENGTH = 97, 32, 24


class Theirs(nn.Module):
    """The authors' model by the paper's description and PAPER.md's key names, on the quadratic backends."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Linear(VOCABULARY, DIM)
        self.xlstm_pooler = nn.Module()
        self.xlstm_pooler.xlstm_stack = xLSTMBlockStack(
            xLSTMBlockStackConfig(
                mlstm_block=mLSTMBlockConfig(
                    mlstm=mLSTMLayerConfig(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=4)
                ),
                slstm_block=sLSTMBlockConfig(
                    slstm=sLSTMLayerConfig(
                        backend="vanilla",
                        num_heads=4,
                        conv1d_kernel_size=4,
                        bias_init="powerlaw_blockdependent",
                    ),
                    feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
                ),
                context_length=LENGTH,
                num_blocks=4,
                embedding_dim=DIM,
                slstm_at=[1],
            )
        )
        self.fc = nn.Sequential(nn.Linear(DIM, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, logits: Tensor) -> Tensor:
        return self.fc(self.xlstm_pooler.xlstm_stack(self.W(logits)).mean(1)).squeeze(-1)


@pytest.fixture
def theirs() -> Theirs:
    torch.manual_seed(0)
    model = Theirs().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing may hide behind zeros
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def lightning_file(model: Theirs, path: Path, *, cuda: bool) -> Path:
    """Saved as Lightning would; with the recurrent cell as the CUDA backend keeps it, if asked."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    if cuda:
        cell = model.xlstm_pooler.xlstm_stack.blocks[1].xlstm.slstm_cell
        config = sLSTMCellConfig(hidden_size=DIM, num_heads=4)
        other = sLSTMCell_cuda(config, skip_backend_init=True)  # only for its layout
        prefix = "model.xlstm_pooler.xlstm_stack.blocks.1.xlstm.slstm_cell."
        state[prefix + "_recurrent_kernel_"] = other._recurrent_kernel_ext2int(
            cell._recurrent_kernel_int2ext(cell._recurrent_kernel_)
        )
        state[prefix + "_bias_"] = other._bias_ext2int(cell._bias_int2ext(cell._bias_))
    torch.save({"epoch": 11, "state_dict": state, "hparams_name": "kwargs"}, path)
    return path


def run(*arguments: object) -> int:
    return main(["import-predictor", *map(str, arguments), "--aspect", "quality"])


def imported(folder: Path):
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


def test_fused_with_a_head_it_reads_hidden_states(theirs: Theirs, tmp_path: Path) -> None:
    file = lightning_file(theirs, tmp_path / "best.ckpt", cuda=True)
    head = torch.randn(VOCABULARY, 12)
    save_file({"lm_head.weight": head}, tmp_path / "head.safetensors")
    assert run(file, "--out", tmp_path / "out", "--head", tmp_path / "head.safetensors") == 0
    predictor = imported(tmp_path / "out")
    assert (predictor.config.projection, predictor.config.input_size) == ("hidden", 12)
    hidden = torch.randn(2, LENGTH, 12)
    with torch.inference_mode():
        found = predictor(hidden, torch.full((2,), LENGTH))
        assert torch.allclose(found, theirs(hidden @ head.T), atol=1e-4, rtol=1e-4)


class Surprise:
    def __reduce__(self):
        return (print, ("a pickle was run",))


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
    file = lightning_file(theirs, tmp_path / "best.ckpt", cuda=True)
    save_file({"lm_head.weight": torch.zeros(5, 5)}, tmp_path / "head.safetensors")
    assert run(file, "--out", tmp_path / "out", "--head", tmp_path / "head.safetensors") == 2
    assert "must hold one matrix with 97 rows" in capsys.readouterr().err
