"""The vocabulary projection of scored positions on a CPU: one bf16 product, kept for the backward pass.

TRL's ``ChunkedLogProbFunction`` never holds the logits and so makes them twice, a vocabulary chunk at a time with a
dozen passes over each. A trajectory's few hundred labelled positions fit: their probabilities are kept in bf16 (the
precision in which TRL hands the logits' gradient on), everything that is logged or summed is fp32.
"""

from __future__ import annotations

from typing import Any

import torch

_ROWS = 64
"""Positions whose fp32 logits are in work at once (64 x 49,152 x 4 bytes = 12 MB)."""
_KEPT_BYTES = 512 * 2**20


class LogProb(torch.autograd.Function):
    """log softmax(hidden @ weight.T / temperature)[target] of hidden [N, H], weight [V, H]; and what is logged of it.

    Returns (log_probs, entropy or None, is_top1 or None), each [N]; only log_probs is differentiable.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Any, weight: Any, targets: Any, temperature: float, entropy: bool, top1: bool
    ) -> tuple[Any, Any, Any]:
        small, table = hidden.to(torch.bfloat16), weight.to(torch.bfloat16)
        logits = small @ table.t()
        count = len(targets)
        log_probs = torch.empty(count)
        entropies = torch.empty(count) if entropy else None
        best = torch.empty(count, dtype=torch.bool) if top1 else None
        for start in range(0, count, _ROWS):
            rows = slice(start, start + _ROWS)
            part = logits[rows].float()
            if temperature != 1.0:
                part.div_(temperature)
            part = torch.log_softmax(part, -1)
            log_probs[rows] = part.gather(-1, targets[rows, None]).squeeze(-1)
            if best is not None:
                best[rows] = part.argmax(-1) == targets[rows]
            chance = part.exp()
            logits[rows] = chance
            if entropies is not None:
                entropies[rows] = -chance.mul_(part).sum(-1)
        ctx.save_for_backward(small, table, targets)
        ctx.chances, ctx.temperature, ctx.dtypes = logits, temperature, (hidden.dtype, weight.dtype)
        ctx.mark_non_differentiable(*(x for x in (entropies, best) if x is not None))
        ctx.set_materialize_grads(False)
        return log_probs, entropies, best

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> tuple[Any, ...]:
        small, table, targets = ctx.saved_tensors
        if grad is None:
            return None, None, None, None, None, None
        grad = grad.float() / ctx.temperature
        chances = ctx.chances
        # In fp32 before the one rounding: 1 - p of a confident token would be lost in bf16.
        own = chances.gather(-1, targets[:, None]).float().neg_().add_(1.0).mul_(grad[:, None])
        chances.mul_(-grad.to(torch.bfloat16)[:, None]).scatter_(-1, targets[:, None], own.to(torch.bfloat16))
        ctx.chances = None
        to_hidden = (chances @ table).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        to_weight = (chances.t() @ small).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        return to_hidden, to_weight, None, None, None, None


class Head:
    """Stands where TRL keeps ``_ChunkedLogProbFunction``; hands what it does not compute to the ``stock`` one."""

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def apply(
        self,
        hidden: Any,
        weight: Any,
        bias: Any,
        targets: Any,
        temperature: float,
        chunk: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Any, ...]:
        """As ``ChunkedLogProbFunction.apply``: (log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1)."""
        if (
            hidden.device.type != "cpu"
            or not torch.is_autocast_enabled("cpu")
            or bias is not None
            or softcap is not None
            or scale != 1.0
            or {"log_sum_sq_probs", "mean_logits"} & set(outputs)
            or len(targets) * weight.shape[0] * 2 > _KEPT_BYTES
        ):
            return tuple(self.stock.apply(hidden, weight, bias, targets, temperature, chunk, softcap, scale, outputs))
        log_probs, entropy, best = LogProb.apply(  # type: ignore[no-untyped-call]
            hidden, weight, targets, temperature, "entropy" in outputs, "is_top1" in outputs
        )
        return log_probs, entropy, None, None, best
