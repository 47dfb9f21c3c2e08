"""Predictors in the form of the paper's authors, made by the xlstm package itself."""

from pathlib import Path

import torch
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

DIM = 32


class Surprise:
    """Tells when a pickle is run."""

    def __reduce__(self) -> tuple:
        return (print, ("a pickle was run",))


class Theirs(nn.Module):
    """The authors' model by the paper's description and PAPER.md's key names, on the quadratic backends."""

    def __init__(self, vocabulary: int, length: int, seed: int = 0) -> None:
        """With random weights; `length` is that of the longest sequence."""
        super().__init__()
        torch.manual_seed(seed)
        self.W = nn.Linear(vocabulary, DIM)
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
                context_length=length,
                num_blocks=4,
                embedding_dim=DIM,
                slstm_at=[1],
            )
        )
        self.fc = nn.Sequential(nn.Linear(DIM, 128), nn.ReLU(), nn.Linear(128, 1))
        self.eval().requires_grad_(False)
        for parameter in self.parameters():  # nothing may hide behind zeros
            parameter += 0.1 * torch.randn_like(parameter)

    def forward(self, logits: Tensor) -> Tensor:
        return self.fc(self.xlstm_pooler.xlstm_stack(self.W(logits)).mean(1)).squeeze(-1)


def lightning_file(model: Theirs, path: Path, *, cuda: bool = True, mask: int | None = None) -> Path:
    """Saved as Lightning would, with the recurrent cell as the CUDA backend keeps it, if asked.

    `mask` is the side of the causal mask that older versions of the xlstm package saved as well.
    """
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    blocks = "model.xlstm_pooler.xlstm_stack.blocks."
    if cuda:
        cell = model.xlstm_pooler.xlstm_stack.blocks[1].xlstm.slstm_cell
        config = sLSTMCellConfig(hidden_size=DIM, num_heads=4)
        other = sLSTMCell_cuda(config, skip_backend_init=True)  # only for its layout
        prefix = f"{blocks}1.xlstm.slstm_cell."
        state[prefix + "_recurrent_kernel_"] = other._recurrent_kernel_ext2int(
            cell._recurrent_kernel_int2ext(cell._recurrent_kernel_)
        )
        state[prefix + "_bias_"] = other._bias_ext2int(cell._bias_int2ext(cell._bias_))
    if mask:
        state[f"{blocks}0.xlstm.mlstm_cell.causal_mask"] = torch.ones(mask, mask).tril().bool()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 11, "state_dict": state, "hparams_name": "kwargs"}, path)
    return path
