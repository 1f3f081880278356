"""A small project for whole nights with every engine real: a copy of the tree at the scale of profiles/tiny.yaml, a random
model, a Docker engine and a Prefect server of its own. Used by tests/chaos/nightkills.py and tests/chaos/nights.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import psutil

from tests.e2e.test_pipeline import Project
from tests.helpers import read_settings, write_settings
from tests.infra.engine_fixture import Engine, private_engine
from tests.infra.own_server import own_server

ROOT = Path(__file__).resolve().parents[2]
UNFINISHED = ["PENDING", "RUNNING", "CANCELLING", "PAUSED"]
CHAMPION = "champion"
STAGES = ("model", "instances", "trajectories", "validate", "sft", "rl", "evaluate", "report", CHAMPION)
SHARED_IMAGES = ("protege-agent", "protege-desk-site", "protege-desk-package")


@dataclass
class Lab:
    """One project; ``log`` holds what its nights print, from ``restore`` on."""

    folder: Path
    engine: Engine
    url: str

    def __post_init__(self) -> None:
        self.home, self.log = self.folder / "project", self.folder / "night.log"
        self.home.mkdir(parents=True)
        self.project = Project(self.home)
        self.env = {**self.project.env, "DOCKER_HOST": self.engine.host, "PREFECT_API_URL": self.url}
        self.set("nightly", backoff_s=1.0)
        for command in ("add -A", "-c user.name=lab -c user.email=lab@localhost commit -qm start"):
            subprocess.run(["git", *command.split()], cwd=self.home, check=True)
        self.log.write_text("")

    def set(self, section: str, **values: object) -> None:
        raw = read_settings(self.home)
        raw.setdefault(section, {}).update(values)
        write_settings(self.home, raw)

    def keep(self, name: str) -> None:
        """Copy the project's files as they are now into folder ``name`` of the lab."""
        subprocess.run(["cp", "-a", str(self.home), str(self.folder / name)], check=True)

    def restore(self) -> None:
        """The files as in folder ``kept``, no image of an instance in the engine, and an empty log."""
        self.end()
        shutil.rmtree(self.home)
        subprocess.run(["cp", "-a", str(self.folder / "kept"), str(self.home)], check=True)
        client = docker.DockerClient(base_url=self.engine.host)
        try:
            for tag in (tag for image in client.images.list() for tag in image.tags):
                if not tag.startswith(SHARED_IMAGES):
                    client.images.remove(tag, force=True)
        finally:
            client.close()
        self.log.write_text("")

    def end(self) -> None:
        """SIGKILL to all that works in the folder."""
        while left := self.processes():
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.2)

    def start(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.home,
                env={**self.env, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        """All that work in the project's folder."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def flow(self, name: str) -> int | None:
        """The process of a stage's flow."""
        return next((p.pid for p in self.processes() if f"flows.{name}" in _command(p)), None)

    def model_server(self) -> int | None:
        """The process of vLLM that answers requests."""
        for path in (self.home / ".cache/protege/run").glob("server-*.json"):
            with suppress(OSError, ValueError):
                pid = int(json.loads(path.read_text())["pid"])
                if psutil.pid_exists(pid):
                    return pid
        return None

    def strays(self, night: int | None) -> list[str]:
        """Processes in the folder that are not of the tree of ``night``, and containers whose owner is gone."""
        tree: set[int] = set()
        with suppress(psutil.Error):
            if night is not None:
                tree = {night, *(p.pid for p in psutil.Process(night).children(recursive=True))}
        found = []
        for p in self.processes():
            with suppress(psutil.Error):
                if p.pid not in tree:
                    found.append(f"process {' '.join(_command(p))[:80]}")
        client = docker.DockerClient(base_url=self.engine.host)
        try:
            for item in client.api.containers(all=True, filters={"label": "protege=1"}):
                owner = int((item.get("Labels") or {}).get("protege.run", "0").partition(".")[0] or 0)
                if not psutil.pid_exists(owner):
                    found.append(f"container {item['Names'][0]} of {owner} ({item['State']})")
        finally:
            client.close()
        return found

    def ask(self, what: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}/{what}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def runs(self, since: float) -> list[dict[str, Any]]:
        """Flow runs created after ``since`` (s since 1970), oldest first."""
        after = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))
        wanted = {"flow_runs": {"expected_start_time": {"after_": after}}, "sort": "EXPECTED_START_TIME_ASC"}
        found: list[dict[str, Any]] = self.ask("flow_runs/filter", wanted)
        names = {flow["id"]: flow["name"] for flow in self.ask("flows/filter", {})}
        return [{**run, "flow": names[run["flow_id"]]} for run in found]

    def unfinished(self) -> list[str]:
        """Runs of flows and tasks that Prefect takes for living."""
        found = []
        for what in ("flow_runs", "task_runs"):
            wanted = {what: {"state": {"type": {"any_": UNFINISHED}}}}
            found += [f"{what[:4]} {run['name']}" for run in self.ask(f"{what}/filter", wanted)]
        return found


class Said:
    """What the nights' log says of each stage, and when it was read there first."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.lines: dict[str, list[tuple[float, str]]] = {stage: [] for stage in STAGES}
        self._read, self._reported = 0, False

    def look(self) -> None:
        with self.log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            name = re.match(r"(\w+)(?: step \d+)?: ", line)
            stage = CHAMPION if self._reported and name and name[1] == "evaluate" else name[1] if name else ""
            if stage in self.lines:
                self.lines[stage].append((time.monotonic(), line))
            self._reported = self._reported or line.startswith("report: done in")

    def began(self, stage: str) -> bool:
        return any(": starts (" in line for _, line in self.lines[stage])

    def since_start(self, stage: str, after: float = 0.0) -> list[str]:
        """What it said from its last start on, if that was read after ``after`` (monotonic)."""
        starts = [n for n, (at, line) in enumerate(self.lines[stage]) if ": starts (" in line and at > after]
        return [line for _, line in self.lines[stage][starts[-1] :]] if starts else []

    def done(self, stage: str) -> int:
        return sum(": done in " in line for _, line in self.lines[stage])

    def over(self, stage: str) -> bool:
        return self.done(stage) > 0 or any(map(self.began, STAGES[STAGES.index(stage) + 1 :]))

    def seconds(self, stage: str) -> float:
        """From its first start to its last end."""
        first = next((at for at, line in self.lines[stage] if ": starts (" in line), 0.0)
        return next((at - first for at, line in reversed(self.lines[stage]) if ": done in " in line), 0.0)

    def took(self, stage: str) -> float:
        """Seconds, as it says itself when it is done."""
        said = (re.search(r": done in (\d+) s", line) for _, line in self.lines[stage])
        return float(sum(int(m[1]) for m in said if m))

    def units(self, stage: str) -> int:
        return sum(bool(re.search(r": \d+/\d+ ", line)) for _, line in self.lines[stage])


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """A lab in ``folder``; whatever is left of it in the end is stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    with own_server(folder) as url, private_engine(folder / "e") as engine:
        made = Lab(folder, engine, url)
        try:
            yield made
        finally:
            made.end()


def where() -> dict[str, Any]:
    """Commit, machine and date of a measurement."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    model = next(
        (line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line), ":?"
    )
    memory = round(psutil.virtual_memory().total / 2**30)
    return {
        "commit": commit.strip() + (" with changes" if changed.strip() else ""),
        "machine": f"{os.cpu_count()} cores ({model.partition(':')[2].strip()}), {memory} GiB, no GPU",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
