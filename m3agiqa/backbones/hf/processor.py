"""Processors of transformers for still images, where what only videos need is not installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    PretrainedConfig,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.utils import is_torchvision_available

from m3agiqa.errors import WeightsError


class NoVideo:
    """Stands where a video processor is expected, all of which need torchvision; has none of its settings."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class StillsOnly:
    """Put before a processor's class, it lets NoVideo take the video processor's place.

    It overrides a method that transformers (seen in 5.24) does not document.
    """

    def check_argument_for_proper_class(
        self, argument_name: str, argument: object
    ) -> type | tuple[type, ...]:
        if argument_name == "video_processor":
            return NoVideo
        return super().check_argument_for_proper_class(argument_name, argument)

    def __repr__(self) -> str:
        return type(self).__name__  # the library would write out all settings, also those of NoVideo


def load_processor(folder: Path, config: PretrainedConfig) -> ProcessorMixin:
    """The processor of a model's folder. Images are prepared by PIL wherever transformers can do so, that is
    the same with torchvision and without.

    Raises WeightsError where there is none, or where it needs torchvision or code of the folder's own.
    """
    kind = _processor_class(folder, config)
    try:
        parts = [_part(name, folder) for name in kind.get_attributes()]
        settings, _ = kind.get_processor_dict(folder)
        _replace_num2words(kind)
        stills = type(kind.__name__, (StillsOnly, kind), {})
        processor = stills.from_args_and_dict(parts, settings)
    except (ImportError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if "torchvision" in str(error).lower() and not is_torchvision_available():
            raise WeightsError(
                f"Models of the type {config.model_type} need torchvision to prepare images. Install it: "
                "pip install torchvision"
            ) from error
        if "trust_remote_code" in str(error):
            raise WeightsError(
                f"{folder} has a processor that is code of its own; code that comes with a model is not run."
            ) from error
        raise WeightsError(f"{folder} has no usable processor for images and text: {error}") from error
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _processor_class(folder: Path, config: PretrainedConfig) -> type[ProcessorMixin]:
    """The class that the folder names, or else the one of the model's type."""
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        path = folder / name
        named = json.loads(path.read_text(encoding="utf-8")).get("processor_class") if path.exists() else None
        kind = named and processor_class_from_name(named)
        if kind:
            return kind
    if type(config) not in PROCESSOR_MAPPING:
        raise WeightsError(
            f"{folder} names no processor for images and text, and transformers has none for models of the "
            f"type {config.model_type}."
        )
    return PROCESSOR_MAPPING[type(config)]


def _part(name: str, folder: Path) -> object:
    no_code = {"trust_remote_code": False}  # else the library would ask on the terminal whether to run it
    if "tokenizer" in name:
        return AutoTokenizer.from_pretrained(folder, **no_code)
    if name == "image_processor":
        return AutoImageProcessor.from_pretrained(folder, backend="pil", **no_code)
    if name == "video_processor":
        return NoVideo()
    return AutoFeatureExtractor.from_pretrained(folder, **no_code)


def _replace_num2words(kind: type[ProcessorMixin]) -> None:
    """SmolVLM's processor (seen in transformers 5.24) cannot be made without num2words, which spells the
    number of a video's frames; so its module's global is replaced."""
    module = sys.modules[kind.__module__]
    if getattr(module, "num2words", str) is None:
        module.num2words = str
