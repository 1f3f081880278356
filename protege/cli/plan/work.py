"""How much each stage does, and how long what was measured takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from protege.cli.plan.rates import Rates, Shape
from protege.config import Params


@dataclass(frozen=True)
class Tokens:
    expected: float
    at_most: float
    assumption: str


@dataclass(frozen=True)
class Work:
    """Counts of instances and rollouts, and their tokens: the same however fast it is done."""

    instances: int
    teacher_rollouts: int
    rl_rollouts: int
    evaluation_rollouts: int
    sft: Tokens
    rl: Tokens
    evaluation: Tokens

    @property
    def rollouts(self) -> int:
        return self.teacher_rollouts + self.rl_rollouts + self.evaluation_rollouts


def count(p: Params, rates: Rates, device: str) -> Work:
    """From the params; token counts from the rates of ``device`` ("cpu" or "gpu")."""
    wanted = {name: split.count for name, split in p.instances.splits.items()}
    samples = sum(p.evaluate.samples_of(model) for model in p.evaluate.models)
    evaluated = wanted.get("eval", 0) * samples * len(p.evaluate.experts)
    rollouts = p.rl.steps * p.rl.prompts_per_step * p.rl.group_size
    rows, context, steps = p.sft.steps * p.sft.batch_size, p.agent.context_tokens, p.agent.step_limit
    turn = rates[device, "turn_tokens"]
    if device == "cpu":
        length, trained_share, turn_share = (rates["cpu", n] for n in ("row_tokens", "trained_share", "turn_share"))
        row, in_row = length.value, f"tokens a row {length}"
        trained, in_rl = trained_share.value, f"share of them used {trained_share}"
        turns, in_turns = steps * turn_share.value, f"share of the steps taken {turn_share}"
    else:
        share, before, after = (rates["gpu", n] for n in ("row_share", "turns_before_rl", "turns_after_rl"))
        row, in_row = share.value * context, f"share of agent.context_tokens in a row {share}"
        trained = share.value * (before.value + after.value) / 2 / before.value
        in_rl = f"share of them used {share}, falling with the turns: {before}, then {after}"
        turns, in_turns = min(steps, before.value), f"turns {before}"
    return Work(
        instances=sum(wanted.values()),
        teacher_rollouts=wanted.get("sft", 0) * p.trajectories.attempts,
        rl_rollouts=rollouts,
        evaluation_rollouts=evaluated,
        sft=Tokens(
            rows * min(p.sft.max_length, context, row), rows * p.sft.max_length,
            f"counted: {rows} rows = sft.steps x sft.batch_size, at most sft.max_length each; {in_row}",
        ),
        rl=Tokens(
            rollouts * trained * p.rl.max_tokens, rollouts * p.rl.max_tokens,
            f"counted: {rollouts} rollouts = rl.steps x prompts_per_step x group_size, at most rl.max_tokens each; {in_rl}",
        ),
        evaluation=Tokens(
            evaluated * min(turns * turn.value, context), evaluated * context,
            f"counted: {evaluated} rollouts = eval instances x models x experts (x samples), at most "
            f"agent.context_tokens each; {in_turns}; tokens a turn {turn}",
        ),
    )  # fmt: skip


def hours(p: Params, shape: Shape, rates: Rates, device: str, done: Work) -> Iterator[tuple[str, float | None, str]]:
    """Stage, seconds and assumption for each stage of dvc.yaml, in order. Seconds are None where nobody has timed it."""
    model, instance, grade, rollout, validate, report = (
        rates["shared", n] for n in ("model_s", "instance_s", "grade_s", "rollout_s", "validate_s", "report_s")
    )
    start, speed, serve, token, step = (
        rates["cpu", n] for n in ("sft_start_s", "sft_tokens_per_s", "server_start_s", "rl_token_s", "evaluate_step_s")
    )
    gradings = done.instances * (p.instances.preflight + 1 if p.instances.preflight else 0)
    desk = p.instances.desk
    here = desk and device == "cpu" and shape.parameters == rates.shape("embedded").parameters
    ours = "the embedded model on 2 cores with the desk suite"
    # Great Expectations takes a second for a thousand rows, the report 10 ms for a rollout (measured).
    stages = (
        ("model", model.value, str(model), p.model.source == "embedded", "the embedded model"),
        ("instances", done.instances * instance.value + gradings * grade.value / p.instances.workers,
         f"seconds for each instance kept {instance}; {gradings} gradings before an instance counts, "
         f"{p.instances.workers} at once, of seconds {grade}", desk, "the desk suite"),
        ("trajectories", done.teacher_rollouts * rollout.value, f"seconds a rollout {rollout}",
         desk and p.trajectories.teacher == "scripted", "the scripted teacher on the desk suite"),
        ("validate", validate.value + done.teacher_rollouts / 1000, str(validate), True, ""),
        ("sft", start.value + done.sft.expected / speed.value, f"tokens a second {speed}", here, ours),
        ("rl", serve.value + start.value + done.rl.expected * token.value,
         f"seconds a token of rl.max_tokens {token}; server start {serve}", here, ours),
        ("evaluate",
         len(p.evaluate.models) * serve.value + done.evaluation_rollouts * p.agent.step_limit * step.value,
         f"seconds a step allowed {step}; server start {serve}, one a model", here, ours),
        ("report", report.value + done.evaluation_rollouts / 100, f"{report}; 10 ms more a rollout", True, ""),
    )  # fmt: skip
    for stage, seconds, assumption, measured, timed in stages:
        yield (
            (stage, seconds, f"measured rates: {assumption}")
            if measured
            else (stage, None, f"not measured: only {timed} was timed")
        )
