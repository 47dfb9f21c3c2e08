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
from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from m3agiqa.backbones.per_aspect import sharing_copy
from m3agiqa.errors import WeightsError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
SAVED_WHOLE = re.compile(r"\.modules_to_save(\.default)?(?=\.)")


M = TypeVar("M", bound=nn.Module)


def adapted(module: M, folder: Path) -> M:
    """A copy of the module with an adapter, sharing with it all tensors that the adapter leaves as they are.

    LoRA is not merged: it changes weights by less than 16 bit can hold. Raises WeightsError for an adapter
    that is damaged, or of another base.
    """
    config, weights = _read(folder)
    lora = {name: value for name, value in weights.items() if ".lora_" in name}
    whole = {SAVED_WHOLE.sub("", name): value for name, value in weights.items() if ".lora_" not in name}
    copy = sharing_copy(module)
    for name, value in whole.items():
        _replace(copy, name, value, folder)
    if lora:
        _attach(copy, config, lora, folder)
    return copy.eval().requires_grad_(False)


def _read(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
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
        raise WeightsError(f"{folder} is no whole adapter: {error}. Download it anew.") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{folder / PICKLED_FILE} holds more than weights; nothing of it was run."
        ) from error
    if not isinstance(config, LoraConfig):
        raise WeightsError(f"{folder} is a {config.peft_type} adapter; only LoRA is supported.")
    return config, {name.removeprefix(PREFIX): value for name, value in weights.items()}


def _replace(module: nn.Module, name: str, value: Tensor, folder: Path) -> None:
    """Put another tensor in the place of one of the module's, unless it is the same."""
    try:
        old = module.get_parameter(name)
    except AttributeError as error:
        raise _foreign(folder, f"{name} is not in it") from error
    if old.shape != value.shape:
        raise _foreign(folder, f"{name} has the shape {tuple(value.shape)}, not {tuple(old.shape)}")
    new = value.to(old.device, old.dtype)
    if not torch.equal(new, old):
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, nn.Parameter(new, requires_grad=False))


def _attach(module: nn.Module, config: LoraConfig, lora: dict[str, Tensor], folder: Path) -> None:
    config.modules_to_save, config.inference_mode = None, True
    try:
        with warnings.catch_warnings():  # PEFT reads an attribute by a name that transformers has given up
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            peft = PeftModel(module, config)
        result = set_peft_model_state_dict(peft, {PREFIX + name: value for name, value in lora.items()})
    except (ValueError, RuntimeError) as error:
        raise _foreign(folder, str(error)) from error
    lacking = [name for name in result.missing_keys if ".lora_" in name]
    if result.unexpected_keys or lacking:
        raise _foreign(folder, f"{[*result.unexpected_keys, *lacking][0]} has no counterpart")


def _foreign(folder: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"The adapter in {folder} is for another base than this MiniCPM-Llama3-V 2.5: {reason}."
    )
