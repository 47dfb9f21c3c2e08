"""MiniCPM-Llama3-V 2.5 from transformers' parts, with the parameter names of the published weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings, Idefics2VisionTransformer

from m3agiqa.backbones.minicpm.resampler import Resampler
from m3agiqa.backbones.minicpm.slicing import Slices

MODEL_TYPE = "minicpmv"


class MiniCPMVConfig(LlamaConfig):
    """The published config.json: Llama's settings with those of vision encoder and resampler among them."""

    model_type = MODEL_TYPE

    vision_config: dict[str, Any] | None = None
    query_num: int = 96
    drop_vision_last_layer: bool = False


class MiniCPMV(PreTrainedModel):
    """Vision encoder, resampler and language model; see `m3agiqa.backbones.minicpm.backbone`."""

    config_class = MiniCPMVConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("LlamaDecoderLayer", "Idefics2EncoderLayer", "RowEmbeddings", "Resampler")

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__(config)
        facts = {name: value for name, value in config.vision_config.items() if name != "model_type"}
        vision = Idefics2VisionConfig(**facts)
        if config.drop_vision_last_layer:
            vision.num_hidden_layers -= 1
        self.llm = LlamaForCausalLM(config)
        self.vpm = VisionEncoder(vision)
        self.resampler = Resampler(config.query_num, config.hidden_size, vision.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Resampler):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    @property
    def vision_tower(self) -> VisionTower:
        return VisionTower(self.vpm, self.resampler)

    def embed(self, ids: Tensor, image: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """Tokens [L] -> [L, d], with image embeddings [..., d] in the positions `at` [L] that are True."""
        embedded = self.get_input_embeddings()(ids)
        if image is None or at is None:
            return embedded
        return embedded.masked_scatter(at[:, None], image.flatten(0, 1).to(embedded))


@dataclass(frozen=True)
class VisionTower:
    """Vision encoder and resampler."""

    vpm: VisionEncoder
    resampler: Resampler

    def __call__(self, slices: Slices) -> Tensor:
        """Embeddings of one image: [slices, queries, d]."""
        return self.resampler(self.vpm(slices.pixels), slices.sizes)


class VisionEncoder(Idefics2VisionTransformer):
    """SigLIP as Idefics2 has it, read the way MiniCPM-V 2.5 was trained and published.

    It takes the patches of a slice for one long row, so that only the first row of the position table is
    ever used; and the slices of one image, filled up to the longest of them, also attend to the filling.
    """

    def __init__(self, config: Idefics2VisionConfig) -> None:
        super().__init__(config)
        self.embeddings = RowEmbeddings(config)

    def forward(self, pixels: Sequence[Tensor]) -> Tensor:
        """Slices [3, patch, P_i * patch] of one image -> [slices, longest P, d]."""
        batch = pad_sequence([slice_.permute(2, 0, 1) for slice_ in pixels], batch_first=True)
        patches = self.embeddings(batch.permute(0, 2, 3, 1).to(self.embeddings.patch_embedding.weight))
        return self.post_layernorm(self.encoder(inputs_embeds=patches).last_hidden_state)


class RowEmbeddings(Idefics2VisionEmbeddings):
    """Patches with positions along one row."""

    def forward(self, pixels: Tensor) -> Tensor:  # type: ignore[override]  # no mask: all is read
        """[N, 3, patch, P * patch] -> [N, P, d]."""
        patches = self.patch_embedding(pixels)[:, :, 0].transpose(1, 2)
        positions = row_positions(patches.shape[1], self.num_patches_per_side)
        return patches + self.position_embedding(positions.to(patches.device))


def row_positions(count: int, sides: int) -> Tensor:
    """For each of so many patches, which of `sides` equal ranges of the row it falls into.

    The published code's own arithmetic, in 32 bit on the CPU: at the borders of the ranges, which many
    patches lie on, rounding decides, and transformers rounds differently today.
    """
    shares = torch.arange(0, 1 - 1e-6, 1 / torch.tensor(count))
    borders = torch.arange(1 / sides, 1.0, 1 / sides)
    return torch.bucketize(shares, borders, right=True)
