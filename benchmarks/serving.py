"""Our vLLM server beside vLLM's own defaults for a CPU: simulated rollouts, streams of growing prompts, tokens per second.

    python -m benchmarks.serving MODEL [--streams 6,12,1] [--rounds 2]

A rollout has turns of sampled tokens with observations between them, as the agent's have, and a prompt that all share at
its beginning. Nothing else runs: in real rollouts sandboxes take their part of the cores.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from protege.policy.server import SERVED_NAME, ModelServer

TURNS, SAMPLED, OBSERVED, SHARED, OWN = 8, 60, 150, 700, 150
VARIANTS = {
    "vLLM's defaults (a worker of its own)": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
    "the same, threads not bound": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    "ours (the engine computes)": {},
}


def rollout(url: str, number: int) -> int:
    """Tokens sampled."""
    rng = random.Random(number)
    ids = [100 + i for i in range(SHARED)] + [rng.randrange(200, 40_000) for _ in range(OWN)]
    sampled = 0
    with httpx.Client(timeout=600) as client:
        for turn in range(TURNS):
            body = {
                "model": SERVED_NAME, "prompt": ids, "max_tokens": SAMPLED, "ignore_eos": True, "temperature": 0.7,
                "seed": 100 * number + turn, "logprobs": 0, "return_token_ids": True,
            }  # fmt: skip
            answer = client.post(f"{url}/v1/completions", json=body).raise_for_status().json()["choices"][0]
            sampled += len(answer["token_ids"])
            ids += answer["token_ids"] + [rng.randrange(200, 40_000) for _ in range(OBSERVED)]
    return sampled


def rate(server: ModelServer, streams: int, first: int) -> float:
    """Sampled tokens per second of ``streams`` rollouts at once, numbered from ``first``."""
    began = time.monotonic()
    with ThreadPoolExecutor(streams) as pool:
        sampled = sum(pool.map(lambda i: rollout(server.url, first + i), range(streams)))
    return sampled / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", default="6,12,1")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    counts = [int(count) for count in asked.streams.split(",")]
    found: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in VARIANTS}
    for turn in range(asked.rounds):
        for name, settings in VARIANTS.items():
            with tempfile.TemporaryDirectory() as folder:
                server = ModelServer(asked.model, max_num_seqs=max(counts), run_dir=folder)
                server.environment.update(settings)
                with server:
                    rollout(server.url, 10**6)
                    for count in counts:
                        found[name][count].append(rate(server, count, 10_000 * (turn + 1) + 100 * count))
                        print(f"{name}, {count} streams: {found[name][count][-1]:.0f} tok/s", flush=True)
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
