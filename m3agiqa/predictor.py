"""The predictor: from what the MLLM held in mind to a mean opinion score (paper, Eq. 6-9)."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Literal

import torch
from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_autograd
from torch import Tensor, nn
from torch.nn import functional as F
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMBlockStack,
    xLSTMBlockStackConfig,
)

CHUNK = 64


@dataclass(frozen=True)
class PredictorConfig:
    """Shape of a predictor; the defaults are the paper's, except the input size."""

    input_size: int
    """Width of the input: the backbone's hidden size, or its vocabulary for projection="vocab"."""
    projection: Literal["hidden", "vocab"] = "hidden"
    """What W_proj reads. "vocab" takes logits as in the paper; for a frozen head both are the same
    function class, and `Predictor.fuse` turns a vocab predictor into a hidden one exactly."""
    dim: int = 512
    """Width of W_proj's output and of the xLSTM."""
    blocks: int = 4
    slstm_at: tuple[int, ...] = (1,)
    """Blocks that are sLSTM; the others are mLSTM."""
    heads: int = 4
    conv_kernel: int = 4
    qkv_block: int = 4
    feedforward_factor: float = 1.3
    regression_dim: int = 128
    """Width between the two layers of the regression head."""
    dropout: float = 0.0
    context_length: int = 1024
    """Longest sequence that is read; of a longer one only the beginning is."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slstm_at", tuple(self.slstm_at))  # JSON has lists only


class Predictor(nn.Module):
    """W_proj -> xLSTM blocks -> mean over the sequence -> Linear, ReLU, Linear -> MOS."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.input_size, config.dim)
        self.xlstm = _xlstm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.regression = nn.Sequential(
            nn.Linear(config.dim, config.regression_dim), nn.ReLU(), nn.Linear(config.regression_dim, 1)
        )

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """states [B, L, input_size], right-padded; lengths [B] -> raw MOS [B], not clamped to a scale."""
        states = states[:, : self.config.context_length]
        lengths = lengths.clamp_max(self.config.context_length)
        # xLSTM is causal, so what stands in the padding cannot reach the states that are averaged.
        outputs = self.xlstm(self.projection(states.to(self.projection.weight.dtype)))
        inside = torch.arange(states.shape[1]) < lengths[:, None]
        pooled = (outputs * inside[..., None]).sum(1) / lengths[:, None]
        return self.regression(self.dropout(pooled)).squeeze(-1)

    @torch.inference_mode()
    def predict(self, states: Tensor) -> float:
        """Raw MOS of one conversation's states [L, input_size]."""
        return self(states[None], torch.tensor([len(states)])).item()

    def fuse(self, head: Tensor) -> Predictor:
        """The same function on hidden states: W_proj (W_head h) = (W_proj W_head) h.

        head [vocab, d] is the frozen output matrix that this predictor's logits came from.
        """
        if self.config.projection != "vocab":
            raise ValueError("only a predictor over the vocabulary can be fused with an output head")
        config = PredictorConfig(**{**vars(self.config), "projection": "hidden", "input_size": head.shape[1]})
        fused = Predictor(config)
        weights = self.state_dict()
        weights["projection.weight"] = weights["projection.weight"] @ head.to(self.projection.weight.dtype)
        fused.load_state_dict(weights)
        return fused.train(self.training)


def _xlstm(config: PredictorConfig) -> xLSTMBlockStack:
    stack = xLSTMBlockStack(
        xLSTMBlockStackConfig(
            mlstm_block=mLSTMBlockConfig(
                mlstm=mLSTMLayerConfig(
                    conv1d_kernel_size=config.conv_kernel,
                    qkv_proj_blocksize=config.qkv_block,
                    num_heads=config.heads,
                )
            ),
            slstm_block=sLSTMBlockConfig(
                slstm=sLSTMLayerConfig(
                    backend="vanilla",
                    num_heads=config.heads,
                    conv1d_kernel_size=config.conv_kernel,
                    bias_init="powerlaw_blockdependent",
                ),
                feedforward=FeedForwardConfig(proj_factor=config.feedforward_factor, act_fn="gelu"),
            ),
            context_length=config.context_length,
            num_blocks=config.blocks,
            embedding_dim=config.dim,
            slstm_at=list(config.slstm_at),
            dropout=config.dropout,
        )
    )
    for index, block in enumerate(stack.blocks):
        if index not in config.slstm_at:
            block.xlstm.mlstm_cell.backend_fn = _chunkwise_mlstm
            # The quadratic form's mask is not needed; it would be the largest tensor of a checkpoint.
            block.xlstm.mlstm_cell.causal_mask = None
        else:
            block.xlstm.slstm_cell._impl = MethodType(_sequential_slstm, block.xlstm.slstm_cell)
    return stack


def _chunkwise_mlstm(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    igate_preact: Tensor,
    fgate_preact: Tensor,
    lower_triangular_matrix: Tensor | None = None,
) -> Tensor:
    """mLSTM in chunks: the package's quadratic form to 1e-6, in linear time and memory."""
    length = queries.shape[2]

    def pad(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, -length % CHUNK))

    hidden = mlstm_chunkwise__native_autograd(
        pad(queries),
        pad(keys),
        pad(values),
        pad(igate_preact).squeeze(-1),
        pad(fgate_preact).squeeze(-1),
        chunk_size=CHUNK,
        autocast_kernel_dtype=queries.dtype,
    )
    return hidden[:, :, :length]


def _sequential_slstm(cell: nn.Module, training: bool, inputs: Tensor, states: Tensor) -> Tensor:
    """sLSTM step by step: the package's vanilla backend to 1e-6, several times as fast.

    That one writes every step into one large tensor, which autograd then copies whole for each step.
    inputs [S, B, gates * H], states [4, B, H] -> all states [4, S + 1, B, H].
    """
    kernel = cell._recurrent_kernel.transpose(1, 2)  # [heads, H / heads, gates * H / heads]
    heads, width, _ = kernel.shape
    steps = [states]
    for wx in inputs.unbind(0):
        y = states[0].view(-1, heads, width).transpose(0, 1)
        ry = (y @ kernel).unflatten(-1, (-1, width)).permute(1, 2, 0, 3).flatten(1)
        states, _ = cell.pointwise(wx, ry, cell._bias, states, constants=cell.config.constants)
        steps.append(states)
    return torch.stack(steps, dim=1)
