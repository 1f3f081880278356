"""The model server of a stage that is interrupted while it starts."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest

from protege.config import load
from protege.errors import ModelServerError
from protege.files import read_json
from protege.policy.processes import kill_group
from tasks.serving import Serving
from tests.e2e.tiny_model import make

ROOT = Path(__file__).parents[2]


def servers() -> list[psutil.Process]:
    """Of this process, and alive."""
    mine = psutil.Process().children()
    return [p for p in mine if p.status() != psutil.STATUS_ZOMBIE and any("vllm" in word for word in p.cmdline())]


@pytest.mark.slow
def test_a_server_that_starts_while_its_stage_ends_leaves_none_behind(in_tmp: Path) -> None:
    """Two attempts want it. The interrupt takes it away from the first; the second must not start another one, whose guard
    the end of the first would take away: a server that nobody knows of."""
    folder = make(in_tmp / "model")
    serving = Serving(folder, load(ROOT / "profiles/tiny.yaml"), workers=2, seed=0, progress=lambda line: None)
    policy, ready = serving.policy(folder, "rl", 1.0)
    refused: list[str] = []

    def attempt() -> None:
        try:
            ready()
        except ModelServerError as error:
            refused.append(str(error))

    attempts = [threading.Thread(target=attempt) for _ in range(2)]
    try:
        with serving:
            for thread in attempts:
                thread.start()
            deadline = time.monotonic() + 300
            while not list(Path(".cache/protege/run").glob("server-*.json")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(1)
        for thread in attempts:
            thread.join(120)
        assert not any(thread.is_alive() for thread in attempts)
        assert servers() == [] and not list(Path(".cache/protege/run").glob("server-*.json"))
        assert len(refused) == 2 and all("stage is ending" in said for said in refused)
    finally:
        policy.close()
        for left in servers():
            kill_group(left.pid)


@pytest.mark.slow
def test_a_server_starts_with_the_model_that_is_asked_for_and_comes_back_with_it(in_tmp: Path) -> None:
    """What was asked for first may be another model than the stage's first one, whose rollouts are all in the store."""
    first, wanted = make(in_tmp / "first"), make(in_tmp / "wanted", seed=1)
    serving = Serving(first, load(ROOT / "profiles/tiny.yaml"), workers=1, seed=0, progress=lambda line: None)

    def starts_with() -> str:
        (record,) = Path(".cache/protege/run").glob("server-*.json")
        words = psutil.Process(read_json(record)["pid"]).cmdline()
        return words[words.index("--model") + 1]

    with serving:
        one, ready = serving.policy(wanted, "rl", 1.0)
        ready()
        assert starts_with() == str(wanted)
        two, ready = serving.policy(first, "base", 1.0)
        ready()
        assert serving.loads == 1
        (left,) = servers()
        kill_group(left.pid)
        left.wait(30)
        ready()
        assert starts_with() == str(first)
        one.close()
        two.close()
