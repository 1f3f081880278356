"""Three nights in a row, each with one injected failure: what recovered, and how.

The nights are the real ones at the scale of profiles/tiny.yaml (tests/chaos/night_lab.py), one date after the other, so
that each has instances of its own and is compared with the champion before it. Night 1 loses its sandboxes in the
middle of the evaluation, night 2 the model server, night 3 the API expert: its endpoint answers with 500 and time-outs
for a while. Writes FOLDER/nights.json and prints the rows of docs/results/nights.md.

    python -m tests.chaos.nights FOLDER [--shots DOCS_FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import docker

from tests.chaos.night_lab import Lab, Said, lab, where
from tests.expert.endpoint import Endpoint, Handler, fails, hangs, says

NIGHTS = ("2026-02-01", "2026-02-02", "2026-02-03")
PATIENCE_S = 1800.0
OUTAGE_S = 8.0
MODEL = "expert"


@dataclass
class Told:
    """One night: what was done to it and what it made of that."""

    night: str
    injected: str
    at: str = ""
    said: list[str] = field(default_factory=list)
    retried: dict[str, int] = field(default_factory=dict)
    masked: int = 0
    verdict: str = ""
    seconds: float = 0.0
    status: int | None = None
    states: dict[str, int] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)


def kill_sandboxes(made: Lab) -> str:
    """SIGKILL to process 1 of every sandbox that runs now; which they were, or "" with none."""
    client = docker.DockerClient(base_url=made.engine.host)
    try:
        running = client.containers.list(filters={"label": "protege=1"})
        for container in running:
            container.kill()
        return f"{len(running)} sandbox(es) killed" if running else ""
    finally:
        client.close()


def kill_model_server(made: Lab) -> str:
    if (pid := made.model_server()) is None:
        return ""
    os.kill(pid, signal.SIGKILL)
    return f"vLLM (process {pid}) killed"


class Outage:
    """The expert's endpoint: two good replies, then 500 and silence in turn for a while, then good replies again."""

    def __init__(self) -> None:
        self.began = 0.0
        self.asked = 0
        self.answers: Counter[str] = Counter()

    def __call__(self, handler: Handler) -> None:
        self.asked += 1
        if self.asked > 2 and not self.began:
            self.began = time.monotonic()
        if self.began and time.monotonic() - self.began < OUTAGE_S:
            kind, act = [("500", fails(500, "overloaded")), ("time-out", hangs)][self.asked % 2]
        else:
            kind, act = "reply", says()
        self.answers[kind] += 1
        act(handler)


def night(made: Lab, date: str, injected: str, inject: Callable[[Lab], str] | None, env: dict[str, str]) -> Told:
    """Run the night; ``inject`` is called in the middle of its evaluation until it says what it did."""
    told, since, began = Told(date, injected), time.time() - 1, time.monotonic()
    made.log.write_text("")
    said, process = Said(made.log), made.start("flows.nightly", "--night", date, **env)
    while process.poll() is None and time.monotonic() - began < PATIENCE_S:
        said.look()
        if inject and not told.at and said.units("evaluate") >= 2 and (what := inject(made)):
            told.at = f"{what} after {time.monotonic() - began:.0f} s, at `{said.lines['evaluate'][-1][1][:60]}`"
        time.sleep(0.01)
    process.kill()
    told.status, told.seconds = process.wait(), round(time.monotonic() - began)
    time.sleep(5)
    text = made.log.read_text()
    lines = [line for line in text.splitlines() if "infrastructure failure" in line or "model server: ready" in line]
    told.said = lines
    told.verdict = next((line for line in reversed(text.splitlines()) if line.startswith("nightly: Night of")), "")
    runs = made.runs(since)
    told.states = dict(Counter(f"{run['flow']} {run['state_type'].lower()}" for run in runs))
    wanted = {"flow_runs": {"id": {"any_": [run["id"] for run in runs]}}, "limit": 200}
    tasks = made.ask("task_runs/filter", wanted)
    told.retried = {task["name"]: task["run_count"] for task in tasks if task["run_count"] > 1}
    pages = made.ask("artifacts/filter", {**wanted, "sort": "CREATED_DESC"})
    told.artifacts = sorted(f"{p['key']}: {p['description']}" for p in pages if str(p["key"]).startswith("failure-"))
    kept = [*made.home.glob("data/trajectories/sft/*.json"), *made.home.glob("data/evaluation/*/trajectories/*.json")]
    told.masked = sum(json.loads(path.read_text())["failure"] is not None for path in kept)
    told.strays = made.strays(None) + made.unfinished()
    return told


def three(made: Lab, endpoint: Endpoint, outage: Outage, say: Callable[[Told], None]) -> list[Told]:
    env = {
        "PROTEGE_EXPERT_BASE_URL": endpoint.url,
        "PROTEGE_EXPERT_MODEL": MODEL,
        "PROTEGE_EXPERT_API_KEY": "none-needed",
    }
    done = []
    for date, injected, inject in (
        (NIGHTS[0], "sandboxes killed in the middle of the evaluation", kill_sandboxes),
        (NIGHTS[1], "model server killed in the middle of the evaluation", kill_model_server),
        (NIGHTS[2], f"expert's endpoint answers with 500 and time-outs for {OUTAGE_S:.0f} s", None),
    ):
        if inject is None:
            endpoint.plays(outage)
            made.set("api", timeout_s=1.0, retries=2, backoff_s=0.5, prices={MODEL: {"input": 0, "output": 0}})
            made.set("trajectories", expert="api")
        done.append(night(made, date, injected, inject, env))
        if inject is None:
            done[-1].at = f"from the third question on; {dict(outage.answers)}"
            log = made.home / ".cache/protege/expert/default/calls.jsonl"
            outcomes = Counter(json.loads(line)["outcome"] for line in log.read_text().splitlines())
            done[-1].said.append(f"calls.jsonl: {dict(outcomes)}")
        say(done[-1])
    return done


def shots(made: Lab, folder: Path) -> list[str]:
    """Pictures of Prefect's pages: the runs, and the evaluation of the last night."""
    from playwright.sync_api import sync_playwright

    from tests.report.test_browser import chromium

    ui = made.url.removesuffix("/api")
    (page_,) = made.ask("artifacts/filter", {"artifacts": {"key": {"any_": ["evaluation-rl-oracle"]}}, "limit": 1,
                                            "sort": "CREATED_DESC"})  # fmt: skip
    pages = {"nights-runs": "/runs", "nights-evaluation": f"/artifacts/artifact/{page_['id']}"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for name, path in pages.items():
            tab = browser.new_page(viewport={"width": 1300, "height": 900})
            tab.goto(ui + path)
            tab.wait_for_timeout(4000)
            tab.screenshot(path=folder / f"{name}.png")
        browser.close()
    return list(pages)


HEAD = (
    "| night | injected | when | tried again | lost | promotion | took (s) | runs in Prefect | left over |\n"
    "|---|---|---|---|---:|---|---:|---|---|"
)


def line(told: dict[str, Any]) -> str:
    """A row of the table."""
    tried = f"{len(told['retried'])} task run(s), at most {max(told['retried'].values(), default=1)} times each"
    verdict = told["verdict"].partition(": ")[2].partition(": ")[2] or f"none: status {told['status']}"
    states = ", ".join(f"{n} {name}" for name, n in sorted(told["states"].items()))
    return (
        f"| {told['night']} | {told['injected']} | {told['at'].replace('|', '/')} | {tried} | {told['masked']} | {verdict} "
        f"| {told['seconds']:.0f} | {states} | {'; '.join(told['strays']) or 'nothing'} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="kept: the project and the nights' records")
    parser.add_argument("--shots", type=Path, help="a folder for pictures of Prefect's pages")
    parser.add_argument(
        "--start", type=Path, metavar="PROJECT", help="a project's folder, with a champion, to start from"
    )
    parser.add_argument("--hold", action="store_true", help="keep the server until a line comes in")
    asked = parser.parse_args()
    folder, origin = asked.folder.resolve(), where()
    for sent in (signal.SIGINT, signal.SIGTERM):  # a background job ignores the first; the lab is cleaned up
        signal.signal(sent, signal.default_int_handler)

    def say(told: Told) -> None:
        (folder / f"night-{told.night}.log").write_text((folder / "night.log").read_text())
        print(json.dumps(asdict(told), indent=1), flush=True)
        print(f"{HEAD}\n{line(asdict(told))}", flush=True)

    with ExitStack() as stack:
        made, endpoint = stack.enter_context(lab(folder)), stack.enter_context(Endpoint())
        if asked.start:
            subprocess.run(["cp", "-a", str(asked.start), str(made.folder / "kept")], check=True)
            made.restore()
        done = three(made, endpoint, Outage(), say)
        record: dict[str, Any] = {**origin, "nights": [asdict(told) for told in done]}
        (folder / "nights.json").write_text(json.dumps(record, indent=1) + "\n")
        if asked.shots:
            print(shots(made, asked.shots), flush=True)
        if asked.hold:
            print(made.url, flush=True)
            sys.stdin.readline()
    good = [t for t in done if t.status == 0 and t.at and not t.strays and not t.masked]
    print(f"{len(good)} of {len(done)} nights ended well, with nothing lost and nothing left over")
    return 0 if len(good) == len(done) else 1


if __name__ == "__main__":
    sys.exit(main())
