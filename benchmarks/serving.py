"""Our vLLM server beside vLLM's own defaults for a CPU: recorded rollouts sampled again, tokens per second.

    python -m benchmarks.serving MODEL data/rl/trajectories [--streams 6,12,1] [--rounds 2] [--only "ours,…"]

Each turn of a recorded rollout is sampled anew from the ids that stood before it; the next turn goes on from the record, so
that all variants read the same prompts. Nothing else runs: in real rollouts sandboxes take their part of the cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from protege.core.trajectory import Identity, Tokens, Trajectory
from protege.policy.served import ServedPolicy
from protege.policy.server import SAMPLER, ModelServer

MOST = 256


def stock_sampler(server: ModelServer) -> None:
    del server.environment[SAMPLER]


def worker_of_its_own(server: ModelServer) -> None:
    stock_sampler(server)
    server.environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"


VARIANTS: dict[str, tuple[bool, Callable[[ModelServer], None]]] = {
    "vLLM's defaults (a worker of its own)": (False, worker_of_its_own),
    "the engine computes": (False, stock_sampler),
    "ours (and proposes what stood before)": (True, lambda server: None),
}
"""Whether with drafts, and what else is changed."""


def turns(tokens: Tokens) -> list[int]:
    """Where the sampled turns begin."""
    return [i for i, sampled in enumerate(tokens.mask) if sampled and not tokens.mask[i - 1]]


def rollout(policy: ServedPolicy, tokens: Tokens, number: int) -> int:
    """Tokens sampled."""
    return sum(len(policy.complete(tokens.ids[:start], MOST, 1000 * number + start)[0]) for start in turns(tokens))


def rate(policy: ServedPolicy, recorded: list[Tokens]) -> float:
    """Sampled tokens per second of all ``recorded`` at once."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(recorded)) as pool:
        sampled = sum(pool.map(lambda pair: rollout(policy, pair[1], pair[0]), enumerate(recorded)))
    return sampled / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("trajectories", type=Path)
    parser.add_argument("--streams", default="6,12,1")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default=",".join(VARIANTS))
    asked = parser.parse_args()
    counts = [int(count) for count in asked.streams.split(",")]
    variants = {name: variant for name, variant in VARIANTS.items() if name in asked.only.split(",")}
    paths = sorted(asked.trajectories.glob("*.json"))
    recorded = [one.tokens for one in map(Trajectory.load, paths) if one.tokens]
    who = Identity(name=asked.model.name, digest="", kind="served")
    found: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in variants}
    for turn in range(asked.rounds):
        for name, (drafts, change) in variants.items():
            with tempfile.TemporaryDirectory() as folder:
                server = ModelServer(asked.model, max_num_seqs=max(counts), run_dir=folder, drafts=drafts)
                change(server)
                with server:
                    policy = ServedPolicy(server.url, asked.model, who, temperature=0.7)
                    rollout(policy, recorded[-1], 0)
                    at = turn * sum(counts)
                    for count in counts:
                        mine = [recorded[(at + i) % len(recorded)] for i in range(count)]
                        at += count
                        found[name][count].append(rate(policy, mine))
                        print(f"{name}, {count} streams: {found[name][count][-1]:.0f} tok/s", flush=True)
                    policy.close()
    print(f"\n| variant | {' | '.join(f'{count} streams' for count in counts)} |\n|---|" + "---:|" * len(counts))
    base = next(iter(found.values()))
    for name, rates in found.items():
        cells = [
            f"{', '.join(f'{r:.0f}' for r in rates[count])} ({sum(rates[count]) / sum(base[count]):.2f}x)"
            for count in counts
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
