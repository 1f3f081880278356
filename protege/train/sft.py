"""Phase I: supervised fine-tuning on the assistant's tokens only (TRL's SFTTrainer on pre-tokenised rows).

Method: plain next-token loss on assistant tokens, no auxiliary loss (arXiv 2602.22124, Phase I).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from protege.config import SftParams
from protege.errors import BadInput
from protege.files import digest_tree, write_atomic, write_json
from protege.identity import code_of
from protege.policy.chat_format import ChatFormat
from protege.policy.model_folder import model_digest, quiet
from protege.train import distributed
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
from protege.train.renaming import renamed

IGNORED = -100


def tokenise(rows: Sequence[Any], chat: ChatFormat) -> list[dict[str, list[int]]]:
    """``input_ids`` and ``labels`` of each row's ``messages``; labels are -100 but on assistant text and its end.

    What follows the last assistant message is dropped: nothing there is learned from.
    """
    made = []
    for row in rows:
        messages = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        if not messages:
            raise BadInput(f"SFT row {row.get('trajectory_id', '?')} has no assistant message")
        rendered = chat.render(messages)
        labels = [i if m else IGNORED for i, m in zip(rendered.ids, rendered.mask, strict=True)]
        made.append({"input_ids": rendered.ids, "labels": labels})
    return made


def with_renamed(table: Sequence[dict[str, Any]], copies: int, seed: int) -> list[dict[str, Any]]:
    """``table``, then ``copies`` renamed copies of it (renaming.py); their trajectory ids end in ``~1``, ``~2``, …

    Rows of no instance (edit exercises) are many and renamed already: they are not copied.
    """
    rows = list(table)
    for copy in range(1, copies + 1):
        for row in (row for row in table if row["instance_id"]):
            name = f"{row['trajectory_id']}~{copy}"
            chat = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
            rows.append({**row, "trajectory_id": name, "messages": renamed(chat, random.Random(f"{seed}:{name}"))})
    return rows


def labels_to_text(labels: Sequence[int], chat: ChatFormat) -> list[str]:
    """What the loss is computed on, as text: one string for each assistant turn, without its end-of-turn token.

    Raises:
        BadInput: a labelled span does not end with the end-of-turn token.
    """
    texts: list[str] = []
    span: list[int] = []
    for label in [*labels, IGNORED]:
        if label != IGNORED:
            span.append(label)
        elif span:
            if span[-1] != chat.end_of_turn:
                raise BadInput(f"labelled span {len(texts)} does not end with the end-of-turn token")
            texts.append(chat.decode(span[:-1]))
            span = []
    return texts


def schedule(lengths: Sequence[int], steps: int, batch: int, seed: int) -> list[int]:
    """Row indices in the order of training, ``steps * batch`` of them: every row once an epoch, like lengths together.

    Rows are shuffled each epoch, sorted by length within windows of eight batches, and the batches shuffled, so
    that little is padded. A function of its arguments alone, so a resumed run sees the same rows.
    """
    rng = random.Random(f"sft-{seed}")
    order: list[int] = []
    pool: list[int] = []
    while len(order) < steps * batch:
        while len(pool) < batch:
            epoch = list(range(len(lengths)))
            rng.shuffle(epoch)
            pool += epoch
        size = min(len(pool) - len(pool) % batch, 8 * batch)
        window, pool = pool[:size], pool[size:]
        window.sort(key=lambda index: lengths[index])
        batches = [window[start : start + batch] for start in range(0, size, batch)]
        rng.shuffle(batches)
        order += [index for one in batches for index in one]
    return order[: steps * batch]


def train_sft(
    model_dir: Path | str,
    parquet: Path | str,
    out_dir: Path | str,
    params: SftParams,
    *,
    checkpoint_dir: Path | str,
    dtype: str = "bfloat16",
    progress: Callable[[str], None] | None = None,
    fast: bool = True,
) -> dict[str, Any]:
    """Fine-tune ``model_dir`` on ``parquet`` and write a model folder with ``curve.json`` and ``curve.png``.

    Master weights are fp32 (a bf16 weight cannot hold a small update) with bf16 arithmetic where the machine has it
    (protege/policy/precision.py), else fp32; the folder is written in ``dtype``. A killed run goes on from its last complete
    checkpoint in ``checkpoint_dir`` with the same rows, optimizer and random state. No row is cut: those longer than ``max_length`` are left out, counted in
    the metrics and named, with their lengths, in ``dropped.json`` and to ``progress``.

    Under ``accelerate launch`` each process calls this alike: the rows of a step are shared out among them, the first one
    writes, the others return {}.

    Args:
        parquet: columns instance_id, trajectory_id, messages (list of {role, content}).
        progress: called with one line each step.
        fast: use the CPU short-cuts of speed.py.

    Returns:
        Metrics: rows, dropped_rows, steps, tokens and labelled_tokens (of the rows trained on, repeats counted),
        loss_first, loss_last, token_accuracy_last, seconds and tokens_per_second (of this run, all processes), resumed_from, processes, precision
        (of the products: "bfloat16" or "float32").

    Raises:
        BadInput: no row, every row longer than ``max_length``, or a ``batch_size`` that cannot be shared out.
    """
    if fast:
        yield_between_threads()
    import pandas

    model_dir, out_dir, checkpoint_dir = Path(model_dir), Path(out_dir), Path(checkpoint_dir)
    chat = ChatFormat.from_folder(model_dir)
    table = with_renamed(pandas.read_parquet(parquet).to_dict("records"), params.renamed_copies, params.seed)
    rows = tokenise(table, chat)
    fitting = [row for row in rows if len(row["input_ids"]) <= params.max_length]
    dropped = [
        {"trajectory_id": str(given.get("trajectory_id")), "tokens": len(row["input_ids"])}
        for given, row in zip(table, rows, strict=True)
        if len(row["input_ids"]) > params.max_length
    ]
    if not fitting:
        longest = max((len(row["input_ids"]) for row in rows), default=0)
        raise BadInput(
            f"{parquet}: {len(rows)} rows, none of at most sft.max_length = {params.max_length} tokens (longest {longest}); "
            "raise sft.max_length or lower agent.context_tokens"
        )
    first = distributed.is_first()
    if not first:
        progress = None
    if dropped and progress:
        names = ", ".join(f"{one['trajectory_id']} ({one['tokens']})" for one in dropped[:5])
        more = f" and {len(dropped) - 5} more" if len(dropped) > 5 else ""
        progress(f"left out, longer than sft.max_length = {params.max_length} tokens: {names}{more}")
    order = schedule([len(row["input_ids"]) for row in fitting], params.steps, params.batch_size, params.seed)
    ordered = [fitting[index] for index in order]
    data = digest_tree(Path(parquet).parent, (Path(parquet).name,))
    identity = ("sft", model_digest(model_dir), data, params.deciding(), dtype, fast, code_of("protege.train.sft"))
    resume = distributed.first_then_others(lambda: open_checkpoints(checkpoint_dir, *identity))
    kept = distributed.first_then_others(lambda: take_finished(checkpoint_dir, out_dir if first else None))
    if kept is not None:
        if progress:
            progress(ALREADY_DONE)
        return kept if first else {}

    began = time.monotonic()
    with quiet(), fast_cpu(fast):
        trainer = _trainer(model_dir, ordered, params, checkpoint_dir, progress)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    weights = distributed.gathered(trainer)
    if not first:
        return {}
    seconds = time.monotonic() - began
    curve = [entry for entry in trainer.state.log_history if "loss" in entry]
    start = int(resume.name.rsplit("-", 1)[1]) if resume else 0
    done = sum(len(row["input_ids"]) for row in ordered[start * params.batch_size :])
    metrics = {
        "rows": len(fitting),
        "dropped_rows": len(dropped),
        "steps": int(trainer.state.global_step),
        "tokens": sum(len(row["input_ids"]) for row in ordered),
        "labelled_tokens": sum(label != IGNORED for row in ordered for label in row["labels"]),
        "loss_first": float(curve[0]["loss"]),
        "loss_last": float(curve[-1]["loss"]),
        "token_accuracy_last": float(curve[-1].get("mean_token_accuracy", 0.0)),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(done / seconds, 1),
        "resumed_from": start,
        "processes": distributed.processes(),
        "precision": precision_of(trainer),
    }
    save_model_folder(trainer.model, model_dir, out_dir, dtype, weights)
    write_json(out_dir / "dropped.json", dropped)
    write_json(out_dir / "curve.json", [_point(entry) for entry in curve])
    _plot(curve, out_dir / "curve.png")
    keep_finished(checkpoint_dir, out_dir, metrics)
    return metrics


def _trainer(model_dir: Path, rows: list[Any], params: SftParams, checkpoint_dir: Path, progress: Any) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(params.seed)
    micro = params.micro_batch or max(1, params.batch_size // distributed.processes())
    processes = distributed.processes()
    if params.batch_size % (micro * processes):
        among = f" times {processes} processes" if processes > 1 else ""
        raise BadInput(f"sft.batch_size = {params.batch_size} is not a multiple of sft.micro_batch = {micro}{among}")
    config = SFTConfig(
        **common_arguments(params, checkpoint_dir, micro, params.batch_size // (micro * processes)),
        warmup_steps=params.warmup_steps,
        lr_scheduler_type=params.schedule,
        max_length=None,
        packing=False,
        train_sampling_strategy="sequential",
        logging_first_step=True,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_dir, local_files_only=True),
        peft_config=lora(params.lora_rank) if params.method == "lora" else None,
    )
    if params.method == "lora" and trainer.is_fsdp_enabled:  # merging the adapters needs whole layers
        raise BadInput(
            "sft.method: lora with FSDP is not supported: use full, or an accelerate configuration without FSDP"
        )
    trainer.add_callback(trainer_callback(progress, lambda step, logs: None))
    _silence(trainer)
    return trainer


def _silence(trainer: Any) -> None:
    """Our progress lines replace the printed log dictionaries."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _point(entry: dict[str, Any]) -> dict[str, float]:
    kept = {"step": entry["step"]}
    for key in ("loss", "learning_rate", "grad_norm", "mean_token_accuracy", "entropy"):
        if key in entry:
            kept[key] = float(entry[key])
    return kept


def _plot(curve: list[dict[str, Any]], path: Path) -> None:
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([entry["step"] for entry in curve], [float(entry["loss"]) for entry in curve], marker="o", markersize=3)
    axes.set(xlabel="optimizer step", ylabel="loss on assistant tokens (nats)", title="SFT learning curve")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())
