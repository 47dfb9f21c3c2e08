"""The table of `python -m m3agiqa memory`: what the full-size model needs by setting, without its weights."""

from __future__ import annotations

import torch

from m3agiqa.backbones.memory import PRECISIONS, gigabytes, room, size_sold
from m3agiqa.backbones.minicpm.loading import PUBLISHED_SETTINGS, read_config, without_weights
from m3agiqa.backbones.minicpm.memory import Work, memory_needed

HEAD = ("Language model", "Aspects", "Image", "Weights", "Adapters", "Cache", "Activations", "Total", "GPU")
WORDS = 3  # the first columns; the others are numbers
NAMES = {None: "16 bit", "8bit": "`--quantize 8bit`", "4bit": "`--quantize 4bit`"}
WORKS = tuple(Work(size, adapters=count) for count in (1, 3) for size in ((512, 512), (1024, 1024)))


def memory_table() -> str:
    """In Markdown and GB, a row for each setting."""
    model = without_weights(read_config(PUBLISHED_SETTINGS))
    rows: list[tuple[str, ...]] = [HEAD]
    for bits in PRECISIONS:
        for work in WORKS:
            needed = memory_needed(model, torch.bfloat16, bits, work)
            counts = (needed.weights, needed.adapters, needed.cache, needed.activations, needed.total)
            settings = (NAMES[bits], str(work.adapters), "×".join(map(str, work.size)))
            gpu = str(size_sold(needed.total, gpu=True))
            rows.append((*settings, *(f"{count / 10**9:.2f}" for count in counts), gpu))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = [f"{'-' * width}" if i < WORDS else f"{'-' * (width - 1)}:" for i, width in enumerate(widths)]
    rows.insert(1, tuple(rule))
    return "\n".join(f"| {' | '.join(_aligned(row, widths))} |" for row in rows)


def free_memory() -> str:
    """What this machine has for a model, in a sentence."""
    gpus = (f"cuda:{number}" for number in range(torch.cuda.device_count()))
    places = [f"{gigabytes(room(place))} on {place}" for place in (*gpus, "cpu")]
    return f"Free on this machine: {', '.join(places)}."


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    cells = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(width) if i < WORDS else cell.rjust(width) for i, (cell, width) in cells]
