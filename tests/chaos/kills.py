"""SIGKILL at random instants of a running evaluation, and what is found after each.

The evaluation is a real one at the scale of minutes: ``run_attempts`` over small instances, the scripted teacher
with the oracle, Docker sandboxes, the official harness, a Store on disk, a Prefect server. It runs in a process of
its own, is killed, looked at, started again on the same Store, and so on; in the end it may finish, and what it
leaves is compared with an undisturbed run. One line of markdown for each kill; exit status 1 if any is not ok.

    python -m tests.chaos.kills [--kills 20] [--seed 1] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
READY = "kills: ready"
NAME = "teacher-oracle"
STARTUP_SHARE = 0.2
"""Of the kills, those that fall into the program's own start."""

Snapshot = dict[str, tuple[int, int, int]]


def work() -> None:
    """The evaluation, in the current folder. What it does is not made for being killed."""
    from prefect import flow
    from prefect.task_runners import ThreadPoolTaskRunner

    import tasks  # noqa: F401  (sets Prefect's environment)
    from protege.config import AgentParams, SandboxParams
    from protege.datasets.load import load_instances
    from protege.desk.teacher import ScriptedTeacher
    from protege.expert.judge import HeuristicJudge
    from protege.expert.oracle import OracleExpert
    from protege.sandbox.docker import DockerProvider
    from tasks.evaluation import write_evaluation
    from tasks.keys import rollout_seed
    from tasks.outs import fresh_folder
    from tasks.progress import Progress
    from tasks.units import Attempt, Bench, run_attempts

    rows = load_instances(Path("instances.jsonl"))
    # generous, so that a busy machine does not change a result
    params = SandboxParams(memory_mb=512, pids=64, command_timeout_s=300, grade_timeout_s=600, lifetime_s=3600)
    bench = Bench(DockerProvider(params), AgentParams(step_limit=25, time_limit_s=1800), params, retries=2)
    teacher, oracle, judge = ScriptedTeacher(), OracleExpert(), HeuristicJudge()
    attempts = [
        Attempt(f"{row.instance_id}.{NAME}", row, teacher, oracle, rollout_seed(1, row.instance_id), judge)
        for row in rows
    ]
    print(READY, flush=True)

    @flow(name="kills")
    def evaluation() -> None:
        with fresh_folder(Path("data/evaluation")) as folder:
            outcomes = run_attempts(attempts, bench, Progress("kills", len(attempts)))
            write_evaluation(folder / NAME, NAME, outcomes)

    evaluation.with_options(task_runner=ThreadPoolTaskRunner(max_workers=2))()  # type: ignore[arg-type]


@dataclass
class Found:
    """What one kill left, and what the next start made of it."""

    instant: str
    finished: int = 0
    more: int = 0
    half_written: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    temporary: int = 0
    containers: int = 0
    not_reaped: int | None = None

    @property
    def ok(self) -> bool:
        return not (self.half_written or self.lost or self.not_reaped)

    def line(self, number: int) -> str:
        reaped = {None: "?", 0: "all"}.get(self.not_reaped, f"{self.not_reaped} left")
        return (
            f"| {number} | {self.instant} | {self.finished} (+{self.more}) | {len(self.lost)} | {len(self.half_written)} "
            f"| {self.temporary} | {self.containers} | {reaped} | {'ok' if self.ok else 'NOT OK'} |"
        )


HEAD = (
    "| kill | instant | units kept (new) | lost or redone | half-written | temporary files | containers left | reaped by next start | |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


class Job:
    """The evaluation in one folder: start it, kill it, look at what is there."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], env: dict[str, str]) -> None:
        self.folder, self.env, self.count = folder, env, len(rows)
        folder.mkdir(parents=True)
        (folder / "instances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.log = folder / "log.txt"

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.kills", "--work"],
                cwd=self.folder,
                env={**os.environ, **self.env, "PYTHONPATH": str(ROOT)},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def wait_ready(self, process: subprocess.Popen[bytes], until: float) -> bool:
        """True once it is ready, False when ``until`` (monotonic) comes first."""
        while time.monotonic() < until:
            if READY in self.log.read_text(errors="replace"):
                return True
            if process.poll() is not None:
                raise RuntimeError(f"the evaluation ended by itself:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.01)
        return False

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait(timeout=900) != 0:
            raise RuntimeError(f"the evaluation failed:\n{self.log.read_text()[-3000:]}")

    @property
    def store(self) -> Path:
        return self.folder / ".cache/protege/store"

    def units(self) -> Snapshot:
        """Finished units by file; a unit that is done again gets another inode and time."""
        found = {}
        for path in self.store.rglob("*.json"):
            if not path.name.startswith("."):
                info = path.stat()
                found[str(path.relative_to(self.store))] = (info.st_ino, info.st_mtime_ns, info.st_size)
        return found

    def half_written(self) -> list[str]:
        """Files that a later reader would read and that do not parse, or an out that is not whole."""
        bad = []
        roots = [self.store, self.folder / "data/evaluation", self.folder / "data/metrics"]
        for path in (p for root in roots for p in root.rglob("*.json*") if p.is_file() and not p.name.startswith(".")):
            try:
                text = path.read_text()
                for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
                    json.loads(part)
            except ValueError:
                bad.append(str(path.relative_to(self.folder)))
        out = self.folder / "data/evaluation"
        if out.exists() and len(list((out / NAME / "trajectories").glob("*.json"))) != self.count:
            bad.append("data/evaluation is there but not whole")
        return bad

    def temporary(self) -> int:
        return sum(1 for root in (self.store, self.folder / "data") for _ in root.rglob(".*"))

    def result(self) -> dict[str, Any]:
        """What the evaluation says, without its clock."""
        out = self.folder / "data/evaluation" / NAME
        summary = json.loads((out / "summary.json").read_text())
        del summary["cached"]
        trajectories = {p.name: _timeless(json.loads(p.read_text())) for p in sorted((out / "trajectories").iterdir())}
        units = self.units()
        kinds = {kind: sum(name.startswith(kind) for name in units) for kind in ("trajectory", "verdict")}
        predictions = (out / "predictions.jsonl").read_text()
        return {"summary": summary, "trajectories": trajectories, "predictions": predictions, "store": kinds}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        clock = {"seconds", "started_at", "model_seconds", "tool_seconds", "log_tail"}
        return {key: _timeless(item) for key, item in value.items() if key not in clock}
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    return re.sub(r"\d+\.\d+ ?s", "T s", value) if isinstance(value, str) else value


def containers_of(pids: set[int]) -> int:
    """Containers, running or not, that belong to one of these processes of this machine."""
    from protege.sandbox.images import docker_client

    client = docker_client()
    try:
        found = client.api.containers(all=True, filters={"label": "protege=1"})
    finally:
        client.close()
    owners = [(item.get("Labels") or {}).get("protege.run", "").partition(".")[0] for item in found]
    return sum(owner in {str(pid) for pid in pids} for owner in owners)


def disturb(
    job: Job, kills: int, seed: int, startup_s: float, window_s: float, say: Callable[[str], None]
) -> list[Found]:
    """Kill the job ``kills`` times; returns what was found. The job is then left to finish."""
    rng = random.Random(seed)
    early = {i for i in range(kills) if rng.random() < STARTUP_SHARE}
    found: list[Found] = []
    dead: set[int] = set()
    pending: list[Found] = []

    def reaped() -> None:
        left = containers_of(dead)
        for item in pending:
            item.not_reaped = left
            say(item.line(found.index(item) + 1))
        pending.clear()
        if not left:
            dead.clear()

    for number in range(kills):
        before = job.units()
        process = job.start()
        began = time.monotonic()
        ready = job.wait_ready(process, began + (rng.uniform(0, startup_s) if number in early else 300))
        if ready:
            reaped()
            time.sleep(rng.uniform(0, window_s))
        instant = f"{time.monotonic() - began:.2f} s, {'at work' if ready else 'starting'}"
        alive = process.poll() is None
        process.kill()
        process.wait()
        dead.add(process.pid)
        after = job.units()
        item = Found(instant if alive else f"{instant} (it had ended)", len(after), len(after.keys() - before.keys()))
        item.lost = [name for name, what in before.items() if after.get(name) != what]
        item.half_written, item.temporary, item.containers = job.half_written(), job.temporary(), containers_of(dead)
        found.append(item)
        pending.append(item)
    before = job.units()
    process = job.start()
    if not job.wait_ready(process, time.monotonic() + 300):
        raise RuntimeError("the last start does not get ready")
    reaped()
    job.finish(process)
    after = job.units()
    found[-1].lost += [name for name, what in before.items() if after.get(name) != what]
    if left := containers_of({process.pid}):
        raise RuntimeError(f"the evaluation ended well and left {left} containers")
    return found


@contextmanager
def bench(folder: Path, count: int, server_url: str = "") -> Iterator[tuple[list[dict[str, Any]], dict[str, str]]]:
    """Rows whose image is on this machine, and the address of a Prefect server (default: one of the block's own)."""
    from protege.sandbox.images import docker_client
    from tests.infra.own_server import own_server
    from tests.sandbox.tiny import WRONG, build_image, make_tiny

    folder.mkdir(parents=True, exist_ok=True)
    tiny = make_tiny(folder / "tiny")
    build_image(tiny)
    rows = []
    for number in range(1, count + 1):
        changes: dict[str, Any] = {"instance_id": f"tiny__calc-{number}"}
        if number % 3 == 0:
            changes["patch"] = WRONG  # the teacher follows it, and the tests say no
        rows.append(tiny.instance.model_copy(update=changes).to_row())
    try:
        with ExitStack() as stack:
            yield rows, {"PREFECT_API_URL": server_url or stack.enter_context(own_server(folder))}
    finally:
        client = docker_client()
        for tag in (tiny.instance.image, f"{tiny.instance.image}-site"):
            client.images.remove(tag, force=True)


def experiment(
    folder: Path, kills: int, seed: int, count: int, say: Callable[[str], None] = print, server_url: str = ""
) -> tuple[list[Found], bool]:
    """All of it: (what was found after each kill, whether the final result is that of an undisturbed run)."""
    with bench(folder, count, server_url) as (rows, env):
        calm = Job(folder / "undisturbed", rows, env)
        began = time.monotonic()
        process = calm.start()
        calm.wait_ready(process, began + 300)
        startup = time.monotonic() - began
        calm.finish(process)
        working = time.monotonic() - began - startup
        say(f"undisturbed: {count} attempts, {startup:.1f} s until ready, {working:.1f} s of work\n\n{HEAD}")
        # so wide that about seven tenths of the work is done under fire
        window = 0.7 * working / (kills * (1 - STARTUP_SHARE)) * 2
        job = Job(folder / "disturbed", rows, env)
        found = disturb(job, kills, seed, startup, window, say)
        return found, job.result() == calm.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--instances", type=int, default=0, help="default: two for each kill")
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    arguments = parser.parse_args()
    if arguments.work:
        work()
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch) / "kills").resolve()
        count = arguments.instances or 2 * arguments.kills
        found, same = experiment(folder, arguments.kills, arguments.seed, count, lambda line: print(line, flush=True))
    good = sum(item.ok for item in found)
    print(
        f"\n{good} of {len(found)} kills ok; the final result is {'that' if same else 'NOT that'} of the undisturbed run"
    )
    return 0 if same and good == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
