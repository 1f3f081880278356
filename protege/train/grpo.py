"""Phase II: GRPO (TRL's GRPOTrainer) on rollouts that somebody else makes, token for token.

Method: advantage = (reward - mean) / std within a group of G rollouts of one instance, clip range 0.20 below and
0.28 above, a KL penalty to the SFT checkpoint (arXiv 2602.22124, Phase II; clip as in DAPO). The sampling server
rounds and batches otherwise than the trainer, so each token's loss is weighted by the truncated ratio
of the trainer's to the server's probability (TRL's ``token_truncate``).

``rl.std_floor`` sets a smallest std, without which a group that differs in next to nothing weighs as much as one whose
rollouts are half of them resolved.

A rollout that failed for reasons of infrastructure is masked: no reward (it is left out of the group's mean
and standard deviation, its advantage is 0) and no token in the loss or the KL. A group whose rewards are equal, or lie
no further apart than ``rl.min_spread``, is skipped in the same way; a step of such groups alone makes no optimizer step,
so that Adam's momentum moves nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from protege.config import RlParams
from protege.errors import BadInput
from protege.files import digest
from protege.identity import code_of
from protege.policy.model_folder import model_digest, quiet
from protege.train.checkpoints import (
    ALREADY_DONE,
    common_arguments,
    keep_finished,
    lora,
    open_checkpoints,
    precision_of,
    save_model_folder,
    take_finished,
    trainer_callback,
)
from protege.train.cpu.speed import fast_cpu, yield_between_threads
from protege.train.rollouts import (
    Rollout,
    RolloutRequest,
    RolloutResult,
    StepLog,
    divided,
    pack,
    schedule,
    stage,
    summarise,
)

__all__ = ["TRL_PRIVATE", "RlParams", "Rollout", "RolloutRequest", "RolloutResult", "schedule", "stage", "train_grpo"]

TRL_PRIVATE = (
    "use_vllm",
    "vllm_mode",
    "_last_loaded_step",
    "vllm_generation",
    "vllm_importance_sampling_correction",
    "_get_per_token_logps_and_entropies",
    "_generate_and_score_completions",
    "_compute_loss",
    "_metrics",
)
"""What of TRL 1.16 we rely on beyond its public API; tests/train/test_grpo.py names them too."""


def train_grpo(
    model_dir: Path | str,
    instance_ids: Sequence[str],
    out_dir: Path | str,
    params: RlParams,
    *,
    rollout: Rollout,
    sync: Callable[[Path], object],
    checkpoint_dir: Path | str,
    steps_path: Path | str,
    dtype: str = "bfloat16",
    identity: str = "",
    progress: Callable[[str], None] | None = None,
    measures: Callable[[], dict[str, float]] | None = None,
    fast: bool = True,
) -> dict[str, Any]:
    """Train ``model_dir`` (the SFT checkpoint, also the KL reference) and write a model folder to ``out_dir``.

    Each step: the current weights are written in ``dtype`` and handed to ``sync`` (``ModelServer.load_weights``),
    ``rollout`` is called once with the step's ``prompts_per_step * group_size`` requests, and one optimizer step
    is made. A killed run goes on from its last complete checkpoint in ``checkpoint_dir``; ``steps_path`` (JSON
    lines, one a step; best below ``checkpoint_dir``) keeps the finished steps.

    Args:
        identity: digest of what else decides the rollouts (instances, reward code, expert): another one starts
            afresh instead of resuming.
        fast: without it TRL's own trainer and kernels do the step, for comparison.
        measures: asked after each step's rollouts for what to put on its line of the step log, as "rollout".

    Returns:
        Metrics: steps, reward_first, reward_last, kl_last, masked_rollouts, groups, groups_without_signal (all
        rewards equal: they teach nothing), steps_without_update, mismatch_mean (of the log-probabilities, trainer to
        sampler, over the steps), seconds, resumed_from, precision (of the products: "bfloat16" or "float32").

    Raises:
        BadInput: an unusable set of instances, or a rollout longer than ``rl.max_tokens``.
    """
    if fast:
        yield_between_threads()
    model_dir, out_dir, checkpoint_dir = Path(model_dir), Path(out_dir), Path(checkpoint_dir)
    plan = schedule(instance_ids, params)
    decides = model_digest(model_dir), plan, params.deciding(), dtype, fast, identity, code_of("protege.train.grpo")
    resume = open_checkpoints(checkpoint_dir, "rl", *decides)
    if (kept := take_finished(checkpoint_dir, out_dir)) is not None:
        if progress:
            progress(ALREADY_DONE)
        return kept
    start = int(resume.name.rsplit("-", 1)[1]) if resume else 0
    log = StepLog(Path(steps_path), start)
    began = time.monotonic()
    with quiet(), fast_cpu(fast):
        trainer = _trainer(model_dir, plan, params, checkpoint_dir, rollout, sync, dtype, log, progress, measures, fast)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    save_model_folder(trainer.model, model_dir, out_dir, dtype)
    rows = log.rows
    metrics = {
        "steps": int(trainer.state.global_step),
        "reward_first": rows[0]["reward_mean"],
        "reward_last": rows[-1]["reward_mean"],
        "kl_last": rows[-1]["kl"],
        "masked_rollouts": sum(row["masked"] for row in rows),
        "groups": sum(row["groups"] for row in rows),
        "groups_without_signal": sum(row["groups_without_signal"] for row in rows),
        "steps_without_update": sum(not row["update"] for row in rows),
        "mismatch_mean": sum(row["mismatch_mean"] for row in rows) / len(rows),
        "seconds": round(time.monotonic() - began, 2),
        "resumed_from": start,
        "precision": precision_of(trainer),
    }
    keep_finished(checkpoint_dir, out_dir, metrics)
    return metrics


def _trainer(
    model_dir: Path,
    plan: list[tuple[int, str]],
    params: RlParams,
    checkpoint_dir: Path,
    rollout: Rollout,
    sync: Callable[[Path], object],
    dtype: str,
    log: StepLog,
    progress: Callable[[str], None] | None,
    measures: Callable[[], dict[str, float]] | None = None,
    fast: bool = True,
) -> Any:
    import os

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from protege.train.trimmed import TrimmedGRPOTrainer

    torch.manual_seed(params.seed)
    batch = params.prompts_per_step * params.group_size
    if batch % params.micro_batch:
        raise BadInput(f"rl.micro_batch = {params.micro_batch} does not divide the {batch} rollouts of a step")
    config = GRPOConfig(
        **common_arguments(params, checkpoint_dir, params.micro_batch, batch // params.micro_batch),
        steps_per_generation=batch // params.micro_batch,
        num_generations=params.group_size,
        num_iterations=1,
        max_completion_length=params.max_tokens,
        lr_scheduler_type="constant",
        temperature=params.temperature,
        beta=params.kl_beta,
        epsilon=params.clip_low,
        epsilon_high=params.clip_high,
        loss_type=params.loss_type,
        scale_rewards="none",  # rollouts.divided did it, where a floor can be set
        mask_truncated_completions=False,
        use_vllm=False,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="token_truncate",
    )
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)

    def roll_out(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        asked = [json.loads(prompt) for prompt in prompts]
        step = int(trainer.state.global_step)
        if len(asked) != batch or any(one["step"] != step for one in asked):
            raise RuntimeError(
                f"TRL asked for {len(asked)} rollouts of steps { {one['step'] for one in asked} } at step {step}"
            )
        requests = []
        for index, one in enumerate(asked):
            group_index = index % params.group_size
            seed = int(digest("rl", params.seed, step, one["instance_id"], group_index)[:15], 16) % 2**31
            requests.append(RolloutRequest(one["instance_id"], seed, step, group_index))
        began = time.monotonic()
        results = list(rollout(requests))
        if len(results) != len(requests):
            raise BadInput(f"{len(requests)} rollouts were asked for, {len(results)} came back")
        parts = {"sync": log.open.pop("sync_seconds"), "rollout": round(time.monotonic() - began, 2)}
        log.open = {**summarise(step, results, params), "seconds": parts, "began": log.open["began"]}
        if measures:
            log.open["rollout"] = measures()
        packed = pack(results, params, filler=int(tokenizer.pad_token_id))
        packed["reward"] = divided(packed["reward"], params.group_size, params.std_floor)
        trainer.sampled = packed["env_mask"]
        return packed

    def reward(reward: list[float | None], **_: Any) -> list[float | None]:
        return reward

    trainer: Any = (TrimmedGRPOTrainer if fast else GRPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": json.dumps({"step": s, "instance_id": i})} for s, i in plan]),
        processing_class=tokenizer,
        rollout_func=roll_out,
        peft_config=lora(params.lora_rank) if params.lora_rank else None,
    )

    if not fast:
        trainer.clock = {}

    class Handover:
        """Stands where TRL keeps its vLLM client: TRL asks it for fresh weights before each step's rollouts."""

        def sync_weights(self) -> None:
            log.open = {"began": time.monotonic()}
            sync(save_model_folder(trainer.model, model_dir, checkpoint_dir / "serve", dtype))
            log.open["sync_seconds"] = round(time.monotonic() - log.open["began"], 2)

    # With use_vllm in the config TRL would start its own client, which needs CUDA; without it TRL skips both the
    # hand-over and the importance-sampling correction. Set after construction, it does both.
    trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, "server", -1
    trainer.vllm_generation = Handover()
    trainer.add_callback(trainer_callback(progress, lambda step, logs: log.close(logs, trainer.clock)))
    trainer.add_callback(_skip_empty_steps(trainer))
    trainer.remove_callback(PrinterCallback)
    return trainer


def _skip_empty_steps(trainer: Any) -> Any:
    from transformers import TrainerCallback

    class Skip(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not any(map(any, trainer.sampled)):
                trainer.model.zero_grad(set_to_none=True)  # Adam leaves a parameter without a gradient alone

    return Skip()
