"""How a model of transformers is loaded so that it fits: on which devices, and in how many bits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn

from m3agiqa.backbones.memory import room, too_little
from m3agiqa.backbones.placement import Placement, Quantization, main_device
from m3agiqa.backbones.quantization import quantization_config, tensor_bytes

PRECISIONS: tuple[Quantization | None, ...] = (None, "8bit", "4bit")
Place = int | str
"""Number of a GPU, or "cpu": memory whose layers are brought to the first GPU whenever they are at work."""


def fitting(
    title: str, model: nn.Module, decoder: nn.Module, dtype: torch.dtype, placement: Placement, work: int
) -> dict[str, object]:
    """Options of transformers' `from_pretrained` for a model, given as it is on the meta device.

    `decoder` is the part of it that Placement.quantize is about, `work` the bytes that are needed beside its
    weights. Raises TooLittleMemory, and what Placement.check does.
    """
    placement.check()
    device, bits = main_device(placement.device), placement.quantize
    kept = outside(model, {decoder})
    sizes = {each: tensor_bytes(model, dtype, each, kept) for each in PRECISIONS}
    needs = {each: sum(sizes[each].values()) + work for each in PRECISIONS}
    options: dict[str, object] = {"dtype": dtype, "device_map": {"": device}}
    if bits:
        options["quantization_config"] = quantization_config(bits, dtype, kept)
    if placement.device == "auto" and device.type == "cuda":
        places, rooms = _spread(model, decoder, sizes[bits], bits, work)
        if places is None:
            raise too_little(title, needs, bits, rooms)
        return {**options, "device_map": places}
    if needs[bits] > room(device):
        elsewhere = device.type == "cuda" and _spread(model, decoder, sizes[bits], bits, work)[0]
        raise too_little(title, needs, bits, {str(device): room(device)}, spreads=bool(elsewhere))
    return options


def _spread(
    model: nn.Module, decoder: nn.Module, sizes: Mapping[str, int], bits: Quantization | None, work: int
) -> tuple[dict[str, Place] | None, dict[str, int]]:
    """A device map over this machine's memory, if there is room, and how much there is."""
    gpus = range(torch.cuda.device_count())
    free: dict[Place, int] = {number: room(f"cuda:{number}") for number in gpus}
    if not bits:  # layers of bitsandbytes cannot wait in the CPU's memory
        free["cpu"] = room("cpu")
    rooms = {place: count if place == "cpu" else count - work for place, count in free.items()}
    named = {"cpu" if place == "cpu" else f"cuda:{place}": count for place, count in free.items()}
    return spread(model, layers_of(decoder), sizes, rooms), named


def spread(
    model: nn.Module, layers: nn.ModuleList, sizes: Mapping[str, int], rooms: Mapping[Place, int]
) -> dict[str, Place] | None:
    """A device map for accelerate: the layers, whole, fill the places in their order, `rooms` bytes each.

    All else goes to the first place, since it is used in other ways than by calling it: accelerate could not
    bring it there. None if there is too little room. `sizes` are those of the model's tensors.
    """
    stacked = set(layers)
    names = [name for name, module in model.named_modules() if module in stacked]

    def size(name: str) -> int:
        return sum(size for tensor, size in sizes.items() if tensor.startswith(f"{name}."))

    first, *others = rooms
    left = dict(rooms)
    left[first] -= sum(sizes.values()) - sum(map(size, names))
    if "cpu" in rooms:
        left[first] -= max(map(size, names))  # of which one at a time is brought to the first
    places: dict[str, Place] = dict.fromkeys(outside(model, stacked), first)
    place = first
    for name in names:
        while size(name) > left[place]:
            if not others:
                return None
            place = others.pop(0)
        left[place] -= size(name)
        places[name] = place
    return places if left[first] >= 0 else None


def layers_of(decoder: nn.Module) -> nn.ModuleList:
    """The stack of layers that a decoder mainly consists of."""
    stacks = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=lambda stack: sum(weight.numel() for weight in stack.parameters()))


def outside(model: nn.Module, parts: Collection[nn.Module]) -> list[str]:
    """Names of the largest modules, and of single tensors, that have nothing of these parts in them."""
    return list(_outside(model, frozenset(parts), ""))


def _outside(module: nn.Module, parts: frozenset[nn.Module], prefix: str) -> Iterator[str]:
    for tensors in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
        yield from (f"{prefix}{name}" for name, _ in tensors)
    for name, child in module.named_children():
        if parts.isdisjoint(child.modules()):
            yield f"{prefix}{name}"
        elif child not in parts:
            yield from _outside(child, parts, f"{prefix}{name}.")
