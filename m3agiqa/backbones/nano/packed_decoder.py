"""SmolLM2 for inference on few cores: the language model's own weights, read with as little else as possible.

The library's layers spend about as long between matrix products as in them when three tokens are decoded at
once, and the products themselves repack their weights each time. Here queries, keys and values are one
product, as are gate and up, and weights are packed once for the processor (oneDNN), where it can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM
from transformers.cache_utils import Cache

Product = Callable[[Tensor], Tensor]
USUAL_ROWS = 3  # of a product while one image is spoken about; the packing may suit it best


@dataclass(frozen=True)
class Layer:
    """One transformer layer: weights of its two norms, and its products."""

    before_attention: Tensor
    qkv: Product
    out: Product
    before_feedforward: Tensor
    gate_up: Product
    down: Product


class Decoder:
    """The same function as the language model it is made of, and its output head.

    Takes the model's layers apart as it packs them, so that no weight is in memory twice; afterwards only its
    embeddings, head and last norm are left to be used.
    """

    def __init__(self, llm: LlamaForCausalLM) -> None:
        config = llm.config
        self.eps: float = config.rms_norm_eps
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads
        self.width: int = config.head_dim
        self.rotary = llm.model.rotary_emb
        self.last_norm = llm.model.norm.weight
        self.head = packed(llm.get_output_embeddings().weight)
        self.layers: list[Layer] = []
        while llm.model.layers:
            layer = llm.model.layers.pop(0)
            attention, feedforward = layer.self_attn, layer.mlp
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            self.layers.append(
                Layer(
                    layer.input_layernorm.weight,
                    packed(torch.cat([projection.weight for projection in projections])),
                    packed(attention.o_proj.weight),
                    layer.post_attention_layernorm.weight,
                    packed(torch.cat([feedforward.gate_proj.weight, feedforward.up_proj.weight])),
                    packed(feedforward.down_proj.weight),
                )
            )

    def __call__(self, embedded: Tensor, cache: Cache, mask: Tensor, positions: Tensor) -> Tensor:
        """Append [B, L, d] to the cache and return the last layer's normalized states [B, L, d].

        mask [B, S] is 1 for what a row may see of all S cached and new columns, positions [B, L] are those
        of the new ones.
        """
        batch, length, _ = embedded.shape
        cos, sin = (part[:, None] for part in self.rotary(embedded, positions))  # [B, 1, L, width]
        half = self.width // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        rotated, shared = self.heads + self.groups, self.heads // self.groups
        hidden_columns = _hidden(mask, length, shared, embedded.dtype)
        x = embedded
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(self._norm(x, layer.before_attention))
            qkv = qkv.view(batch, length, -1, self.width).transpose(1, 2)
            turned = qkv[:, :rotated]
            turned = turned * cos + torch.cat([turned[..., half:], turned[..., :half]], dim=-1) * sin
            keys, values = cache.update(turned[:, self.heads :], qkv[:, rotated:], index)
            query = turned[:, : self.heads].reshape(batch, self.groups, shared * length, self.width)
            mixed = F.scaled_dot_product_attention(query, keys, values, hidden_columns)
            mixed = mixed.view(batch, self.heads, length, self.width).transpose(1, 2)
            x = x + layer.out(mixed.reshape(batch, length, -1))
            gate, up = layer.gate_up(self._norm(x, layer.before_feedforward)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        return self._norm(x, self.last_norm)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        return (x * square.div_(x.shape[-1]).add_(self.eps).rsqrt_()).to(x.dtype).mul_(weight)


def packed(weight: Tensor) -> Product:
    """Multiplication by weight [out, in]: [..., in] -> [..., out]."""
    if weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        ready = torch.ops.mkldnn._reorder_linear_weight(weight, USUAL_ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, ready, None, "none", [], "")
    return lambda x: F.linear(x, weight)


def _hidden(mask: Tensor, length: int, shared: int, dtype: torch.dtype) -> Tensor | None:
    """What to add to scores [B, 1, shared * L, S] so that rows see neither padding nor what comes later.

    Query heads that share keys stand one after another, so that no key is copied.
    """
    rows, columns = mask.shape
    if length == 1 and bool(mask.all()):
        return None
    seen = mask.bool()[:, None].expand(rows, length, columns)
    if length > 1:
        seen = seen & torch.ones(length, columns, dtype=torch.bool).tril(columns - length)
    hidden = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return hidden.repeat(1, shared, 1)[:, None]
