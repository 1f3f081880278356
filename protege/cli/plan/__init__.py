"""What a run of some params would need: memory, tokens, hours, disk, API cost, each with its assumption beside it.

Nothing is run, nothing is contacted. Rates are those of rates.yaml. Hours are given for what was measured only: what nobody
has timed is unknown, not guessed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from protege.cli.plan import cost, memory
from protege.cli.plan.page import Line, Plan, as_json, as_text
from protege.cli.plan.rates import Gpu, Rates, Shape
from protege.cli.plan.work import Work, count, hours
from protege.config import Params
from protege.errors import BadInput
from protege.policy import precision

__all__ = ["Line", "Plan", "as_json", "as_text", "plan"]

Device = Literal["cpu", "gpu"]


def device_of(params: Params, device: Device | None = None, root: Path = Path()) -> Device:
    """``device``, else a CPU for a model of less than a billion parameters, and GPUs for others."""
    return device or ("cpu" if Rates().shape(params.model.source, root).parameters < 1e9 else "gpu")


def plan(
    params: Params,
    *,
    device: Device | None = None,
    gpu: str = "h100",
    gpus: int = 8,
    root: Path = Path(),
    env: Mapping[str, str] = os.environ,
) -> Plan:
    """``device``: see :func:`device_of`.

    Raises:
        BadInput: a model or GPU whose figures are not known.
    """
    if gpus < 1:
        raise BadInput(f"--gpus {gpus}: at least 1 is needed")
    rates = Rates()
    card, shape = rates.gpu(gpu), rates.shape(params.model.source, root)
    where = device_of(params, device, root)
    name = f"2-core CPU ({rates.machine})" if where == "cpu" else f"{gpus} x {card.name} (never run here)"
    made = Plan(params.profile, shape.name, name, params.machine)
    done = count(params, rates, where)
    _memory(made, params, shape, rates, card if where == "gpu" else None, gpus)
    for what, tokens in (("sft, trained on", done.sft), ("rl, sampled and trained on", done.rl),
                         ("evaluate, sampled", done.evaluation)):  # fmt: skip
        made.add("tokens", what, tokens.expected, "tokens", tokens.assumption, tokens.at_most)
    _hours(made, params, shape, rates, where, done)
    _disk(made, params, shape, rates, done)
    _cost(made, params, cost.roles(params, done, rates, where), env)
    _data(made, params, rates)
    return made


def _memory(made: Plan, p: Params, shape: Shape, rates: Rates, card: Gpu | None, gpus: int) -> None:
    """``card`` None: a CPU."""
    share, unit, spread = (
        (gpus, f"GiB on each of {gpus} GPUs", f"; sharded over {gpus} (FSDP)") if card else (1, "GiB", "")
    )
    room = card.memory_gib * rates["gpu", "usable_memory"].value if card else float("inf")
    card_name = card.name if card else ""
    sft, rl = (
        memory.training(shape, p.sft.max_length, p.sft.micro_batch or p.sft.batch_size,
                        checkpointing=p.sft.gradient_checkpointing, reference=False,
                        lora_rank=p.sft.lora_rank if p.sft.method == "lora" else 0),
        memory.training(shape, p.rl.max_tokens, p.rl.micro_batch, checkpointing=p.rl.gradient_checkpointing,
                        reference=p.rl.kl_beta > 0, lora_rank=p.rl.lora_rank),
    )  # fmt: skip
    for name, m, tokens, checkpointing in (
        ("sft", sft, p.sft.max_length, p.sft.gradient_checkpointing),
        ("rl", rl, p.rl.max_tokens, p.rl.gradient_checkpointing),
    ):
        reference = f", reference model {m.reference:.1f}" if m.reference else ""
        state = (
            f"weights {m.weights:.1f}, gradients {m.gradients:.1f}, AdamW {m.adamw:.1f} GiB in fp32{reference}{spread}"
        )
        kept = (
            f"{tokens} tokens, gradient checkpointing {'on' if checkpointing else 'off'}, attention's matrix not kept"
        )
        logits = f"{shape.vocabulary} entries a token, fp32, with gradient; none skipped"
        resident = f"; measured for 135M parameters: {rates['cpu', 'trainer_gib'].value} GiB resident"
        made.add("memory", f"{name}: state", m.state / share, unit, f"counted: {state}")
        made.add("memory", f"{name}: activations", m.activations, unit, f"counted: {kept}")
        made.add("memory", f"{name}: logits", m.logits, unit, f"counted: {logits}")
        total = m.on_each(share)
        made.add("memory", f"{name}: training", total, unit, f"sum of the three{'' if card else resident}")
        if total > room:
            remedy = "shorten the rows or add GPUs" if checkpointing else f"set {name}.gradient_checkpointing: true"
            made.notes.append(
                f"{name}: {total:.0f} GiB do not fit into the {room:.0f} usable of one {card_name}; {remedy}"
            )
    workers = max(p.rl.workers, p.evaluate.workers)
    dtype = precision.computed_in(p.model.dtype, card is None)
    weights, cache = memory.serving(shape, p.agent.context_tokens, workers, 4 if dtype == "float32" else 2)
    made.add("memory", "serving: weights", weights, unit, f"counted: {dtype}, a copy on each")
    made.add("memory", "serving: KV cache", cache / share, unit,
             f"counted: {workers} rollouts at once (rl.workers, evaluate.workers), each with all of agent.context_tokens; "
             "with less, some wait")  # fmt: skip
    trainer, server = rl.on_each(share), weights + cache / share
    if trainer <= room < trainer + server:
        made.notes.append(
            f"rl: the model server ({server:.0f} GiB) and the trainer ({trainer:.0f} GiB) do not fit into one {card_name} "
            "together; give each GPUs of its own (CUDA_VISIBLE_DEVICES)"
        )
    if server > room:
        made.notes.append(
            f"serving: {server:.0f} GiB of {room:.0f} usable on each {card_name}: rollouts wait for each other"
        )
    if card and gpus > 1:
        made.notes.append(
            f"rl is counted as sharded over {gpus} GPUs, but its stage trains in one process (docs/scale.md)"
        )


def _hours(made: Plan, p: Params, shape: Shape, rates: Rates, device: str, done: Work) -> None:
    known, unknown = 0.0, []
    for stage, seconds, assumption in hours(p, shape, rates, device, done):
        made.add("hours", stage, None if seconds is None else seconds / 3600, "h", assumption)
        known += seconds or 0
        unknown += [stage] if seconds is None else []
    name, but = ("the stages measured", f"; without {', '.join(unknown)}") if unknown else ("all stages", "")
    made.add("hours", name, known / 3600, "h", f"one after the other; set-up and queues not counted{but}")
    if device == "cpu" and not precision.cpu_has_bf16():
        made.notes.append(
            f"{precision.NO_BF16}: expect sft to take {rates['cpu', 'fp32_factor']} times the hours above, rl some four "
            "times, evaluate twice (assumed)"
        )


def _disk(made: Plan, p: Params, shape: Shape, rates: Rates, done: Work) -> None:
    billions = shape.parameters / 1e9
    if p.instances.desk:
        image, layer = rates["shared", "package_image_mb"], rates["shared", "instance_mb"]
        packages = {name for split in p.instances.splits.values() for name in split.packages}
        images = (len(packages) * image.value + done.instances * layer.value) / 1000
        per_image = f"an image a package (MB {image}), a layer an instance (MB {layer})"
    else:
        images = done.instances * rates["gpu", "image_gb"].value
        per_image = f"one image an instance, GB {rates['gpu', 'image_gb']}"
    size = rates["shared", "trajectory_kb"]
    rows = (
        ("models", 3 * 2 * 2 * billions, "counted: base, sft and rl in bf16, each a second time in DVC's cache"),
        ("checkpoints", 2 * 16 * billions, "counted: fp32 weights, gradients, moments; at most two kept while training"),
        ("images", images, per_image),
        ("trajectories", 3 * done.rollouts * size.value / 1e6,
         f"{done.rollouts} rollouts in data/, DVC's cache and the store, KB {size}"),
    )  # fmt: skip
    for name, value, assumption in rows:
        made.add("disk", name, value, "GB", assumption)
    made.add("disk", "all", sum(row[1] for row in rows), "GB", "the virtual environment (3 to 12 GB) comes on top")


def _cost(made: Plan, p: Params, roles: list[cost.Role], env: Mapping[str, str]) -> None:
    if not roles:
        made.add("cost", "experts, judges, teachers", 0.0, "USD", "all are the offline ones", 0.0)
        return
    prices: dict[str, list[cost.Range]] = {}
    for role in roles:
        made.add("cost", f"{role.name}: calls", role.calls[0], "calls", role.assumption, role.calls[1])
        (read, most_read), (written, most_written) = role.input_tokens, role.output_tokens
        made.add("cost", f"{role.name}: tokens", read + written, "tokens",
                 f"input {read / 1e6:.1f} M, at most {most_read / 1e6:.1f} M; "
                 f"replies {written / 1e6:.1f} M, at most {most_written / 1e6:.1f} M", most_read + most_written)  # fmt: skip
        chosen = cost.model_of(role.name, env)
        source = "the environment names it" if chosen else "the environment names no model: each that has a price"
        for model in [chosen] if chosen else sorted(p.api.prices) or ["any model"]:
            price = cost.usd(p, model, role)
            if price is None:
                known = ", ".join(sorted(p.api.prices)) or "none"
                missing = f"price unknown: api.prices has none for {model} (known: {known})"
                made.add("cost", f"{role.name}: {model}", None, "USD", missing)
                continue
            basis = f"api.prices; {source}; no input counted as cached"
            made.add("cost", f"{role.name}: {model}", price[0], "USD", basis, price[1])
            prices.setdefault("" if chosen else model, []).append(price)
    # A sum for the models that the environment names, or else for each that has a price; none where a price is missing.
    totals = {model: cost.total(found) for model, found in prices.items() if len(found) == len(roles)}
    for model, (expected, most) in totals.items():
        made.add("cost", f"all: {model}" if model else "all", expected, "USD", "sum over the roles", most)
    budget, least = p.api.budget_usd, min((expected for expected, _ in totals.values()), default=None)
    if budget is not None and least is None:
        made.notes.append(f"cost: not all prices are known; the run stops at api.budget_usd = {budget:g}")
    elif budget is not None and least is not None and least > budget:
        made.notes.append(
            f"cost: {least:,.0f} USD are expected at the least, api.budget_usd is {budget:g}: the run stops there"
        )


def _data(made: Plan, p: Params, rates: Rates) -> None:
    """More rows asked for than the source has, fewer kept than ``validate`` asks for."""
    source, rows = p.instances.source, rates.datasets.get(Path(p.instances.source).stem)
    made.notes += [
        f"instances.splits.{name}.count is {split.count}, but {source} has {rows} rows"
        for name, split in p.instances.splits.items()
        if rows is not None and split.count > rows
    ]
    tried = p.instances.splits["sft"].count * p.trajectories.attempts if "sft" in p.instances.splits else 0
    share, least = rates["gpu", "first_try_share"], p.validate_.min_kept
    if p.trajectories.teacher == "api" and tried * share.value < least:
        made.notes.append(
            f"validate.min_kept is {least}: of {tried} rollouts some {tried * share.value:.0f} are kept, share {share}"
        )
