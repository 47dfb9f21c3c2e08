"""The parts of a model, found in its tree of modules: vision tower, language model, what connects them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from m3agiqa.errors import WeightsError


@dataclass(frozen=True)
class ModelParts:
    """Every weight of a model is in exactly one of these."""

    vision: nn.Module
    """What takes pixel values. Some families (Qwen) have the projection to the language model in it."""
    connector: nn.Module
    """All that is neither of the others; may be without weights."""
    language: nn.ModuleDict
    """`model`, the decoder with its embeddings, and `head`."""


def split_model(model: PreTrainedModel) -> ModelParts:
    """Find the parts. Raises WeightsError for a model that is put together in another way."""
    text, head = model.get_decoder(), model.get_output_embeddings()
    if head is None or text in (model, model.base_model) or model.config.is_encoder_decoder:
        raise WeightsError(
            f"Models of the type {model.config.model_type} cannot be used: they have no decoder of their own "
            "with an output head."
        )
    vision = _vision_tower(model)
    language = nn.ModuleDict({"model": text, "head": head})
    return ModelParts(vision, _rest(model, {vision, text, head}), language)


def linear_layer_pattern(module: nn.Module) -> str:
    """Pattern for the names of all linear layers inside a module, as PEFT takes it."""
    kinds = {name: type(layer) for name, layer in module.named_modules()}
    linear = {name for name, kind in kinds.items() if kind is nn.Linear}
    patterns = set()
    for name in linear:
        pattern = re.escape(name)
        general = re.sub(r"(?<=\.)\d+(?=\\\.|$)", r"\\d+", pattern)
        same = {other for other in kinds if re.fullmatch(general, other)}
        patterns.add(general if same <= linear else pattern)
    return "|".join(sorted(patterns))


def _vision_tower(model: PreTrainedModel) -> nn.Module:
    settings = getattr(model.config, "vision_config", None)
    if settings is not None:
        for module in model.modules():
            if type(getattr(module, "config", None)) is type(settings):
                return module
    tower = model.get_encoder(modality="image")
    if tower in (model, model.base_model):
        raise WeightsError(
            f"Models of the type {model.config.model_type} cannot be used: they have no vision tower of "
            "their own."
        )
    return tower


def _rest(model: nn.Module, known: set[nn.Module]) -> nn.Module:
    """All weights of a model that are outside of some of its modules."""
    rest = nn.ModuleDict()

    def add(name: str, module: nn.Module) -> None:
        if module in known:
            return
        if known.isdisjoint(module.modules()):
            if any(True for _ in module.parameters()):
                rest[name.replace(".", "/")] = module
            return
        own = dict(module.named_parameters(recurse=False))
        if own:
            rest[f"{name}/own".replace(".", "/")] = nn.ParameterDict(own)
        for child, inner in module.named_children():
            add(f"{name}.{child}" if name else child, inner)

    add("", model)
    return rest
