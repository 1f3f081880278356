"""GRPOTrainer without the work that changes no number. Imported lazily (it imports TRL).

* Each micro-batch is cut to its own extent; TRL pads it to the longest sequence of the whole step.
* Only sampled positions go through the vocabulary projection; TRL scores the environment's tokens too and masks them.
* A step makes one optimizer step of what it sampled, so the policy's log-probabilities before the step are those of
  the training pass itself: TRL makes a pass of its own for them.
* Rows without a sampled token (masked, or of a group without signal) make no pass at all.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from trl import GRPOTrainer


class TrimmedGRPOTrainer(GRPOTrainer):
    """Set ``sampled`` (one mask over each completion, in the order of the rows) before TRL scores what was rolled out.

    ``clock`` adds up the seconds of "reference", "forward" and "backward" until its owner clears it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sampled: list[list[int]] = []
        self.clock: dict[str, float] = defaultdict(float)
        self._in_loss: dict[str, Any] | None = None
        self._gap = [0.0, 0.0, 0.0, 0.0]  # of |log-probability differences|: count, sum, max; sum of the ratios
        per_generation = self.args.steps_per_generation  # type: ignore[attr-defined]
        once = self.num_iterations == 1 and self.args.gradient_accumulation_steps == per_generation
        if not once or self.aux_loss_enabled or self.vllm_importance_sampling_mode != "token_truncate":
            raise ValueError("TrimmedGRPOTrainer: one optimizer step a generation, no router loss, token_truncate")

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        # Off while TRL scores, it makes no pass for the old log-probabilities; _compute_loss has them for nothing.
        self._gap = [0.0, 0.0, 0.0, 0.0]
        began, correct = time.monotonic(), self.vllm_importance_sampling_correction
        self.vllm_importance_sampling_correction = False
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self.vllm_importance_sampling_correction = correct
            self.clock["generation"] += time.monotonic() - began

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        began = time.monotonic()
        self._in_loss = inputs
        try:
            if self._alone and not (inputs["completion_mask"] * inputs["tool_mask"]).any():
                return self._nothing(model)
            return super()._compute_loss(model, inputs)  # type: ignore[no-untyped-call]
        finally:
            self._in_loss = None
            self.clock["forward"] += time.monotonic() - began

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        before = self.clock["generation"] + self.clock["forward"]
        loss = super().training_step(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.clock["backward"] += time.monotonic() - began - (self.clock["generation"] + self.clock["forward"] - before)
        return loss

    @property
    def _alone(self) -> bool:
        """Other processes wait for the gradients of every pass."""
        return bool(self.accelerator.num_processes == 1)

    def _nothing(self, model: Any) -> Any:
        """A zero that backward() accepts, at the price of the smallest parameter's gradient."""
        return min((p for p in model.parameters() if p.requires_grad), key=lambda p: p.numel()).sum() * 0.0

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Any,
        attention_mask: Any,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[Any, Any, Any]:
        began = time.monotonic()
        scored = attention_mask[:, -logits_to_keep:].bool() & self._sampled(logits_to_keep, input_ids.device)
        logps = torch.zeros(scored.shape, device=input_ids.device)
        entropies = torch.zeros_like(logps) if compute_entropy else None
        parts = []
        size = batch_size or input_ids.size(0)
        for start in range(0, input_ids.size(0), size):
            rows = slice(start, start + size)
            mask = attention_mask[rows]
            if self._alone and not scored[rows].any():
                continue
            used = mask.any(dim=0).nonzero()
            first, last = int(used[0]), int(used[-1]) + 1
            cut = input_ids.size(1) - last
            keep = min(logits_to_keep - cut, last - first - 1)
            labels = torch.full_like(input_ids[rows], -100)
            labels[:, -logits_to_keep:] = input_ids[rows, -logits_to_keep:].masked_fill(~scored[rows], -100)
            window = slice(first, last)
            with self.accelerator.autocast():
                out = model(
                    input_ids=input_ids[rows, window],
                    attention_mask=mask[:, window],
                    labels=labels[:, window],
                    fused_lm_head=True,
                )
            place = slice(logits_to_keep - cut - keep, logits_to_keep - cut)
            parts.append((rows, place, out.log_probs[:, -keep:]))
            if entropies is not None:
                entropies[rows, place] = out.entropy[:, -keep:].detach()
        for rows, place, part in parts:
            logps[rows, place] = part
        if self._in_loss is None:
            self.clock["reference"] += time.monotonic() - began
        elif self.vllm_importance_sampling_correction and "sampling_per_token_logps" in self._in_loss:
            self._correct(self._in_loss, logps.detach(), scored)
        return logps, entropies, None

    def _sampled(self, width: int, device: Any) -> Any:
        if self._in_loss is not None:
            return self._in_loss["tool_mask"].bool()
        mask = torch.zeros(len(self.sampled), width, dtype=torch.bool)
        for row, one in enumerate(self.sampled):
            mask[row, : len(one)] = torch.tensor(one, dtype=torch.bool)
        return mask.to(device)

    def _correct(self, inputs: dict[str, Any], logps: Any, scored: Any) -> None:
        """The truncated ratio of the trainer's to the sampler's probability of each token, and how far it is from 1.

        As TRL's ``token_truncate``. What TRL logs over the generation batch is added up over its micro-batches here.
        """
        gap = torch.nan_to_num((logps - inputs["sampling_per_token_logps"]) * scored, nan=0.0)
        ratio = torch.exp(gap).clamp(
            min=self.vllm_importance_sampling_clip_min, max=self.vllm_importance_sampling_clip_max
        )
        inputs["importance_sampling_ratio"] = ratio
        sizes = gap[scored].abs()
        count, total, most, ratios = self._gap
        count, total = count + sizes.numel(), total + float(sizes.sum())
        self._gap = [count, total, max(most, float(sizes.max())), ratios + float(ratio[scored].sum())]
        metrics = self._metrics["train"]
        metrics["sampling/sampling_logp_difference/mean"] = [total / count]
        metrics["sampling/sampling_logp_difference/max"] = [self._gap[2]]
        metrics["sampling/importance_sampling_ratio/mean"] = [self._gap[3] / count]
