"""From a folder with the published files to a model, each tensor straight to its device and precision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from packaging.version import Version
from safetensors import SafetensorError, safe_open

from m3agiqa.backbones.devices import main_device, settle
from m3agiqa.backbones.memory import enough_to_load, fitting
from m3agiqa.backbones.minicpm.base_weights import base_folder
from m3agiqa.backbones.minicpm.memory import USUAL_WORK, Work, memory_needed
from m3agiqa.backbones.minicpm.model import MODEL_TYPE, MiniCPMV, MiniCPMVConfig
from m3agiqa.backbones.minicpm.slicing import Slicing
from m3agiqa.backbones.placement import Placement, Quantization
from m3agiqa.backbones.quiet import quiet_transformers
from m3agiqa.errors import WeightsError

MODEL_TITLE = "MiniCPM-Llama3-V 2.5"
OLDEST_TRANSFORMERS = "5.20"
CONFIG_FILE = "config.json"
SLICING_FILE = "preprocessor_config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
PUBLISHED_SETTINGS = Path(__file__).parent / "published"
"""A folder with the settings as they were published, and no weights."""
MAX_NAMES = 3  # at most so many names in a message


def load_model(
    folder: Path,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    quantize: Quantization | None = None,
    work: Work = USUAL_WORK,
    **options: object,
) -> MiniCPMV:
    """The model in a folder, frozen and ready for inference.

    `device` and `quantize` as in Placement; without `dtype` it has the files' precision, which on the CPU is
    bfloat16 instead of float16. Other options are those of transformers' `from_pretrained` (offload_folder,
    ...) and take precedence.
    Raises WeightsError if the folder is not whole, or another model's, or there is too little memory for the
    model at `work`.
    """
    check_transformers()
    config = read_config(folder)
    empty = without_weights(config)
    check_tensors(empty, folder)
    placed = fitted(empty, folder, Placement(device, quantize), work, dtype)
    with enough_to_load(MODEL_TITLE), quiet_transformers():
        model = MiniCPMV.from_pretrained(folder, config=config, **{**placed, **options})
        settle(model)
    return model.eval().requires_grad_(False)


def check_room(revision: str | None, placement: Placement, work: Work) -> None:
    """Raises what `load_model` would if there were too little memory, before the weights are downloaded."""
    folder = base_folder(revision=revision, files=(CONFIG_FILE, SLICING_FILE))
    fitted(without_weights(read_config(folder)), folder, placement, work)


def fitted(
    model: MiniCPMV, folder: Path, placement: Placement, work: Work, dtype: torch.dtype | None = None
) -> dict[str, object]:
    """As `fitting` has it, for a model on the meta device whose settings are in a folder."""
    dtype = dtype or usual_dtype(model.config, main_device(placement.device))
    needed = memory_needed(model, dtype, placement.quantize, work, read_slicing(folder))
    return fitting(MODEL_TITLE, model, model.llm.model, dtype, placement, needed.beside)


def check_transformers(installed: str = transformers.__version__) -> None:
    """Raises WeightsError if the library is too old."""
    if Version(installed) < Version(OLDEST_TRANSFORMERS):
        raise WeightsError(
            f"MiniCPM needs transformers {OLDEST_TRANSFORMERS} or newer, and {installed} is installed. "
            "Run: pip install --upgrade transformers"
        )


def read_config(folder: Path) -> MiniCPMVConfig:
    """The model's settings. Raises WeightsError if there are none, or those of another model."""
    facts = _read_json(folder / CONFIG_FILE)
    kind, version = facts.get("model_type"), str(facts.get("version", "2.5"))
    if kind != MODEL_TYPE or version != "2.5":
        named = f"{kind} {version}" if kind == MODEL_TYPE else kind
        raise WeightsError(f"{folder} holds a model of type {named}; MiniCPM-Llama3-V 2.5 is needed here.")
    if not isinstance(facts.get("vision_config"), dict):
        raise WeightsError(f"{folder / CONFIG_FILE} is damaged: it has no vision_config. Download it anew.")
    try:
        return MiniCPMVConfig(**{name: value for name, value in facts.items() if name != "model_type"})
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise WeightsError(f"{folder / CONFIG_FILE} is damaged: {error}") from error


def read_slicing(folder: Path) -> Slicing:
    """How the model's images are cut; as published where the folder does not say."""
    path = folder / SLICING_FILE
    return Slicing.from_config(_read_json(path)) if path.exists() else Slicing()


def usual_dtype(config: MiniCPMVConfig, device: torch.device) -> torch.dtype:
    """The precision of the files, except where the CPU would be slow in it."""
    stored = config.dtype or torch.float32
    return torch.bfloat16 if stored == torch.float16 and device.type == "cpu" else stored


def without_weights(config: MiniCPMVConfig) -> MiniCPMV:
    """The model on the meta device, which knows shapes alone."""
    with torch.device("meta"):
        return MiniCPMV(config)


def check_tensors(model: MiniCPMV, folder: Path) -> None:
    """Raises WeightsError unless the files hold each of the model's tensors, in its shape, and no other."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stored: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                stored |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is damaged ({error}). Delete it and download it anew.") from error
    missing = sorted(expected.keys() - stored.keys())
    unknown = sorted(stored.keys() - expected.keys())
    unlike = sorted(name for name in expected.keys() & stored.keys() if expected[name] != stored[name])
    for names, what in ((missing, "lack"), (unknown, "hold what the model does not have:")):
        if names:
            raise WeightsError(f"The weights in {folder} {what} {_some(names)}. Download them anew.")
    if unlike:
        name = unlike[0]
        raise WeightsError(
            f"The weights in {folder} do not fit its {CONFIG_FILE}: {name} has the shape {stored[name]}, "
            f"and {expected[name]} is needed."
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises WeightsError naming those that are missing."""
    index = folder / INDEX_FILE
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    if not index.exists():
        raise WeightsError(f"{folder} has no weights: neither {INDEX_FILE} nor {SINGLE_FILE} is there.")
    facts = _read_json(index)
    shards = facts.get("weight_map")
    if not isinstance(shards, dict) or "metadata" not in facts:
        raise WeightsError(f"{index} is damaged: weight_map or metadata is missing. Download it anew.")
    names = sorted(set(shards.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise WeightsError(
            f"{len(missing)} of {len(names)} weight files are missing in {folder}: {_some(missing)}. "
            "Download them, then start again."
        )
    return [folder / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}. Download the model anew.") from error
    except ValueError as error:
        raise WeightsError(f"{path} is damaged: {error}. Download it anew.") from error
    if not isinstance(facts, dict):
        raise WeightsError(f"{path} is damaged: it holds no settings. Download it anew.")
    return facts


def _some(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
