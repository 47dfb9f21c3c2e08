"""How much memory MiniCPM needs, calculated from its settings and the shapes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from m3agiqa.backbones.memory import weight_bytes
from m3agiqa.backbones.minicpm.chat import MAX_NEW_TOKENS
from m3agiqa.backbones.minicpm.model import MiniCPMV, MiniCPMVConfig
from m3agiqa.backbones.minicpm.slicing import Slices, Slicing, sliced
from m3agiqa.backbones.placement import Quantization

AS_PUBLISHED = Slicing()
LORA_RANK = 64  # of OpenBMB's fine-tuning script
COPIED_MODULES = ("vpm", "resampler", "llm.model.embed_tokens")
"""Which a published adapter has whole."""
PIXEL_WIDTH = 4  # bytes
LORA_WIDTH = 4  # bytes; PEFT computes in 32 bit
BEGIN, QUESTION, CLOSING = 8, 128, 64
"""Tokens that there is room for: before the image, and in the first and the second question."""


@dataclass(frozen=True)
class Work:
    """What the model is to do at once."""

    size: tuple[int, int] = (1024, 1024)
    """Width and height in pixels of each image."""
    images: int = 1
    aspects: int = 3
    adapters: int = 0
    """Published adapters, one an aspect, each with vision encoder, resampler and token embeddings of its own.
    With these, aspects are described one after another, else together."""

    @property
    def rows(self) -> int:
        """Conversations that are generated together."""
        return self.images * (1 if self.adapters else self.aspects)


USUAL_WORK = Work()


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    weights: int
    adapters: int
    replaced: int
    """Weights that adapters take the place of, and that are given up once these are loaded."""
    cache: int
    """Keys and values of all tokens, at the end of the conversations."""
    activations: int
    """The most that is there at one time of anything else."""

    @property
    def total(self) -> int:
        """The most at one time, be it when everything is loaded, or at work."""
        return self.weights + self.beside

    @property
    def beside(self) -> int:
        """What must be free beside the weights."""
        return self.adapters + max(0, self.cache + self.activations - self.replaced)


def memory_needed(
    model: MiniCPMV,
    dtype: torch.dtype,
    bits: Quantization | None = None,
    work: Work = USUAL_WORK,
    slicing: Slicing = AS_PUBLISHED,
) -> Memory:
    """What a model, given on the meta device, takes up at work, with all that is not quantized in `dtype`."""
    cache, activations = _at_work(model.config, dtype.itemsize, work, slicing)
    published = weight_bytes(model, model.llm.model, dtype)
    copies = sum(published[name] for name in COPIED_MODULES)
    return Memory(
        weights=weight_bytes(model, model.llm.model, dtype, bits)[""],
        adapters=work.adapters * (copies + lora_bytes(model)),
        replaced=copies if work.adapters else 0,
        cache=cache,
        activations=activations,
    )


def images_at_once(config: MiniCPMVConfig, dtype: torch.dtype, free: int, slicing: Slicing) -> int:
    """Images that can be described together with so many bytes free beside a loaded model; at least one."""
    one, two = (sum(_at_work(config, dtype.itemsize, Work(images=images), slicing)) for images in (1, 2))
    return max(1, 1 + (free - one) // (two - one))


def _at_work(config: MiniCPMVConfig, width: int, work: Work, slicing: Slicing) -> tuple[int, int]:
    """Bytes of cache and activations."""
    slices = sliced(Image.new("RGB", work.size), slicing)
    begun = beginning_length(config, slices)
    columns = begun + QUESTION + MAX_NEW_TOKENS + CLOSING
    cache = cache_bytes(config, work.rows, columns, width)
    peaks = (
        vision_peak(config, slices, width),
        reading_peak(config, work.images, begun, begun, width),
        reading_peak(config, work.rows, QUESTION, columns, width),
        cache * (work.rows - 1) // work.rows,  # of rows that ended, parted from the others to be rated
    )
    states = 2 * work.rows * columns * config.hidden_size * width  # as they were read, and put together
    return cache, states + max(peaks)


def beginning_length(config: MiniCPMVConfig, slices: Slices) -> int:
    """Tokens up to the end of an image."""
    views = len(slices.pixels)
    marks = 2 * views + (1 + slices.grid[1] if slices.grid else 0)  # around each, all, and between the rows
    return BEGIN + views * config.query_num + marks


def cache_bytes(config: MiniCPMVConfig, rows: int, columns: int, width: int) -> int:
    """Keys and values of all layers, `width` bytes each."""
    head = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head * rows * columns * width


def lora_bytes(model: MiniCPMV) -> int:
    """What a published adapter adds to the language model's attention."""
    shapes = (
        getattr(layer.self_attn, f"{name}_proj").weight.shape
        for layer in model.llm.model.layers
        for name in ("q", "k", "v", "o")
    )
    return sum(LORA_RANK * (rows + columns) for rows, columns in shapes) * LORA_WIDTH


def vision_peak(config: MiniCPMVConfig, slices: Slices, width: int) -> int:
    """Most bytes while one image is encoded: in the vision encoder's layers, or in the resampler.

    Pixels are counted in, although they wait in the CPU's memory wherever the model is.
    """
    patches = len(slices.sizes) * max(rows * columns for rows, columns in slices.sizes)
    vision, inner = config.vision_config["hidden_size"], config.vision_config["intermediate_size"]
    encoder = 3 * vision + 2 * inner  # input, residual and norm; before and after the activation
    resampler = vision + 4 * config.hidden_size  # patches; values and keys before and after projection
    pixels = 3 * config.vision_config["patch_size"] ** 2
    return patches * (max(encoder, resampler) * width + 2 * pixels * PIXEL_WIDTH)


def reading_peak(config: MiniCPMVConfig, rows: int, tokens: int, columns: int, width: int) -> int:
    """Most bytes in a layer of the language model that reads `tokens` a row, in the context of `columns`."""
    count, hidden, inner = rows * tokens, config.hidden_size, config.intermediate_size
    held = 4 * count * hidden * width  # embedded, the same padded, residual and norm
    attention = (4 * count + 2 * rows * columns) * hidden * width  # queries, output; keys and values repeated
    return held + max(attention, 3 * count * inner * width)
