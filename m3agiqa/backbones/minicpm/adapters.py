"""Adapters: PEFT folders over the whole model or a part of it, by the published module names.

The fine-tuning of the paper's authors put LoRA into the language model's attention and, by PEFT's
modules_to_save, kept whole copies of the vision encoder, the resampler and the token embeddings. The latter
take the place of the base's tensors here, so that no module is in memory twice.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import TypeVar

import torch
from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from m3agiqa.backbones.adapters import attach_lora
from m3agiqa.backbones.per_aspect import sharing_copy
from m3agiqa.errors import WeightsError, reason

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
PEFT_PREFIX = "base_model.model."
SAVED_WHOLE = re.compile(r"\.modules_to_save(\.default)?(?=\.)")


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def with_adapter(module: ModuleT, folder: Path, name: str | None = None) -> ModuleT:
    """A copy of the module with an adapter, sharing with it all tensors that the adapter leaves as they are.

    LoRA is not merged: it changes weights by less than 16 bit can hold. Raises WeightsError for an adapter
    that is damaged, or of another base; it calls the adapter by `name`, or else by its folder.
    """
    name = name or str(folder)
    config, weights = _read(folder, name)
    lora = {name: value for name, value in weights.items() if ".lora_" in name}
    whole = {SAVED_WHOLE.sub("", name): value for name, value in weights.items() if ".lora_" not in name}
    copy = sharing_copy(module)
    for tensor, value in whole.items():
        _replace(copy, tensor, value, name)
    if lora:
        _attach(copy, config, lora, name)
    return copy.eval().requires_grad_(False)


def _read(folder: Path, name: str) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Settings and weights, by names within the module."""
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
    return config, {name.removeprefix(PEFT_PREFIX): value for name, value in weights.items()}


def _replace(module: nn.Module, tensor: str, value: Tensor, adapter: str) -> None:
    """Put another tensor in the place of one of the module's, unless it is the same."""
    try:
        old = module.get_parameter(tensor)
    except AttributeError as error:
        raise _foreign(adapter, f"{tensor} is not in it") from error
    if old.shape != value.shape:
        raise _foreign(adapter, f"{tensor} has the shape {tuple(value.shape)}, not {tuple(old.shape)}")
    new = value.to(old.device, old.dtype)
    if not torch.equal(new, old):
        parent, _, last = tensor.rpartition(".")
        setattr(module.get_submodule(parent), last, nn.Parameter(new, requires_grad=False))


def _attach(module: nn.Module, config: LoraConfig, lora: dict[str, Tensor], adapter: str) -> None:
    config.modules_to_save = None
    try:
        attach_lora(module, config, {PEFT_PREFIX + name: value for name, value in lora.items()})
    except (ValueError, RuntimeError) as error:
        raise _foreign(adapter, reason(error)) from error


def _foreign(adapter: str, why: str) -> WeightsError:
    return WeightsError(f"The adapter {adapter} is for another base than this MiniCPM-Llama3-V 2.5: {why}.")
