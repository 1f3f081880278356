"""SFT tokens a second beside TRL's defaults: same rows, same order, same optimizer steps, same loss curve.

    python -m benchmarks.sft --model data/models/base --parquet data/sft/train.parquet

Each variant is a process of its own, one after the other, ``--rounds`` times over. The first step of each run is not
timed. Progress goes to stderr, markdown to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VARIANTS = {
    "TRL's defaults": "SFTTrainer as it comes: the batch side by side, gradient checkpointing",
    "TRL row by row": "the same, the batch accumulated row by row (no padding)",
    "TRL row by row without checkpointing": "the same, activations kept",
    "TRL's defaults with short spin": "the same with GOMP_SPINCOUNT=1000: what a loaded machine costs it otherwise",
    "ours without blocks": "ours, transformers' own decoder layer (train/blocks.py off)",
    "ours without head": "ours, TRL's own vocabulary projection (train/lm_head.py off), labelled positions only",
    "ours without short spin": "ours, OpenMP threads spinning as by default",
    "ours without heap": "ours, glibc's default heap",
    "ours": "protege.train.sft as the flow runs it",
}
BASE, OURS = "TRL's defaults", "ours"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/models/base")
    parser.add_argument("--parquet", default="data/sft/train.parquet")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps, the first untimed")
    parser.add_argument("--batch", type=int, default=4, help="rows of an optimizer step")
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="comma-separated variants (default: all)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run(arguments)))
        return
    names = [name.strip() for name in arguments.only.split(",") if name.strip()] or list(VARIANTS)
    results: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        for name in names:
            load = os.getloadavg()[0]
            command = [sys.executable, "-m", "benchmarks.sft", *sys.argv[1:], "--run", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result = {**json.loads(done.stdout.splitlines()[-1]), "variant": name, "round": number, "load": load}
            print(f"{name}: {result['tokens_per_second']:.0f} tok/s, load {load:.1f}", file=sys.stderr, flush=True)
            results.append(result)
    if arguments.json:
        arguments.json.write_text(json.dumps({"arguments": vars(arguments), "results": results}, default=str, indent=1))
    print(table(results, arguments))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """One variant in this process."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from protege.train import sft
    from protege.train.cpu import speed

    if (
        arguments.run.startswith("ours") and "without short spin" not in arguments.run
    ) or "with short" in arguments.run:
        speed.yield_between_threads()
    import pandas
    import torch

    from protege.policy.chat_format import ChatFormat

    ours, name = arguments.run.startswith("ours"), arguments.run
    params = sft.SftParams(
        steps=arguments.steps,
        batch_size=arguments.batch,
        micro_batch=arguments.batch if name.startswith(BASE) else 1,
        method=arguments.method,
        checkpoint_every=10**6,
        gradient_checkpointing=not ours and "without checkpointing" not in name,
    )
    rows = sft.tokenise(
        pandas.read_parquet(arguments.parquet).to_dict("records"), ChatFormat.from_folder(arguments.model)
    )
    order = sft.schedule([len(row["input_ids"]) for row in rows], params.steps, params.batch_size, params.seed)
    ordered = [rows[index] for index in order]
    if ours:
        without(name.partition("without ")[2], speed)
    clock: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, speed.fast_cpu(ours):
        trainer = sft._trainer(Path(arguments.model), ordered, params, Path(folder), None)
        trainer.add_callback(stopwatch(clock))
        trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(len(row["input_ids"]) for row in ordered[arguments.batch :])
    wall, cpu = (clock[-1][i] - clock[0][i] for i in (0, 1))
    import resource

    return {
        "tokens": tokens,
        "seconds": wall,
        "cpu_seconds": cpu,
        "tokens_per_second": tokens / wall,
        "tokens_per_cpu_second": tokens / cpu,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "losses": losses,
        "longest": max(len(row["input_ids"]) for row in rows),
        "threads": torch.get_num_threads(),
    }


def without(part: str, speed: Any) -> None:
    """Put the stock computation back in one place."""
    from protege.train.cpu import blocks, lm_head

    if part == "blocks":
        blocks.layer_forward = lambda stock: stock
    elif part == "head":
        lm_head.Head = lambda stock: stock  # type: ignore[assignment, misc]
    elif part == "heap":
        speed.keep_heap = lambda: False


def stopwatch(clock: list[tuple[float, float]]) -> Any:
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.append((time.monotonic(), time.process_time()))

    return Stopwatch()


def table(results: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    def of(name: str, key: str) -> list[float]:
        return [result[key] for result in results if result["variant"] == name]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    names = list(dict.fromkeys(result["variant"] for result in results))
    base = BASE if BASE in names else names[0]
    curve = next(result["losses"] for result in results if result["variant"] == base)
    lines = [
        f"{arguments.method} fine-tuning, {arguments.batch} rows a step (longest {results[0]['longest']} tokens), "
        f"{arguments.steps - 1} timed steps, {arguments.rounds} round(s), {results[0]['threads']} threads",
        "",
        "| variant | tok/s | x | tok/CPU-s | peak GB | max. loss difference | load before |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        apart = max(
            abs(a - b)
            for result in results
            if result["variant"] == name
            for a, b in zip(result["losses"], curve, strict=True)
        )
        rate = mean(of(name, "tokens_per_second"))
        lines.append(
            f"| {name} | {rate:.0f} | {rate / mean(of(base, 'tokens_per_second')):.2f} | "
            f"{mean(of(name, 'tokens_per_cpu_second')):.0f} | {max(of(name, 'peak_gb')):.1f} | {apart:.4f} | "
            f"{mean(of(name, 'load')):.1f} |"
        )
    return "\n".join([*lines, "", *(f"- {name}: {VARIANTS[name]}" for name in names)])


if __name__ == "__main__":
    main()
