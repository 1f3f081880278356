"""What a run of some params would need: memory, tokens, hours, disk, expert cost, each with its assumption beside it.

Nothing is run, nothing is contacted. Rates are those of rates.yaml; what nobody has measured is called assumed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from protege.cli.plan import cost, hours, memory
from protege.cli.plan.page import Line, Plan, as_json, as_text
from protege.cli.plan.rates import Gpu, Rates, Shape
from protege.errors import BadInput
from protege.params import Params
from protege.policy import precision

__all__ = ["Line", "Plan", "as_json", "as_text", "plan"]

Device = Literal["cpu", "gpu"]


def plan(
    params: Params,
    *,
    device: Device | None = None,
    gpu: str = "h100",
    gpus: int = 8,
    root: Path = Path(),
    env: Mapping[str, str] = os.environ,
) -> Plan:
    """``device`` None is a CPU for a model of less than a billion parameters, else GPUs.

    Raises:
        BadInput: a model or GPU whose figures are not known.
    """
    if gpus < 1:
        raise BadInput(f"--gpus {gpus}: at least 1 is needed")
    rates = Rates()
    card, shape = rates.gpu(gpu), rates.shape(params.model.source, root)
    where = device or ("cpu" if shape.parameters < 1e9 else "gpu")
    name = f"2-core CPU ({rates.machine})" if where == "cpu" else f"{gpus} x {card.name} (assumed; never run here)"
    made = Plan(params.profile, shape.name, name)
    done = hours.work(params, rates, where)
    _memory(made, params, shape, rates, where, card, gpus)
    _tokens(made, done)
    for stage in hours.stages(params, shape, rates, where, card, gpus):
        basis = "measured rates" if stage.measured else "assumed"
        made.lines.append(
            Line("hours", stage.name, stage.seconds / 3600, "h", f"{basis}: {'; '.join(stage.assumptions)}")
        )
    total = sum(line.value or 0 for line in made.lines if line.section == "hours")
    made.lines.append(Line("hours", "all stages", total, "h", "one after the other; set-up and queues not counted"))
    _disk(made, params, shape, rates, done)
    _cost(made, params, rates, done, where, env)
    if where == "gpu" and gpus > 1:
        made.notes.append(
            f"training on {gpus} GPUs is assumed but not wired into the stages (docs/scale.md lists the gaps)"
        )
    if where == "cpu" and not precision.cpu_has_bf16():
        slower = rates["cpu", "fp32_factor"]
        made.notes.append(
            f"{precision.NO_BF16}: expect sft to take {slower} times the hours above, rl some four times, "
            "evaluate twice (assumed)"
        )
    _notes(made, params, rates)
    return made


def _memory(made: Plan, p: Params, shape: Shape, rates: Rates, device: str, card: Gpu, gpus: int) -> None:
    share = gpus if device == "gpu" else 1
    room = card.memory_gib * rates["gpu", "usable_memory"].value
    what = f"GiB on each of {gpus} GPUs" if device == "gpu" else "GiB"
    needed: dict[str, float] = {}
    rank = p.sft.lora_rank if p.sft.method == "lora" else 0
    for name, train in (
        ("sft", memory.training(shape, p.sft.max_length, p.sft.micro_batch or p.sft.batch_size,
                                checkpointing=p.sft.gradient_checkpointing, reference=False, lora_rank=rank)),
        ("rl", memory.training(shape, p.rl.max_tokens, p.rl.micro_batch,
                               checkpointing=p.rl.gradient_checkpointing, reference=p.rl.kl_beta > 0,
                               lora_rank=p.rl.lora_rank)),
    ):  # fmt: skip
        parts = f"weights {train.weights:.1f}, gradients {train.gradients:.1f}, AdamW {train.adamw:.1f} GiB in fp32"
        parts += f", reference model {train.reference:.1f}" if train.reference else ""
        parts += f"; sharded over {gpus} (FSDP)" if device == "gpu" else ""
        made.lines.append(Line("memory", f"{name}: state", train.state / share, what, f"counted: {parts}"))
        section = p.sft if name == "sft" else p.rl
        made.lines.append(
            Line("memory", f"{name}: activations", train.activations, what,
                 f"counted: {p.sft.max_length if name == 'sft' else p.rl.max_tokens} tokens, gradient checkpointing "
                 f"{'on' if section.gradient_checkpointing else 'off'}, attention's matrix not kept")
        )  # fmt: skip
        made.lines.append(
            Line(
                "memory",
                f"{name}: logits",
                train.logits,
                what,
                f"counted: {shape.vocabulary} entries a token, fp32, with gradient; none skipped",
            )
        )
        total = needed[name] = train.on_each(share)
        basis = "sum of the three"
        if device == "cpu":
            basis += f"; measured for 135M parameters: {rates['cpu', 'trainer_gib'].value} GiB resident"
        made.lines.append(Line("memory", f"{name}: training", total, what, basis))
        if device == "gpu" and total > room:
            made.notes.append(_does_not_fit(name, section.gradient_checkpointing, total, room, card))
    workers = max(p.rl.workers, p.evaluate.workers)
    dtype = precision.computed_in(p.model.dtype, device == "cpu")
    served = memory.serving(shape, p.agent.context_tokens, workers, 4 if dtype == "float32" else 2)
    made.lines.append(Line("memory", "serving: weights", served.weights, what, f"counted: {dtype}, a copy on each"))
    made.lines.append(
        Line("memory", "serving: KV cache", served.cache / share, what,
             f"counted: {workers} rollouts at once (rl.workers, evaluate.workers), each with all of agent.context_tokens; "
             "with less, some wait")
    )  # fmt: skip
    if device == "gpu" and needed["rl"] <= room < needed["rl"] + served.on_each(gpus):
        made.notes.append(
            f"rl: the model server ({served.on_each(gpus):.0f} GiB) and the trainer ({needed['rl']:.0f} GiB) do not fit into one "
            f"{card.name} together; give each GPUs of its own (CUDA_VISIBLE_DEVICES), which adds to the hours"
        )
    if device == "gpu" and served.on_each(gpus) > room:
        made.notes.append(
            f"serving: {served.on_each(gpus):.0f} GiB of {room:.0f} usable on each {card.name}: rollouts will wait for each other"
        )


def _does_not_fit(name: str, checkpointing: bool, total: float, room: float, card: Gpu) -> str:
    what = "shorten the rows or add GPUs" if checkpointing else f"set {name}.gradient_checkpointing: true"
    return f"{name}: {total:.0f} GiB do not fit into the {room:.0f} usable of one {card.name}; {what}"


def _tokens(made: Plan, done: hours.Work) -> None:
    rows = (
        ("sft, trained on", done.sft_tokens, done.sft_tokens_at_most, "rows = sft.steps x sft.batch_size; at most sft.max_length each"),
        ("rl, sampled and trained on", done.rl_tokens, done.rl_tokens_at_most,
         f"{done.rl_rollouts} rollouts = rl.steps x prompts_per_step x group_size; at most rl.max_tokens each"),
        ("evaluate, sampled", done.evaluation_tokens, done.evaluation_tokens_at_most,
         f"{done.evaluation_rollouts} rollouts = eval instances x models x experts (x samples); at most agent.context_tokens each"),
    )  # fmt: skip
    for name, expected, most, why in rows:
        made.lines.append(Line("tokens", name, float(expected), "tokens", f"counted: {why}", float(most)))


def _disk(made: Plan, p: Params, shape: Shape, rates: Rates, done: hours.Work) -> None:
    models = 1 + 2  # base, sft, rl
    weights = 2 * shape.parameters / 1e9
    checkpoint = 16 * shape.parameters / 1e9
    if p.instances.source == "desk":
        packages = {name for split in p.instances.splits.values() for name in split.packages}
        images = (
            len(packages) * rates["shared", "package_image_mb"].value
            + done.instances * rates["shared", "instance_mb"].value
        ) / 1000
        why = f"an image a package (MB {rates['shared', 'package_image_mb']}), a layer an instance (MB {rates['shared', 'instance_mb']})"
    else:
        images = done.instances * rates["gpu", "image_gb"].value
        why = f"one image an instance, GB {rates['gpu', 'image_gb']}"
    kept = (
        (done.teacher_rollouts + done.rl_rollouts + done.evaluation_rollouts)
        * rates["shared", "trajectory_kb"].value
        / 1e6
    )
    rows = (
        ("models", 2 * models * weights, f"counted: {models} folders in bf16, each a second time in DVC's cache"),
        ("checkpoints", 2 * checkpoint, "counted: fp32 weights, gradients' moments; at most two kept while training"),
        ("images", images, why),
        (
            "trajectories",
            3 * kept,
            f"{done.gradings} rollouts in data/, DVC's cache and the store, KB {rates['shared', 'trajectory_kb']}",
        ),
    )
    for name, value, assumption in rows:
        made.lines.append(Line("disk", name, value, "GB", assumption))
    made.lines.append(
        Line("disk", "all", sum(row[1] for row in rows), "GB", "the virtual environment (3 to 12 GB) comes on top")
    )


def _cost(made: Plan, p: Params, rates: Rates, done: hours.Work, device: str, env: Mapping[str, str]) -> None:
    roles = cost.asked(p, done, rates, device)
    if not roles:
        made.lines.append(Line("cost", "experts, judges, teachers", 0.0, "USD", "all are the offline ones", 0.0))
        return
    totals: dict[str, list[tuple[float, float]]] = {}
    for a in roles:
        made.lines.append(
            Line("cost", f"{a.role}: calls", float(a.calls), "calls", a.assumption, float(a.calls_at_most))
        )
        million = [
            f"{n / 1e6:.1f} M"
            for n in (a.input_tokens, a.input_tokens_at_most, a.output_tokens, a.output_tokens_at_most)
        ]
        tokens = "input {}, at most {}; replies {}, at most {}".format(*million)
        made.lines.append(
            Line("cost", f"{a.role}: tokens", float(a.input_tokens + a.output_tokens), "tokens", tokens,
                 float(a.input_tokens_at_most + a.output_tokens_at_most))
        )  # fmt: skip
        chosen = _model_of(a.role, env)
        source = "the environment names it" if chosen else "the environment names no model: each that has a price"
        for model in [chosen] if chosen else sorted(p.api.prices) or ["any model"]:
            price = cost.usd(p, model, a)
            if price is None:
                known = ", ".join(sorted(p.api.prices)) or "none"
                why = f"price unknown: api.prices has none for {model} (known: {known})"
                made.lines.append(Line("cost", f"{a.role}: {model}", None, "USD", why))
                continue
            why = f"api.prices; {source}; no input counted as cached"
            made.lines.append(Line("cost", f"{a.role}: {model}", price[0], "USD", why, price[1]))
            totals.setdefault(model if not chosen else "", []).append(price)
    _totals(made, p, totals, len(roles))


def _totals(made: Plan, p: Params, totals: Mapping[str, list[tuple[float, float]]], roles: int) -> None:
    """The sum over the roles, for the models that the environment names or else for each that has a price."""
    sums = []
    for model, prices in totals.items():
        if len(prices) < roles:
            continue
        expected, most = sum(price[0] for price in prices), sum(price[1] for price in prices)
        sums.append(expected)
        made.lines.append(
            Line("cost", f"all: {model}" if model else "all", expected, "USD", "sum over the roles", most)
        )
    budget = p.api.budget_usd
    if budget is not None and sums and min(sums) > budget:
        made.notes.append(
            f"cost: {min(sums):,.0f} USD are expected at the least, api.budget_usd is {budget:g}: the run stops there"
        )
    elif budget is not None and not sums:
        made.notes.append(f"cost: not all prices are known; the run stops at api.budget_usd = {budget:g}")


def _model_of(role: str, env: Mapping[str, str]) -> str | None:
    names = {"expert": ("EXPERT",), "judge": ("JUDGE", "EXPERT"), "teacher": ("POLICY",)}[role]
    return next((env[f"PROTEGE_{n}_MODEL"] for n in names if env.get(f"PROTEGE_{n}_MODEL")), None)


def _notes(made: Plan, p: Params, rates: Rates) -> None:
    rows = rates.datasets.get(p.instances.source)
    if rows is not None:
        for name, split in p.instances.splits.items():
            if split.count > rows:
                made.notes.append(
                    f"instances.splits.{name}.count is {split.count}, but {p.instances.source} has {rows} rows"
                )
    kept = p.instances.splits["sft"].count * p.trajectories.attempts if "sft" in p.instances.splits else 0
    share = rates["gpu", "first_try_share"]
    if p.trajectories.teacher == "api" and kept * share.value < p.validate_.min_kept:
        made.notes.append(
            f"validate.min_kept is {p.validate_.min_kept}: of {kept} rollouts some {kept * share.value:.0f} are kept, share {share}"
        )
