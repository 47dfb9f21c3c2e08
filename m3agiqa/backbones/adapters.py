"""LoRA adapters, put into a module in place.

They are merged only where asked for: they may change weights by less than 16 bit, or even fewer, can hold.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from m3agiqa.errors import WeightsError


@contextmanager
def without_peft_notice() -> Iterator[None]:
    """Without a FutureWarning that users can do nothing about: PEFT (seen in 0.21) reads the attribute
    `is_gradient_checkpointing`, which transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def attach_lora(
    module: nn.Module, config: PeftConfig, weights: dict[str, Tensor], widen: bool = True
) -> PeftModel:
    """Put LoRA into a module, with weights by PEFT's names; returns PEFT's wrapper of the module.

    `widen`: LoRA computes in 32 bit in a module of 16. Raises ValueError for a weight that the module has no
    layer for, or a layer without its weight.
    """
    config.inference_mode = True
    with without_peft_notice():
        peft = PeftModel(module, config, autocast_adapter_dtype=widen)
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            _materialize(layer)
    result: Any = set_peft_model_state_dict(peft, weights)
    unmatched = [*result.unexpected_keys, *(name for name in result.missing_keys if ".lora_" in name)]
    if unmatched:
        raise ValueError(f"{unmatched[0]} has no counterpart")
    return peft


def load_adapter(module: nn.Module, folder: Path, merge: bool = False) -> nn.Module:
    """The module with the adapter of a folder in it, if there is such a folder; frozen.

    `merge` changes its weights, otherwise the adapter's layers stay apart. Raises WeightsError for another
    model's adapter.
    """
    if folder.is_dir():
        # Layers that stay apart run in the precision of the module, if that has 16 bit as their file has.
        widen = merge or next(module.parameters()).dtype == torch.float32
        weights = load_peft_weights(str(folder), "cpu")
        try:
            peft = attach_lora(module, PeftConfig.from_pretrained(str(folder)), weights, widen)
        except ValueError as error:
            raise WeightsError(f"The adapter {folder} is for another model: {error}.") from error
        module = peft.merge_and_unload() if merge else module
    return module.eval().requires_grad_(False)


def _materialize(layer: LoraLayer) -> None:
    """Move it to where the layer computes, if its base weights wait elsewhere until then.

    accelerate (seen in 1.15) keeps its hook in `_hf_hook`, which is private.
    """
    hook = getattr(layer.get_base_layer(), "_hf_hook", None)
    if hook is not None and hook.offload:
        for part in (layer.lora_A, layer.lora_B):
            part.to_empty(device=hook.execution_device)
