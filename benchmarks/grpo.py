"""Seconds of a GRPO step beside TRL's own path, on the same recorded rollouts; and where the time goes.

    python -m benchmarks.grpo --model data/models/sft --record rollouts.json     # a group from a real model server
    python -m benchmarks.grpo --model data/models/sft --rollouts rollouts.json

The recording serves the model with vLLM and lets G sessions of several turns run free of each other (observations are
slices of this repository's own text), then hands weights over once, as a step of the rl stage does. The second command
replays it: both variants train on the same tokens, log-probabilities and rewards, and get the recorded rollout time.
Each variant is a process of its own; its first step is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VARIANTS = {
    "TRL's defaults": "GRPOTrainer: the group side by side, gradient checkpointing, every position scored",
    "TRL row by row": "the same, a rollout at a time",
    "ours": "protege.train.grpo as the flow runs it",
}
BASE = "TRL's defaults"
PARTS = ("rollout", "sync", "reference", "forward", "backward", "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/models/sft")
    parser.add_argument("--rollouts", type=Path, default=Path("rollouts.json"))
    parser.add_argument("--record", type=Path)
    parser.add_argument("--group", type=int, default=6)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--turn-tokens", type=int, default=60, help="sampled at most in one turn")
    parser.add_argument("--steps", type=int, default=3, help="the first untimed")
    parser.add_argument("--beta", type=float, default=0.01)
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--only", default="", help="comma-separated variants (default: all)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments)
        return
    if arguments.run:
        print(json.dumps(run(arguments)))
        return
    results = []
    for name in [n.strip() for n in arguments.only.split(",") if n.strip()] or list(VARIANTS):
        load = os.getloadavg()[0]
        command = [sys.executable, "-m", "benchmarks.grpo", *sys.argv[1:], "--run", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result = {**json.loads(done.stdout.splitlines()[-1]), "variant": name, "load": load}
        print(f"{name}: {result['step']:.1f} s a step without rollouts, load {load:.1f}", file=sys.stderr, flush=True)
        results.append(result)
    recorded = json.loads(arguments.rollouts.read_text())
    if arguments.json:
        arguments.json.write_text(json.dumps({"recorded": recorded["figures"], "results": results}, indent=1))
    print(table(results, recorded["figures"], arguments))


def record(arguments: argparse.Namespace) -> None:
    """G sessions against a real server, free of each other, and one hand-over of weights."""
    from concurrent.futures import ThreadPoolExecutor

    from protege.core.trajectory import Identity, Message
    from protege.policy.served import ServedPolicy
    from protege.policy.server import ModelServer
    from protege.train.busy import Busy

    words = Path(__file__).resolve().parents[1].joinpath("protege", "agent.py").read_text().split()
    context = 4096
    with tempfile.TemporaryDirectory() as folder:
        server = ModelServer(
            Path(arguments.model), max_model_len=context, max_num_seqs=arguments.group, run_dir=Path(folder)
        )
        with server:
            busy = Busy()
            policy = ServedPolicy(
                server.url,
                arguments.model,
                Identity(name="recorded", digest="", kind="served"),
                max_new_tokens=arguments.turn_tokens,
                context_tokens=context,
            )
            policy.complete = busy.wrap(policy.complete)  # type: ignore[method-assign]

            def one(seed: int) -> Any:
                session = policy.start(None, seed)  # type: ignore[arg-type]
                opening = [Message(role="system", content=" ".join(words[:250]))]
                opening.append(Message(role="user", content=" ".join(words[250:400])))
                session.step(opening)
                for turn in range(1, arguments.turns):
                    at = (seed * 31 + turn * 60) % 600
                    session.step([Message(role="user", content=" ".join(words[at : at + 50]))])
                return session.tokens()

            with ThreadPoolExecutor(arguments.group) as pool:
                list(pool.map(one, range(1000, 1000 + arguments.group)))  # the first requests pay for warming up
                busy.restart()
                tokens = list(pool.map(one, range(arguments.group)))
            figures = {**busy.figures(), "load": os.getloadavg()[0]}
            began = time.monotonic()
            server.load_weights(Path(arguments.model))
            figures["load_weights"] = round(time.monotonic() - began, 2)
    arguments.record.write_text(json.dumps({"figures": figures, "rollouts": [t.model_dump() for t in tokens]}))
    print(json.dumps(figures))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """One variant in this process."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from protege.config import RlParams
    from protege.core.trajectory import Tokens
    from protege.train.grpo import train_grpo
    from protege.train.rollouts import RolloutRequest, RolloutResult

    tokens = [Tokens.model_validate(one) for one in json.loads(arguments.rollouts.read_text())["rollouts"]]
    name, group = arguments.run, len(tokens)
    params = RlParams(
        steps=arguments.steps,
        group_size=group,
        micro_batch=group if name == BASE else 1,
        gradient_checkpointing=name != "ours",
        kl_beta=arguments.beta,
        lora_rank=arguments.lora_rank,
        max_tokens=4096,
        checkpoint_every=10**6,
    )

    def rollout(requests: list[RolloutRequest]) -> Sequence[RolloutResult]:
        return [RolloutResult(tokens[r.group_index], float(r.group_index % 3)) for r in requests]

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        train_grpo(
            arguments.model,
            ["recorded"],
            root / "out",
            params,
            rollout=rollout,
            sync=lambda path: None,
            checkpoint_dir=root / "checkpoints",
            steps_path=root / "steps.jsonl",
            fast=name == "ours",
        )
        rows = [json.loads(line) for line in (root / "steps.jsonl").read_text().splitlines()][1:]
    seconds = {part: sum(row["seconds"].get(part, 0.0) for row in rows) / len(rows) for part in (*PARTS, "total")}
    return {
        "step": seconds.pop("total"),
        "seconds": seconds,
        "loss": [row["loss"] for row in rows],
        "kl": [row["kl"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
    }


def table(results: list[dict[str, Any]], figures: dict[str, float], arguments: argparse.Namespace) -> str:
    rollout, load = figures["seconds"], figures["load_weights"]
    base = next((r for r in results if r["variant"] == BASE), results[0])
    lines = [
        f"G = {arguments.group}, beta {arguments.beta}, {arguments.steps - 1} timed steps; rollout {rollout:.1f} s "
        f"(server busy {figures['busy']:.0%}, {figures['in_flight']:.1f} in flight), weights loaded in {load:.1f} s",
        "",
        f"| variant | {' | '.join(PARTS)} | training | x | whole step | x | load before |",
        "|---|" + "---:|" * (len(PARTS) + 5),
    ]
    for r in results:
        parts = {**r["seconds"], "rollout": rollout, "sync": r["seconds"]["sync"] + load}
        whole, base_whole = r["step"] + rollout + load, base["step"] + rollout + load
        cells = [f"{parts[part]:.1f}" for part in PARTS]
        lines.append(
            f"| {r['variant']} | {' | '.join(cells)} | {r['step']:.1f} | {r['step'] / base['step']:.2f} | "
            f"{whole:.1f} | {whole / base_whole:.2f} | {r['load']:.1f} |"
        )
    apart = max(abs(a - b) / b for r in results for a, b in zip(r["grad_norm"], base["grad_norm"], strict=True))
    lines += [
        "",
        f"Gradient norms differ by at most {apart:.1%}. TRL's own path is not taken apart: all of it is *rest*.",
    ]
    return "\n".join([*lines, "", *(f"- {r['variant']}: {VARIANTS[r['variant']]}" for r in results)])


if __name__ == "__main__":
    main()
