"""What reads the projected sequence before it is pooled: xLSTM (paper), and the others of its Table IV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_autograd
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import cpp_extension
from transformers import Mamba2Config, Mamba2Model

from m3agiqa.errors import InputError
from m3agiqa.predictor.config import PredictorConfig


@contextmanager
def _no_cuda_toolkit_needed() -> Iterator[None]:
    """Where there is a GPU, xlstm looks for a CUDA toolkit when it is imported, and fails if there is none.

    Only its "cuda" backend, which is not used here, would be compiled with it.
    """
    home = cpp_extension.CUDA_HOME
    cpp_extension.CUDA_HOME = home or "none"
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = home


with _no_cuda_toolkit_needed():
    from xlstm import (
        FeedForwardConfig,
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMBlockStack,
        xLSTMBlockStackConfig,
    )

CHUNK_SIZE = 64


def build_extractor(config: PredictorConfig, width: int) -> nn.Module:
    """A module of `config.blocks` layers: [B, L, width] and lengths [B] -> [B, L, width].

    What stands in the right-hand padding never reaches the positions before it. Raises InputError if the
    width or the number of blocks is not possible.
    """
    kinds = {
        "xlstm": XLSTM,
        "lstm": Recurrent,
        "gru": Recurrent,
        "transformer": Transformer,
        "mamba2": Mamba2,
    }
    if config.extractor in ("xlstm", "transformer", "mamba2") and width % config.heads:
        raise InputError(
            f"An extractor with {config.heads} heads cannot be {width} wide: dim must be a multiple of them."
        )
    if config.extractor == "xlstm" and max(config.slstm_at, default=-1) >= config.blocks:
        raise InputError(
            f"An xLSTM of {config.blocks} blocks has no block {max(config.slstm_at)} for sLSTM: "
            f"blocks must be at least {max(config.slstm_at) + 1}."
        )
    return kinds[config.extractor](config, width) if config.extractor in kinds else Nothing()


class Nothing(nn.Module):
    """Without an extractor the projected states are pooled as they are (paper, "w/o xLSTM")."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x


class Recurrent(nn.Module):
    """LSTM or GRU."""

    def __init__(self, config: PredictorConfig, width: int) -> None:
        super().__init__()
        layers = {"lstm": nn.LSTM, "gru": nn.GRU}[config.extractor]
        self.layers = layers(width, width, config.blocks, batch_first=True, dropout=config.dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        outputs: Tensor = self.layers(x)[0]
        return outputs


class Transformer(nn.Module):
    """Encoder layers with attention in both directions and learned positions."""

    def __init__(self, config: PredictorConfig, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(config.context_length, width))
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.layers = nn.TransformerEncoder(layer, config.blocks, norm, enable_nested_tensor=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        outputs: Tensor = self.layers(x + self.positions[: x.shape[1]], src_key_padding_mask=padding)
        return outputs


class Mamba2(nn.Module):
    """Mamba2 of the transformers library, in plain PyTorch where its kernels are not installed."""

    def __init__(self, config: PredictorConfig, width: int) -> None:
        super().__init__()
        self.layers = Mamba2Model(
            Mamba2Config(
                vocab_size=1,  # it is given states, not tokens
                pad_token_id=None,
                eos_token_id=None,
                bos_token_id=None,
                hidden_size=width,
                num_hidden_layers=config.blocks,
                num_heads=2 * config.heads,
                head_dim=width // config.heads,
                n_groups=1,
                state_size=32,
                conv_kernel=config.conv_kernel,
                chunk_size=CHUNK_SIZE,
                use_cache=False,
            )
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs_embeds=x).last_hidden_state
        return outputs


class XLSTM(nn.Module):
    """xLSTM blocks: sLSTM at `slstm_at`, mLSTM elsewhere (paper, Eq. 7)."""

    def __init__(self, config: PredictorConfig, width: int) -> None:
        super().__init__()
        self.layers = _xlstm(config, width)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        outputs: Tensor = self.layers(x)
        return outputs


def _xlstm(config: PredictorConfig, width: int) -> xLSTMBlockStack:
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
            embedding_dim=width,
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
        return F.pad(x, (0, 0, 0, -length % CHUNK_SIZE))

    hidden: Tensor = mlstm_chunkwise__native_autograd(
        pad(queries),
        pad(keys),
        pad(values),
        pad(igate_preact).squeeze(-1),
        pad(fgate_preact).squeeze(-1),
        chunk_size=CHUNK_SIZE,
        autocast_kernel_dtype=queries.dtype,
    )
    return hidden[:, :, :length]


def _sequential_slstm(cell: Any, training: bool, inputs: Tensor, states: Tensor) -> Tensor:
    """sLSTM step by step: the package's vanilla backend to 1e-6, several times as fast.

    That one writes every step into one large tensor, which autograd then copies whole for each step.
    inputs [S, B, gates * H], states [4, B, H] -> all states [4, S + 1, B, H].
    """
    kernel = cell._recurrent_kernel.transpose(1, 2)  # [heads, H / heads, gates * H / heads]
    heads, width, _ = kernel.shape
    steps = [states]
    for wx in inputs.unbind(0):
        y = states[0].view(-1, heads, width).transpose(0, 1)
        ry = (y @ kernel).view(heads, len(wx), -1, width).permute(1, 2, 0, 3).flatten(1)
        states, _ = cell.pointwise(wx, ry, cell._bias, states, constants=cell.config.constants)
        steps.append(states)
    return torch.stack(steps, dim=1)
