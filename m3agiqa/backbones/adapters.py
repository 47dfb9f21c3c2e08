"""LoRA, put into a module in place.

It is not merged: it may change weights by less than 16 bit, or even fewer, can hold.
"""

from __future__ import annotations

import warnings

from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


def attach(
    module: nn.Module, config: LoraConfig, weights: dict[str, Tensor], widen: bool = True
) -> list[str]:
    """Returns names of weights that the module has no place for, or that its places lack.

    `widen`: LoRA computes in 32 bit in a module of 16. Weights are named as PEFT saves them.
    """
    config.inference_mode = True
    with warnings.catch_warnings():  # PEFT reads an attribute by a name that transformers has given up
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        peft = PeftModel(module, config, autocast_adapter_dtype=widen)
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            _bring(layer)
    result = set_peft_model_state_dict(peft, weights)
    return [*result.unexpected_keys, *(name for name in result.missing_keys if ".lora_" in name)]


def _bring(layer: LoraLayer) -> None:
    """To where the layer is at work, if its own weights wait elsewhere until then."""
    hook = getattr(layer.get_base_layer(), "_hf_hook", None)
    if hook is not None and hook.offload:
        for part in (layer.lora_A, layer.lora_B):
            part.to_empty(device=hook.execution_device)
