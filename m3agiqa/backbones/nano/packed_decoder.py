"""SmolLM2 for inference on few cores: the language model's own weights, with little overhead beside them.

The library's layers spend about as long between matrix products as in them when three tokens are decoded at
once, and the products themselves repack their weights each time. Here queries, keys and values are one
product, as are gate and up, and weights are packed once for the processor (oneDNN), where it can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM
from transformers.cache_utils import Cache, DynamicLayer

from m3agiqa.backbones.cpu_precision import has_fast_bfloat16

Product = Callable[[Tensor], Tensor]
TYPICAL_ROWS = 3  # of a product during generation for one image, which the packing is optimized for
FEW_ROWS = 32  # of a product; kernels for more rows, or for one alone, may add up in another order
MANY_ROWS = 256  # of a product, a third faster on processors whose kernels for so many add up alike
POSITIONS_BLOCK = 64  # attention over a multiple of this many columns rounds alike, however many they are
MAX_TRIED_WIDTH = 8192  # outputs of a product; the output head, which has more, never gets many rows
ATTENTION_BLOCK = 512  # a multiple of it; rows whose columns end in the same one attend together


@dataclass(frozen=True)
class PackedLayer:
    """One transformer layer: weights of its two norms, and its products."""

    before_attention: Tensor
    qkv: Product
    out: Product
    before_feedforward: Tensor
    gate_up: Product
    down: Product


class PackedDecoder:
    """The same function as the language model it is made of, and its output head.

    It removes the model's layers as it packs them, so that no weight is in memory twice; afterwards only the
    model's embeddings, head and last norm can be used. A row's states are the same, to the last bit, whatever
    other rows there are: greedy decoding would turn a rounding error into another text.
    """

    def __init__(self, llm: LlamaForCausalLM) -> None:
        config = llm.config
        self.eps: float = config.rms_norm_eps
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads
        self.width: int = config.head_dim
        self.rotary = llm.model.rotary_emb
        self.last_norm = llm.model.norm.weight
        self.head = packed_linear(llm.get_output_embeddings().weight)
        self.layers: list[PackedLayer] = []
        while llm.model.layers:
            layer = llm.model.layers.pop(0)
            attention, feedforward = layer.self_attn, layer.mlp
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            self.layers.append(
                PackedLayer(
                    layer.input_layernorm.weight,
                    packed_linear(torch.cat([projection.weight for projection in projections])),
                    packed_linear(attention.o_proj.weight),
                    layer.post_attention_layernorm.weight,
                    packed_linear(torch.cat([feedforward.gate_proj.weight, feedforward.up_proj.weight])),
                    packed_linear(feedforward.down_proj.weight),
                )
            )

    def __call__(self, embedded: Tensor, cache: Cache, mask: Tensor, positions: Tensor) -> Tensor:
        """Append [B, L, d] to the cache and return the last layer's normalized states [B, L, d].

        mask [B, S] is 1 for what a row may see of all S cached and new columns, positions [B, L] are those
        of the new ones. Padding is left out of everything, and its states are zero: a row costs what it would
        alone, however long another one is.
        """
        places = _Places.of(mask[:, -embedded.shape[1] :].bool(), positions, cache.get_seq_length())
        x = embedded.flatten(0, 1)[places.own]
        cos, sin = (part[0, :, None] for part in self.rotary(x, positions.flatten()[places.own][None]))
        half = self.width // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)  # [T, 1, width], as cos
        n_rotated = self.heads + self.groups
        hidden_columns = [run.hidden_columns(x.dtype, self.heads // self.groups) for run in places.runs]
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(self._norm(x, layer.before_attention)).view(len(x), -1, self.width)
            qk = qkv[:, :n_rotated]
            qk = qk * cos + torch.cat([qk[..., half:], qk[..., :half]], dim=-1) * sin
            keys, values = cache.update(qk[:, self.heads :], qkv[:, n_rotated:], index, places)
            mixed = [
                self._attend(qk[run.new, : self.heads], keys[run.rows], values[run.rows], hidden)
                for run, hidden in zip(places.runs, hidden_columns, strict=True)
            ]
            x = x + layer.out(torch.cat(mixed))
            gate, up = layer.gate_up(self._norm(x, layer.before_feedforward)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        states = torch.zeros_like(embedded)
        states.view(-1, states.shape[-1])[places.own] = self._norm(x, self.last_norm)
        return states

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, hidden_columns: Tensor) -> Tensor:
        """query [n * L, H, width] of n rows, keys and values [n, G, S, width] -> [n * L, H * width]."""
        rows, room = len(keys), hidden_columns.shape[-1]
        query = query.view(rows, -1, self.heads, self.width).transpose(1, 2)
        query = query.reshape(rows, self.groups, -1, self.width)  # heads that share a key one after another
        mixed = F.scaled_dot_product_attention(query, keys[:, :, :room], values[:, :, :room], hidden_columns)
        return mixed.view(rows, self.heads, -1, self.width).transpose(1, 2).flatten(0, 1).flatten(1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        return (x * square.div_(x.shape[-1]).add_(self.eps).rsqrt_()).to(x.dtype).mul_(weight)


def packed_linear(weight: Tensor) -> Product:
    """Multiplication by weight [out, in]: [..., in] -> [..., out], of each row as if it were alone."""
    product = _packed(weight)
    most_rows = _rows_that_add_up_alike(*weight.shape, weight.dtype)

    def few(x: Tensor) -> Tensor:
        return product(x.expand(2, -1))[:1] if len(x) == 1 else product(x)

    def all_rows(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        parts = [few(part) for part in rows.split(most_rows)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*x.shape[:-1], -1)

    return all_rows


def _packed(weight: Tensor) -> Product:
    """Multiplication of rows [N, in]."""
    if torch.backends.mkldnn.is_available() and (weight.dtype == torch.float32 or has_fast_bfloat16()):
        # Private functions of torch (seen in 2.13), which torch.compile calls.
        ready = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, ready, None, "none", [], "")
    return lambda x: F.linear(x, weight)


@cache
def _rows_that_add_up_alike(out: int, width: int, dtype: torch.dtype) -> int:
    """How many rows a product by a weight [out, width] may have at once: tried out on this processor."""
    if out > MAX_TRIED_WIDTH:
        return FEW_ROWS
    random = torch.Generator().manual_seed(0)
    product = _packed(torch.randn(out, width, generator=random).to(dtype))
    x = torch.randn(MANY_ROWS, width, generator=random).to(dtype)
    wanted = torch.cat([product(part) for part in x.split(FEW_ROWS)])
    counts = range(FEW_ROWS, MANY_ROWS + 1, FEW_ROWS)
    alike = all(torch.equal(product(x[:n]), wanted[:n]) for count in counts for n in (count, count - 1))
    return MANY_ROWS if alike else FEW_ROWS


@dataclass(frozen=True)
class _Run:
    """Consecutive rows of a batch that attend alike: as many new columns each, and as much room."""

    rows: slice
    new: slice
    """Their new columns, of all T."""
    positions: Tensor
    """Of these, [n, L]."""
    room: int

    def hidden_columns(self, dtype: torch.dtype, shared: int) -> Tensor:
        """What attention adds, [n, 1, shared * L, room]: no new column sees what stands later in its row.

        `shared` query heads have one key head.
        """
        later = torch.arange(self.room) > self.positions.repeat(1, shared)[..., None]
        hidden = torch.zeros(later.shape, dtype=dtype)
        return hidden.masked_fill_(later, torch.finfo(dtype).min)[:, None]


@dataclass(frozen=True)
class _Places:
    """Where the new columns of a batch go in a cache by position."""

    own: Tensor
    """Numbers [T] of the columns, of all B * L, that are no padding."""
    target: Tensor
    """Where these go, [T], of all B * room."""
    n_rows: int
    room: int
    """Positions that the cache must have, a multiple of POSITIONS_BLOCK."""
    runs: list[_Run]

    @classmethod
    def of(cls, own: Tensor, positions: Tensor, room: int) -> _Places:
        """In a cache that has room for so many positions already."""
        room = max(room, _in_blocks(int(positions.max()) + 1, POSITIONS_BLOCK))
        start = torch.arange(len(own))[:, None] * room
        chosen = own.flatten().nonzero()[:, 0]
        ends = positions.masked_fill(~own, -1).amax(1).tolist()
        rooms = [min(room, _in_blocks(end + 1, ATTENTION_BLOCK)) for end in ends]
        runs, row, new = [], 0, 0
        for (length, needed), alike in groupby(zip(own.sum(1).tolist(), rooms, strict=True)):
            n_rows = len(list(alike))
            columns, after = slice(new, new + n_rows * length), row + n_rows
            if length:
                at = positions.flatten()[chosen[columns]].view(n_rows, length)
                runs.append(_Run(slice(row, after), columns, at, needed))
            row, new = after, columns.stop
        return cls(chosen, (positions + start).flatten()[chosen], len(own), room, runs)


def _in_blocks(positions: int, block: int) -> int:
    """As many, rounded up to whole blocks."""
    return -(-positions // block) * block


class PositionLayer(DynamicLayer):
    """A layer's keys and values [B, S, G * width] by position, in room that is allocated ahead.

    What a row attends to stands in the same columns, whatever padding others need, and so adds up in the same
    way. It relies on attributes of the library's layer (seen in transformers 5.24) that are not documented.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: _Places, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Of PackedDecoder, new columns [T, G, width] with their places; else as the library's own."""
        if not args:
            return super().update(key_states, value_states, **kwargs)
        (places,) = args
        _, groups, width = key_states.shape
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = self.values = key_states.new_zeros(places.n_rows, 0, groups * width)
        missing = places.room - self.keys.shape[1]
        if missing > 0:
            self.keys, self.values = (F.pad(x, (0, 0, 0, missing)) for x in (self.keys, self.values))
        for cached, new in ((self.keys, key_states), (self.values, value_states)):
            cached.view(-1, groups * width).index_copy_(0, places.target, new.flatten(1))
        keys, values = (
            x.view(places.n_rows, -1, groups, width).transpose(1, 2) for x in (self.keys, self.values)
        )
        return keys, values


def new_cache() -> Cache:
    """An empty cache for a run of the language model, packed or not."""
    return Cache(layer_class_to_replicate=PositionLayer)
