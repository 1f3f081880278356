"""Memory of training and serving, from the model's shape and the params."""

from __future__ import annotations

from dataclasses import dataclass

from protege.cli.plan.rates import Shape

GIB = float(1 << 30)
ACTIVATION_BYTES = 34
"""Bytes for each token and hidden unit that a layer keeps for its backward pass in bf16, attention's matrix not kept
(Korthikanti et al., arXiv 2205.05198, eq. 2 without the quadratic term; for an MLP of four times the hidden size)."""
LOGIT_BYTES = 8
"""Logits and their gradient in fp32, for each token and entry of the vocabulary."""


@dataclass(frozen=True)
class Training:
    """GiB. ``state`` (weights, gradients, AdamW, reference) is sharded over the GPUs; the rest is each GPU's own."""

    weights: float
    gradients: float
    adamw: float
    reference: float
    activations: float
    logits: float

    @property
    def state(self) -> float:
        return self.weights + self.gradients + self.adamw + self.reference

    def on_each(self, gpus: int) -> float:
        return self.state / gpus + self.activations + self.logits


def training(
    shape: Shape, tokens: int, micro_batch: int, *, checkpointing: bool, reference: bool, lora_rank: int = 0
) -> Training:
    """One optimizer's memory: fp32 weights, gradients and two AdamW moments, computing in bf16.

    With LoRA only the adapters (two matrices of ``lora_rank`` for each of the seven linear layers of a block) have
    gradients and moments, and the reference is the base below them.
    """
    trained = _lora_parameters(shape, lora_rank) if lora_rank else shape.parameters
    rows = tokens * micro_batch
    # an MLP of another width than four times the hidden size keeps more or less of it
    width = ACTIVATION_BYTES * (0.5 + 0.5 * shape.intermediate / (4 * shape.hidden))
    layer = rows * shape.hidden * width
    kept = rows * shape.hidden * 2 * shape.layers + layer if checkpointing else layer * shape.layers
    return Training(
        weights=4 * shape.parameters / GIB,
        gradients=4 * trained / GIB,
        adamw=8 * trained / GIB,
        reference=4 * shape.parameters / GIB if reference and not lora_rank else 0.0,
        activations=kept / GIB,
        logits=LOGIT_BYTES * rows * shape.vocabulary / GIB,
    )


def _lora_parameters(shape: Shape, rank: int) -> int:
    kv = shape.kv_heads * shape.head_dim
    ends = 4 * shape.hidden + 2 * (shape.hidden + kv) + 3 * (shape.hidden + shape.intermediate)
    return shape.layers * rank * ends


def serving(shape: Shape, context_tokens: int, rollouts: int, width: int = 2) -> tuple[float, float]:
    """GiB of a copy's weights, and of the cache with every rollout at once at its longest.

    ``width``: bytes of a weight, and of a number in the cache.
    """
    cache = shape.kv_bytes * width / 2 * context_tokens * rollouts
    return width * shape.parameters / GIB, cache / GIB
