"""SmolLM2 for inference on few cores: the language model's own weights, with little overhead beside them.

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
TYPICAL_ROWS = 3  # of a product during generation for one image, which the packing is optimized for


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
    model's embeddings, head and last norm can be used.
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
        of the new ones.
        """
        batch, length, _ = embedded.shape
        cos, sin = (part[:, None] for part in self.rotary(embedded, positions))  # [B, 1, L, width]
        half = self.width // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        n_rotated, shared = self.heads + self.groups, self.heads // self.groups
        hidden_columns = _hidden(mask, length, shared, embedded.dtype)
        x = embedded
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(self._norm(x, layer.before_attention))
            qkv = qkv.view(batch, length, -1, self.width).transpose(1, 2)
            qk = qkv[:, :n_rotated]
            qk = qk * cos + torch.cat([qk[..., half:], qk[..., :half]], dim=-1) * sin
            keys, values = cache.update(qk[:, self.heads :], qkv[:, n_rotated:], index)
            query = qk[:, : self.heads].reshape(batch, self.groups, shared * length, self.width)
            mixed = F.scaled_dot_product_attention(query, keys, values, hidden_columns)
            mixed = mixed.view(batch, self.heads, length, self.width).transpose(1, 2)
            x = x + layer.out(mixed.reshape(batch, length, -1))
            gate, up = layer.gate_up(self._norm(x, layer.before_feedforward)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        return self._norm(x, self.last_norm)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        return (x * square.div_(x.shape[-1]).add_(self.eps).rsqrt_()).to(x.dtype).mul_(weight)


def has_fast_bfloat16() -> bool:
    """Whether oneDNN multiplies in bfloat16 on this processor. A private function of torch (seen in 2.13)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed_linear(weight: Tensor) -> Product:
    """Multiplication by weight [out, in]: [..., in] -> [..., out]."""
    if weight.dtype == torch.bfloat16 and has_fast_bfloat16():
        # Private functions of torch (seen in 2.13), which torch.compile calls.
        ready = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, ready, None, "none", [], "")
    return lambda x: F.linear(x, weight)


def _hidden(mask: Tensor, length: int, shared: int, dtype: torch.dtype) -> Tensor | None:
    """What to add to scores [B, 1, shared * L, S] so that no token attends to padding or to a later one.

    Query heads that share keys stand one after another, so that no key is copied.
    """
    rows, columns = mask.shape
    if length == 1 and bool(mask.all()):
        return None
    visible = mask.bool()[:, None].expand(rows, length, columns)
    if length > 1:
        visible = visible & torch.ones(length, columns, dtype=torch.bool).tril(columns - length)
    hidden = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
    return hidden.repeat(1, shared, 1)[:, None]
