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

import httpx

from protege.policy.server import SAMPLER, SERVED_NAME, ModelServer
from protege.trajectory import Tokens, Trajectory

MOST = 256


def worker_of_its_own(server: ModelServer) -> None:
    server.environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    one_token_a_pass(server)


def one_token_a_pass(server: ModelServer) -> None:
    del server.environment[SAMPLER]
    at = server._options.index("--speculative-config")
    del server._options[at : at + 2]


VARIANTS: dict[str, Callable[[ModelServer], None]] = {
    "vLLM's defaults (a worker of its own)": worker_of_its_own,
    "the engine computes": one_token_a_pass,
    "ours (and proposes what stood before)": lambda server: None,
}


def turns(tokens: Tokens) -> list[int]:
    """Where the sampled turns begin."""
    return [i for i, sampled in enumerate(tokens.mask) if sampled and not tokens.mask[i - 1]]


def rollout(url: str, tokens: Tokens, number: int, stop: int) -> int:
    """Tokens sampled."""
    sampled = 0
    with httpx.Client(timeout=600) as client:
        for start in turns(tokens):
            body = {
                "model": SERVED_NAME, "prompt": tokens.ids[:start], "max_tokens": MOST, "temperature": 0.7,
                "seed": 1000 * number + start, "logprobs": 0, "return_token_ids": True, "stop_token_ids": [stop],
            }  # fmt: skip
            answer = client.post(f"{url}/v1/completions", json=body).raise_for_status().json()["choices"][0]
            sampled += len(answer["token_ids"])
    return sampled


def rate(server: ModelServer, recorded: list[Tokens], stop: int) -> float:
    """Sampled tokens per second of all ``recorded`` at once."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(recorded)) as pool:
        sampled = sum(pool.map(lambda pair: rollout(server.url, pair[1], pair[0], stop), enumerate(recorded)))
    return sampled / (time.monotonic() - began)


def main() -> None:
    from protege.train.chat_format import ChatFormat

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("trajectories", type=Path)
    parser.add_argument("--streams", default="6,12,1")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default=",".join(VARIANTS))
    asked = parser.parse_args()
    counts = [int(count) for count in asked.streams.split(",")]
    variants = {name: change for name, change in VARIANTS.items() if name in asked.only.split(",")}
    paths = sorted(asked.trajectories.glob("*.json"))
    recorded = [one.tokens for one in map(Trajectory.load, paths) if one.tokens]
    stop = ChatFormat.from_folder(asked.model).end_of_turn
    found: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in variants}
    for turn in range(asked.rounds):
        for name, change in variants.items():
            with tempfile.TemporaryDirectory() as folder:
                server = ModelServer(asked.model, max_num_seqs=max(counts), run_dir=folder)
                change(server)
                with server:
                    rollout(server.url, recorded[-1], 0, stop)
                    at = turn * sum(counts)
                    for count in counts:
                        mine = [recorded[(at + i) % len(recorded)] for i in range(count)]
                        at += count
                        found[name][count].append(rate(server, mine, stop))
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
