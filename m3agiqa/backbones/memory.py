"""Memory: how much of it is free, where a model's weights fit, and the errors where they do not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import CustomDtype, compute_module_sizes
from torch import nn

from m3agiqa.backbones.devices import check_placement, main_device, quantization_config
from m3agiqa.backbones.placement import Placement, Quantization
from m3agiqa.control_groups import CONTROL_GROUPS, OWN_GROUPS, own_groups
from m3agiqa.errors import InputError, TooLittleMemory

PRECISIONS: tuple[Quantization | None, ...] = (None, "8bit", "4bit")
QUANTIZED_TYPES = {"8bit": torch.int8, "4bit": CustomDtype.INT4}
Place = int | str
"""Number of a GPU, or "cpu": memory whose layers are brought to the first GPU whenever they are at work."""
CUDA_OVERHEAD = 500_000_000
"""Bytes of a GPU that are left to its libraries, and to what the allocator rounds up."""
COMMON_MEMORY_SIZES = {
    "cuda": (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192),
    "cpu": (8, 16, 32, 64, 128, 256),
}
"""Usual sizes of memory in GB."""


def fitting(
    title: str, model: nn.Module, decoder: nn.Module, dtype: torch.dtype, placement: Placement, work: int
) -> dict[str, object]:
    """Options of transformers' `from_pretrained` for a model, given as it is on the meta device.

    `decoder` is the part of it that Placement.quantize is about, `work` the bytes that are needed beside its
    weights. Raises TooLittleMemory, and what check_placement does.
    """
    check_placement(placement)
    device, bits = main_device(placement.device), placement.quantize
    needs = {each: weight_bytes(model, decoder, dtype, each)[""] + work for each in PRECISIONS}
    options: dict[str, object] = {"dtype": dtype, "device_map": {"": device}}
    if bits:
        options["quantization_config"] = quantization_config(bits, dtype, outside(model, {decoder}))
    rooms, places = {str(device): room(device)}, None
    fits = needs[bits] <= rooms[str(device)]
    if device.type == "cuda":
        gpus = range(torch.cuda.device_count())
        free: dict[Place, int] = {number: room(f"cuda:{number}") for number in gpus}
        left: dict[Place, int] = {number: free[number] - work for number in gpus}
        if not bits:  # layers of bitsandbytes cannot wait in the CPU's memory
            free["cpu"] = left["cpu"] = room("cpu")
        places = spread(model, decoder, dtype, bits, left)
        if placement.device == "auto":
            options["device_map"], fits = places, bool(places)
            rooms = {"cpu" if place == "cpu" else f"cuda:{place}": count for place, count in free.items()}
    if not fits:
        raise too_little(title, needs, bits, rooms, spreads=bool(places))
    return options


def weight_types(
    model: nn.Module, decoder: nn.Module, dtype: torch.dtype, bits: Quantization | None
) -> dict[str, torch.dtype | CustomDtype]:
    """The types that a model's weights are loaded in, by name, as accelerate takes them."""
    quantized = {
        layer.weight: QUANTIZED_TYPES[bits]
        for layer in decoder.modules()
        if bits and type(layer) is nn.Linear
    }
    return {name: quantized.get(weight, dtype) for name, weight in model.named_parameters()}


def weight_bytes(
    model: nn.Module, decoder: nn.Module, dtype: torch.dtype, bits: Quantization | None = None
) -> dict[str, int]:
    """Bytes of each module by its name, once the model is loaded; under "" those of all.

    Scales of quantized weights, 3 % of them at most, are not counted.
    """
    sizes = compute_module_sizes(model, special_dtypes=weight_types(model, decoder, dtype, bits))
    return {name: int(size) for name, size in sizes.items()}


def spread(
    model: nn.Module,
    decoder: nn.Module,
    dtype: torch.dtype,
    bits: Quantization | None,
    rooms: Mapping[Place, int],
) -> dict[str, Place] | None:
    """A device map for accelerate: the decoder's layers, whole, fill the places in their order.

    All else goes to the first place, since it is used in other ways than by calling it: accelerate could not
    bring it there. None if `rooms`, the bytes of each place, are too small.
    """
    layers = layers_of(decoder)
    stack = next(name for name, module in model.named_modules() if module is layers)
    sizes = weight_bytes(model, decoder, dtype, bits)
    first = next(iter(rooms))
    left = rooms[first] - (sizes[""] - sizes[stack])
    if left < max(sizes[f"{stack}.{number}"] for number in range(len(layers))):
        return None
    places = infer_auto_device_map(
        layers,
        {**rooms, first: left},
        no_split_module_classes=[type(layer).__name__ for layer in layers],
        special_dtypes=weight_types(layers, layers, dtype, bits),
        clean_result=False,
    )
    if "disk" in places.values():
        return None
    outer = dict.fromkeys(outside(model, set(layers)), first)
    return outer | {f"{stack}.{name}": place for name, place in places.items()}


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


def room(device: torch.device | str) -> int:
    """Bytes that are free for a model on a device; on the CPU no more than a container is allowed."""
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(torch.cuda.mem_get_info(device)[0] + unused - CUDA_OVERHEAD, 0)
    return min([psutil.virtual_memory().available, *group_rooms()])


def group_rooms(groups: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS) -> list[int]:
    """Bytes that are free below each limit of Linux' control groups, version 1 or 2, on this process."""
    files = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    rooms = []
    for version, folder in own_groups("memory", groups, own):
        rooms += _group_room(folder, *files[version])
    return rooms


def _group_room(folder: Path, limit: str, used: str, reclaimable: str) -> list[int]:
    try:
        most = int((folder / limit).read_text())  # without a limit it is no number
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        free = most - int((folder / used).read_text()) + int(facts.get(reclaimable, 0))
    except (OSError, ValueError):
        return []
    return [max(free, 0)]


def too_little(
    title: str,
    needs: Mapping[Quantization | None, int],
    asked: Quantization | None,
    rooms: Mapping[str, int],
    spreads: bool = False,
) -> TooLittleMemory:
    """The error for a model that needs so many bytes, by precision, and more than `rooms` has by device.

    `spreads`: it would fit if it were spread over all devices.
    """
    places = {device: "in this machine's memory" if device == "cpu" else f"on {device}" for device in rooms}
    free = " and ".join(f"{gigabytes(rooms[device])} are free {place}" for device, place in places.items())
    shortage = f"{title} needs {gigabytes(needs[asked])} of memory, and {free}."
    precisions: tuple[Quantization, ...] = ("8bit", "4bit")
    smaller = [bits for bits in precisions if needs[bits] < needs[asked]]
    fitting = [bits for bits in smaller if needs[bits] <= max(rooms.values())]
    if fitting:
        first, *others = fitting
        more = "".join(f", with {bits} {gigabytes(needs[bits])}" for bits in others)
        return TooLittleMemory(
            f"{shortage} With {{quantize}} it needs {gigabytes(needs[first])}{more}.", quantize=first
        )
    if spreads:
        return TooLittleMemory(
            f"{shortage} With {{device}} it is spread over all GPUs, and what does not fit there waits in "
            "the CPU's memory, which is slower.",
            device="auto",
        )
    gpu = any(device.startswith("cuda") for device in rooms)
    least = needs[smaller[-1] if smaller else asked]
    advice = f" Even with {{quantize}} it needs {gigabytes(least)}." if smaller else ""
    return TooLittleMemory(
        f"{shortage}{advice} Close what else takes memory, or use {'a GPU' if gpu else 'a machine'} with "
        f"{size_sold(least, gpu)} GB or more.",
        quantize=smaller[-1] if smaller else "",
    )


def size_sold(need: int, gpu: bool) -> int:
    """The smallest usual memory, in GB, with room for so many bytes; else the largest that there is."""
    sizes = COMMON_MEMORY_SIZES["cuda" if gpu else "cpu"]
    return next((size for size in sizes if size * 10**9 >= need + CUDA_OVERHEAD), sizes[-1])


def gigabytes(count: int) -> str:
    """For people, such as "7.9 GB"."""
    return f"{count / 10**9:.1f} GB"


@contextmanager
def enough_to_load(title: str) -> Iterator[None]:
    """Raises TooLittleMemory where memory runs out in the block all the same."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise TooLittleMemory(
            f"The memory ran out while {title} was loaded. Close what else uses it, or load the model with "
            "{quantize}.",
            quantize="4bit",
        ) from error


@contextmanager
def enough_for_work() -> Iterator[None]:
    """Raises InputError where memory runs out in the block, which holds a model at work."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise InputError(
            "The memory ran out while the model was at work. Give a smaller image, judge one aspect at a "
            "time, or load the model with {quantize}.",
            quantize="4bit",
        ) from error


def _out_of_memory(error: Exception) -> bool:
    """Whether it is so; on the CPU, PyTorch raises nothing more specific than a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
