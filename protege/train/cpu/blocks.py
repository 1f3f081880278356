"""Llama's decoder layer for a CPU with bf16 products: the same arithmetic in a third of the memory traffic.

Under autocast the stock layer casts each normalised row once for every projection, rotates in fp32, copies the keys
and values for every query head, and runs an attention kernel that is made for AMX. Here each part is one autograd
function that rounds to bf16 where autocast does (in and out of every product) and keeps fp32 where it does (residual
stream, norms, softmax). Only the attention scores are rounded once more (as in transformers' "eager" attention).
The stock layer is used for everything else: padding, a cache, another device, no autocast, another architecture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

_BLOCK = 256
"""Query positions of one attention block: its scores stay in the cache, and a block's keys end with it."""
KEEP_UP_TO = 2048
"""Positions of a row whose attention weights are kept for the backward pass (at 2,048: 45 MB a layer with 9 heads)."""


class RmsNorm(torch.autograd.Function):
    """x [.., H] fp32 -> bf16: ``x / rms(x) * weight`` in fp32, rounded once."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        normal = x * scale
        grad = grad.float()
        own = (grad * normal).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad = grad.mul_(weight) if grad.is_contiguous() else grad * weight
        shared = (grad * normal).mean(-1, keepdim=True)
        return grad.sub_(normal.mul_(shared)).mul_(scale), own, None


class SwiGlu(torch.autograd.Function):
    """silu(gate) * up, all bf16."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        to_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return to_gate, functional.silu(gate).mul_(grad)


class CausalAttention(torch.autograd.Function):
    """Rotary embedding and causal grouped-query attention of unpadded rows.

    Shapes: q [B, N, Hq * D], k and v [B, N, Hkv * D] in bf16, cos and sin [1 or B, N, D]; returns [B, N, Hq * D]
    bf16. Query heads that share a key head are rows of one product, so keys and values are never copied.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        dim: int,
        scale: float,
    ) -> torch.Tensor:
        rows, n = q.shape[:2]
        shared = k.shape[2] // dim
        group = q.shape[2] // k.shape[2]
        query = _rotate(_heads(q, shared, group, dim), cos, sin, scale)
        key = _rotate(_heads(k, shared, 1, dim), cos, sin, 1.0)
        query, key = query.view(rows * shared, n * group, dim), key.view(rows * shared, n, dim)
        value = _heads(v, shared, 1, dim).reshape(rows * shared, n, dim).to(torch.bfloat16)
        out = torch.empty_like(query)
        kept = []
        for start in range(0, n, _BLOCK):
            end = min(start + _BLOCK, n)
            weights = _weights(query, key, start, end, group)
            torch.bmm(weights, value[:, :end], out=out[:, start * group : end * group])
            kept.append(weights)
        # Keeping the weights saves making them again; beyond this length memory decides.
        ctx.kept = kept if n <= KEEP_UP_TO and any(ctx.needs_input_grad[:3]) else None
        ctx.save_for_backward(query, key, value, cos, sin)
        ctx.sizes = (rows, n, shared, group, dim, scale)
        return out.view(rows, shared, n, group, dim).transpose(1, 2).reshape(rows, n, -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, cos, sin = ctx.saved_tensors
        rows, n, shared, group, dim, scale = ctx.sizes
        grad = _heads(grad.contiguous(), shared, group, dim).reshape(rows * shared, n * group, dim)
        to_query = torch.empty_like(query)
        to_key = torch.zeros(key.shape, dtype=torch.float32)
        to_value = torch.zeros(value.shape, dtype=torch.float32)
        for index, start in enumerate(range(0, n, _BLOCK)):
            end = min(start + _BLOCK, n)
            mine = slice(start * group, end * group)
            weights = ctx.kept[index] if ctx.kept else _weights(query, key, start, end, group)
            to_weights = torch.bmm(grad[:, mine], value[:, :end].transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, torch.bfloat16)
            torch.bmm(to_scores, key[:, :end], out=to_query[:, mine])
            to_key[:, :end] += torch.bmm(to_scores.transpose(1, 2), query[:, mine])
            to_value[:, :end] += torch.bmm(weights.transpose(1, 2), grad[:, mine])
        ctx.kept = None
        back = _rotate(to_query.view(rows, shared, n, group, dim), cos, -sin, scale)
        back_key = _rotate(to_key.view(rows, shared, n, 1, dim), cos, -sin, 1.0)
        return (
            back.transpose(1, 2).reshape(rows, n, -1),
            back_key.transpose(1, 2).reshape(rows, n, -1),
            to_value.to(torch.bfloat16).view(rows, shared, n, dim).transpose(1, 2).reshape(rows, n, -1),
            None,
            None,
            None,
            None,
        )


def _heads(x: torch.Tensor, shared: int, group: int, dim: int) -> torch.Tensor:
    """[B, N, shared * group * D] -> [B, shared, N, group, D], a view."""
    return x.view(*x.shape[:2], shared, group, dim).transpose(1, 2)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, scale: float) -> torch.Tensor:
    """Rotary embedding of x [B, shared, N, group, D] times ``scale``, in fp32, rounded to bf16; a fresh contiguous tensor."""
    half = x.shape[-1] // 2
    c, s = ((t.float() * scale)[:, None, :, None, :half] for t in (cos, sin))
    out = torch.empty(x.shape, dtype=torch.bfloat16)
    left, right = x[..., :half].float(), x[..., half:].float()
    out[..., :half] = (left * c).sub_(right * s)
    out[..., half:] = (right * c).add_(left * s)
    return out


def _weights(query: torch.Tensor, key: torch.Tensor, start: int, end: int, group: int) -> torch.Tensor:
    """Softmax over the keys up to each query of positions start to end: [B * shared, (end - start) * group, end]."""
    scores = torch.bmm(query[:, start * group : end * group], key[:, :end].transpose(1, 2))
    size = end - start
    later = torch.ones(size, size, dtype=torch.bool).triu_(1)[None, :, None, :]
    scores.view(-1, size, group, end)[..., start:].masked_fill_(later, float("-inf"))
    return torch.softmax(scores, -1)


def usable(layer: Any, x: Any, attention_mask: Any, cache: Any) -> bool:
    """Whether the layer's input is one that this module computes."""
    config = layer.self_attn.config
    return bool(
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and attention_mask is None
        and cache is None
        and config.hidden_act == "silu"
        and not (layer.training and config.attention_dropout)
    )


def layer_forward(stock: Any) -> Any:
    """A ``LlamaDecoderLayer.forward`` that computes as above where it can and calls ``stock`` where it cannot."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = False,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        x = hidden_states
        if position_embeddings is None or not usable(self, x, attention_mask, past_key_values):
            untouched: torch.Tensor = stock(
                self, x, attention_mask, position_ids, past_key_values, use_cache, position_embeddings, **kwargs
            )
            return untouched
        attention, mlp = self.self_attn, self.mlp
        y = _norm(self.input_layernorm, x)
        cos, sin = position_embeddings
        seen = CausalAttention.apply(  # type: ignore[no-untyped-call]
            attention.q_proj(y),
            attention.k_proj(y),
            attention.v_proj(y),
            cos,
            sin,
            attention.head_dim,
            attention.scaling,
        )
        x = x + attention.o_proj(seen)
        y = _norm(self.post_attention_layernorm, x)
        inner = SwiGlu.apply(mlp.gate_proj(y), mlp.up_proj(y))  # type: ignore[no-untyped-call]
        out: torch.Tensor = x + mlp.down_proj(inner)
        return out

    return forward


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = RmsNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    return out
