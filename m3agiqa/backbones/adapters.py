"""Adapters of PEFT, put into a module in place: LoRA, and tensors that take the place of the module's own.

The fine-tuning of the paper's authors put LoRA into the language model's attention and, by PEFT's
modules_to_save, kept whole copies of the vision encoder, the resampler and the token embeddings. The latter
replace the base's tensors here, so that no module is in memory twice.
LoRA is merged only where asked for: it may change weights by less than 16 bit, or even fewer, can hold.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from m3agiqa.errors import WeightsError, reason

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
PEFT_PREFIX = "base_model.model."
SAVED_WHOLE = re.compile(r"\.modules_to_save(\.default)?(?=\.)")

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@contextmanager
def without_peft_notice() -> Iterator[None]:
    """Without a FutureWarning that users can do nothing about: PEFT (seen in 0.21) reads the attribute
    `is_gradient_checkpointing`, which transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def load_adapter(
    module: ModuleT,
    folder: Path,
    merge: bool = False,
    *,
    widen: bool | None = None,
    name: str | None = None,
    foreign: str = "another model",
) -> ModuleT:
    """The module with the adapter of a folder in it, if there is such a folder; frozen.

    `merge` changes its weights, otherwise LoRA's layers stay apart. `widen`: these compute in 32 bit; None:
    in the module's precision. Raises WeightsError for an adapter that is damaged, or `foreign`; it calls the
    adapter by `name`, or else by its folder.
    """
    if folder.is_dir():
        name = name or str(folder)
        config, weights = _read_adapter(folder, name)
        lora = {key: value for key, value in weights.items() if ".lora_" in key}
        try:
            for key in weights.keys() - lora.keys():
                _replace_tensor(module, SAVED_WHOLE.sub("", key.removeprefix(PEFT_PREFIX)), weights[key])
            if lora or not weights:
                if widen is None:
                    widen = merge or next(module.parameters()).dtype == torch.float32
                peft = _attach_lora(module, config, lora, widen)
                module = peft.merge_and_unload() if merge else module
        except (ValueError, RuntimeError) as error:
            raise WeightsError(f"The adapter {name} is for {foreign}: {reason(error)}.") from error
    return module.eval().requires_grad_(False)


def _read_adapter(folder: Path, name: str) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Settings, and weights by PEFT's names."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings that other versions of PEFT have
            config = PeftConfig.from_pretrained(str(folder))
        if (folder / WEIGHTS_FILE).exists():
            weights = load_file(folder / WEIGHTS_FILE)
        else:
            weights = torch.load(folder / PICKLED_FILE, map_location="cpu", weights_only=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{name} is no whole adapter: {reason(error)}. Download it anew.") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"The adapter {name} holds more than weights (in {PICKLED_FILE}); nothing of it was run."
        ) from error
    if not isinstance(config, LoraConfig):
        raise WeightsError(f"{name} is a {config.peft_type} adapter; only LoRA is supported.")
    return config, weights


def _replace_tensor(module: nn.Module, tensor: str, value: Tensor) -> None:
    """Put another tensor in the place of one of the module's, unless it is the same; ValueError."""
    try:
        old = module.get_parameter(tensor)
    except AttributeError as error:
        raise ValueError(f"{tensor} is not in it") from error
    if old.shape != value.shape:
        raise ValueError(f"{tensor} has the shape {tuple(value.shape)}, not {tuple(old.shape)}")
    new = value.to(old.device, old.dtype)
    if not torch.equal(new, old):
        parent, _, last = tensor.rpartition(".")
        setattr(module.get_submodule(parent), last, nn.Parameter(new, requires_grad=False))


def _attach_lora(module: nn.Module, config: LoraConfig, weights: dict[str, Tensor], widen: bool) -> PeftModel:
    """Put LoRA into a module; returns PEFT's wrapper of the module.

    Raises ValueError for a weight that the module has no layer for, or a layer without its weight.
    """
    config.inference_mode = True
    config.modules_to_save = None
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


def _materialize(layer: LoraLayer) -> None:
    """Move it to where the layer computes, if its base weights wait elsewhere until then.

    accelerate (seen in 1.15) keeps its hook in `_hf_hook`, which is private.
    """
    hook = getattr(layer.get_base_layer(), "_hf_hook", None)
    if hook is not None and hook.offload:
        for part in (layer.lora_A, layer.lora_B):
            part.to_empty(device=hook.execution_device)
