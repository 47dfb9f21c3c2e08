"""One backbone made of several that share their base weights and differ in their adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from PIL import Image
from torch import Tensor, nn

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.base import Backbone, ChecksElements, Delta, Generation, Request, prompt_limit
from m3agiqa.errors import InputError
from m3agiqa.prompt_elements import CheckedElement, PromptElement

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def sharing_copy(module: ModuleT) -> ModuleT:
    """A copy that shares all tensors, so that layers (LoRA) can be added to it and not to the original."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in _shared_objects(module)})


def _shared_objects(module: nn.Module) -> Iterator[object]:
    """Tensors, and what bitsandbytes (seen in 0.50) and accelerate (1.15) keep in private attributes."""
    yield from chain(module.parameters(), module.buffers())
    for layer in module.modules():
        own = vars(layer)
        yield own.get("quant_state")  # of 4 bit
        if "state" in own and type(layer).__name__ == "Linear8bitLt":
            yield from (value for value in vars(layer.state).values() if isinstance(value, Tensor))
        hook = own.get("_hf_hook")
        for each in getattr(hook, "hooks", [hook]):
            yield from (getattr(each, name, None) for name in ("weights_map", "tied_params_map"))


class PerAspect:
    """Each conversation goes to the backbone of its aspect; implements `base.Backbone`.

    Nothing is switched at run time, so that several threads may use it at once.
    """

    def __init__(self, backbones: dict[Aspect, Backbone]) -> None:
        """At least one. They share base weights if their modules were made by `sharing_copy`."""
        self.backbones = backbones
        first = next(iter(backbones.values()))
        self.name, self.revision = first.name, first.revision
        self.hidden_size, self.vocab_size = first.hidden_size, first.vocab_size

    @property
    def head(self) -> Tensor:
        return next(iter(self.backbones.values())).head

    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Generation]:
        """Aspect after aspect: their adapters differ, so that a common batch would not be faster."""
        for backbone, own, rows in self._split(requests):
            for event in backbone.describe(own, stop):
                yield replace(event, row=rows[event.row])

    def prompt_limit(self, image: Image.Image) -> Callable[[str], bool]:
        """See `base.LimitsPromptBesideImage`."""
        limits = [prompt_limit(backbone, image) for backbone in self.backbones.values()]
        return lambda prompt: all(fits(prompt) for fits in limits)

    def check_elements(self, image: Image.Image, elements: Sequence[PromptElement]) -> list[CheckedElement]:
        """By the backbone that judges the prompt; none where it cannot tell them."""
        backbone = self.backbones.get(Aspect.CORRESPONDENCE)
        return backbone.check_elements(image, elements) if isinstance(backbone, ChecksElements) else []

    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        states: dict[int, Tensor] = {}
        for backbone, own, rows in self._split(requests):
            states.update(zip(rows, backbone.encode(own), strict=True))
        return [states[row] for row in sorted(states)]

    def _split(self, requests: Sequence[Request]) -> list[tuple[Backbone, list[Request], list[int]]]:
        """For each aspect in the requests: its backbone, its part of the requests, its rows."""
        aspects = [c.aspect for request in requests for c in request.conversations]
        missing = [str(aspect or "captions") for aspect in aspects if aspect not in self.backbones]
        if missing:
            raise InputError(
                f"This model was fine-tuned for each aspect apart: for {', '.join(self.backbones)}, "
                f"not for {missing[0]}."
            )
        parts = []
        for aspect, backbone in self.backbones.items():
            rows = [row for row, each in enumerate(aspects) if each is aspect]
            if rows:
                parts.append((backbone, _about(aspect, requests), rows))
        return parts


def _about(aspect: Aspect, requests: Sequence[Request]) -> list[Request]:
    kept = []
    for request in requests:
        conversations = tuple(c for c in request.conversations if c.aspect is aspect)
        if conversations:
            kept.append(Request(request.image, conversations))
    return kept
