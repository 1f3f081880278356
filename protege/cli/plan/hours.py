"""Seconds of each stage: on a CPU from measured rates, on GPUs from operations counted and assumed shares of the peak."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from protege.cli.plan.rates import Gpu, Rate, Rates, Shape
from protege.params import Params


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml. ``assumptions`` are the sentences that the seconds rest on."""

    name: str
    seconds: float
    assumptions: tuple[str, ...]
    measured: bool


@dataclass(frozen=True)
class Work:
    """What is done however fast it is done. Counts of rollouts, instances and tokens."""

    instances: int
    teacher_rollouts: int
    rl_rollouts: int
    evaluation_rollouts: int
    sft_tokens: int
    sft_tokens_at_most: int
    rl_tokens: int
    rl_tokens_at_most: int
    evaluation_tokens: int
    evaluation_tokens_at_most: int

    @property
    def gradings(self) -> int:
        return self.teacher_rollouts + self.rl_rollouts + self.evaluation_rollouts


def work(p: Params, rates: Rates, device: str) -> Work:
    """From the params; token counts from the rates of ``device`` ("cpu" or "gpu")."""
    wanted = {name: split.count for name, split in p.instances.splits.items()}
    samples = sum(p.evaluate.samples_of(model) for model in p.evaluate.models)
    evaluated = wanted.get("eval", 0) * samples * len(p.evaluate.experts)
    rollouts = p.rl.steps * p.rl.prompts_per_step * p.rl.group_size
    rows = p.sft.steps * p.sft.batch_size
    context = p.agent.context_tokens
    if device == "cpu":
        row = min(p.sft.max_length, context, rates["cpu", "row_tokens"].value)
        trained = rates["cpu", "trained_tokens_share"].value * p.rl.max_tokens
        sampled = p.agent.step_limit * rates["cpu", "turn_share"].value * rates["cpu", "turn_tokens"].value
    else:
        row = min(p.sft.max_length, rates["gpu", "row_tokens_share"].value * context)
        before, after = (rates["gpu", f"turns_{when}_rl"].value for when in ("before", "after"))
        share = rates["gpu", "row_tokens_share"].value
        trained = share * (before + after) / 2 / before * p.rl.max_tokens
        turns = min(p.agent.step_limit, before)
        sampled = turns * rates["gpu", "turn_tokens"].value
    return Work(
        instances=sum(wanted.values()),
        teacher_rollouts=wanted.get("sft", 0) * p.trajectories.attempts,
        rl_rollouts=rollouts,
        evaluation_rollouts=evaluated,
        sft_tokens=round(rows * row),
        sft_tokens_at_most=rows * p.sft.max_length,
        rl_tokens=round(rollouts * trained),
        rl_tokens_at_most=rollouts * p.rl.max_tokens,
        evaluation_tokens=round(evaluated * sampled),
        evaluation_tokens_at_most=evaluated * context,
    )


def stages(p: Params, shape: Shape, rates: Rates, device: str, gpu: Gpu, gpus: int) -> list[Stage]:
    """Every stage of dvc.yaml, in its order."""
    done = work(p, rates, device)
    common = [_model(p, shape, rates), _instances(p, done, rates, device), _trajectories(p, done, rates, device)]
    validate, report = rates["shared", "validate_s"], rates["shared", "report_s"]
    more = done.teacher_rollouts / 1000  # seconds: Great Expectations takes one for a thousand rows (measured)
    last = Stage("report", report.value + done.evaluation_rollouts / 100, (f"{report}; 10 ms more a rollout",), True)
    checked = Stage("validate", validate.value + more, (str(validate),), True)
    learned = _cpu(p, done, rates) if device == "cpu" else _gpu(p, done, shape, rates, gpu, gpus)
    return [*common, checked, *learned, last]


def _model(p: Params, shape: Shape, rates: Rates) -> Stage:
    if p.model.source == "embedded":
        rate = rates["shared", "model_s"]
        return Stage("model", rate.value, (str(rate),), True)
    if Path(p.model.source).is_dir():
        return Stage("model", 2 * shape.parameters / 1e9, ("copied at 1 GB/s (assumed)",), False)
    rate = rates["gpu", "fetch_mb_per_s"]
    return Stage("model", 2 * shape.parameters / 1e6 / rate.value, (f"MB/s {rate}",), False)


def _grade(rates: Rates, p: Params) -> Rate:
    return rates["shared", "grade_s"] if p.instances.source == "desk" else rates["gpu", "grade_s"]


def _instances(p: Params, done: Work, rates: Rates, device: str) -> Stage:
    grade = _grade(rates, p)
    gradings = done.instances * (p.instances.preflight + 1 if p.instances.preflight else 0)
    seconds = gradings * grade.value / p.instances.workers
    said = [f"{gradings} gradings before an instance counts, {p.instances.workers} at once, of seconds {grade}"]
    if p.instances.source == "desk":
        rate = rates["shared", "instance_s"]
        seconds += done.instances * rate.value
        said.append(f"seconds for each instance kept {rate}")
    return Stage("instances", seconds, tuple(said), grade.basis == "measured")


def _trajectories(p: Params, done: Work, rates: Rates, device: str) -> Stage:
    if p.instances.source == "desk":
        rate = rates["shared", "teacher_rollout_s"]
        return Stage("trajectories", done.teacher_rollouts * rate.value, (f"seconds a rollout {rate}",), True)
    tool, turns, grade = rates["gpu", "tool_s"], rates["gpu", "turns_before_rl"], _grade(rates, p)
    each = min(p.agent.step_limit, turns.value) * tool.value + grade.value
    return Stage(
        "trajectories",
        done.teacher_rollouts * each / p.trajectories.workers,
        (f"turns {turns}", f"seconds a command {tool}", f"seconds a grading {grade}",
         f"{p.trajectories.workers} at once"),
        False,
    )  # fmt: skip


def _cpu(p: Params, done: Work, rates: Rates) -> list[Stage]:
    row, speed, start = (rates["cpu", name] for name in ("row_tokens", "sft_tokens_per_s", "sft_start_s"))
    token, serve, step = (
        rates["cpu", name] for name in ("grpo_s_per_rollout_token", "server_start_s", "rollout_s_per_step")
    )
    evaluate = len(p.evaluate.models) * serve.value + done.evaluation_rollouts * p.agent.step_limit * step.value
    return [
        Stage(
            "sft",
            start.value + done.sft_tokens / speed.value,
            (f"tokens a row {row}", f"tokens a second {speed}"),
            True,
        ),
        Stage(
            "rl",
            serve.value + start.value + done.rl_tokens * token.value,
            (f"seconds a token of rl.max_tokens {token}", f"server start {serve}"),
            True,
        ),
        Stage("evaluate", evaluate, (f"seconds a step allowed {step}", f"server start {serve}, one a model"), True),
    ]


def train_operations(shape: Shape, tokens: float, length: float) -> float:
    """Operations of forward and backward: 6 for each parameter and token, and 6 times layers, hidden size and length
    for each token in causal attention (Chowdhery et al., arXiv 2204.02311, appendix B, halved for the causal mask)."""
    return tokens * (6 * shape.parameters + 6 * shape.layers * shape.hidden * length)


def _gpu(p: Params, done: Work, shape: Shape, rates: Rates, gpu: Gpu, gpus: int) -> list[Stage]:
    mfu, serve, tool = (rates["gpu", name] for name in ("mfu", "server_start_s", "tool_s"))
    flops = gpus * gpu.tflops * 1e12 * mfu.value
    row = done.sft_tokens / max(1, p.sft.steps * p.sft.batch_size)
    again = 4 / 3 if p.sft.gradient_checkpointing else 1.0
    sft = train_operations(shape, done.sft_tokens, row) * again / flops
    peak = f"{gpus} x {gpu.name}, {gpu.tflops:g} TFLOPS each, of which {mfu}"

    length = done.rl_tokens / max(1, done.rl_rollouts)
    again = 4 / 3 if p.rl.gradient_checkpointing else 1.0
    # forward and backward count 3 forwards; the old and the reference log-probabilities are one each
    extra = (2 if p.rl.kl_beta else 1) / 3
    train = train_operations(shape, done.rl_tokens, length) * (again + extra) / flops
    before, after = (rates["gpu", f"turns_{when}_rl"] for when in ("before", "after"))
    mean_turns = min(p.agent.step_limit, (before.value + after.value) / 2)
    one_step = p.rl.prompts_per_step * p.rl.group_size
    grade = _grade(rates, p)
    waves = p.rl.steps * math.ceil(one_step / p.rl.workers)
    each = _rollout_s(p, shape, rates, gpu, gpus, min(one_step, p.rl.workers), mean_turns)
    rl = serve.value + train + waves * (each + grade.value)

    turns = min(p.agent.step_limit, before.value)
    evaluated = _rollout_s(p, shape, rates, gpu, gpus, p.evaluate.workers, turns) + grade.value
    waves_e = done.evaluation_rollouts / p.evaluate.workers
    evaluate = len(p.evaluate.models) * serve.value + waves_e * evaluated
    decode = (
        f"decoding is bound by memory: {gpu.tb_per_s:g} TB/s, of which {rates['gpu', 'bandwidth_share']}",
        f"sampled tokens a turn {rates['gpu', 'turn_tokens']}",
        f"seconds a command {tool}",
        f"seconds a grading {grade}",
    )
    return [
        Stage("sft", sft, (peak, "6 operations a parameter and token, attention besides"), False),
        Stage("rl", rl, (peak, f"turns {before}, falling to {after}", f"{p.rl.workers} rollouts at once", *decode,
                         "the same GPUs sample and train by turns"), False),
        Stage("evaluate", evaluate, (f"turns {before}", f"{p.evaluate.workers} rollouts at once", *decode), False),
    ]  # fmt: skip


def _rollout_s(p: Params, shape: Shape, rates: Rates, gpu: Gpu, gpus: int, at_once: int, turns: float) -> float:
    """Seconds of a rollout beside ``at_once - 1`` others: each token reads the weights and the caches of its GPU."""
    on_one = max(1.0, at_once / gpus)
    context = (
        rates["gpu", "row_tokens_share"].value * p.agent.context_tokens / 2
    )  # half of it, on the average over turns
    read = 2 * shape.parameters + on_one * context * shape.kv_bytes
    token = read / (gpu.tb_per_s * 1e12 * rates["gpu", "bandwidth_share"].value)
    prompt = on_one * 2 * shape.parameters * 2 * context / (gpu.tflops * 1e12 * rates["gpu", "prefill_mfu"].value)
    return float(turns * (rates["gpu", "turn_tokens"].value * token + rates["gpu", "tool_s"].value) + prompt)
