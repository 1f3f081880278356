"""The whole chain at the scale of profiles/tiny.yaml, every engine real, in a copy of the tree."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protege.core.trajectory import Trajectory, load_trajectories
from tests.e2e.tiny_model import make

ROOT = Path(__file__).parents[2]
SYSTEMS = [f"{model}-{expert}" for model in ("base", "sft", "rl") for expert in ("none", "oracle")]
pytestmark = [pytest.mark.slow, pytest.mark.docker]


class Project:
    """A copy of the tree with params of its own, as a clone would be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in names.stdout.split("\0"):
            if name and (ROOT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        shutil.copy(folder / "profiles/tiny.yaml", folder / "params.yaml")
        make(folder / ".cache/protege/tiny-model")
        self.env = {
            k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "PROTEGE_SERVER", "PYTHONPATH"))
        }
        self.env["PATH"] = f"{Path(sys.executable).parent}:{self.env['PATH']}"
        self.env["PYTHONUNBUFFERED"] = "1"

    def run(self, *command: str, timeout: float = 1500) -> str:
        """The output of ``python -m command``; a failure shows its end."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-6000:]}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def evaluated(self, system: str) -> list[Trajectory]:
        return load_trajectories(self.folder / "data/evaluation" / system / "trajectories")

    def server(self) -> str:
        return str(self.json(".cache/protege/run/prefect.json")["url"])

    def ask(self, what: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.server()}/{what}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = Project(tmp_path_factory.mktemp("clone"))
    try:
        print(made.run("dvc", "repro"))
        yield made
    finally:
        subprocess.run([sys.executable, "-m", "infra.processes"], cwd=made.folder, env=made.env, timeout=120)
        subprocess.run([sys.executable, "-m", "tasks.server", "stop"], cwd=made.folder, env=made.env, timeout=120)


def units(output: str) -> dict[str, bool]:
    """Trajectory id -> was it found in the Store, from the progress lines of an evaluation."""
    found = {}
    for line in output.splitlines():
        head, _, what = line.partition(": ")
        count, _, rest = what.partition(" ")
        if head == "evaluate" and "/" in count and count.replace("/", "").isdigit():
            found[rest.split(":")[0]] = rest.endswith("(cached)")
    return found


def test_every_stage_leaves_its_outs(project: Project) -> None:
    wanted = [
        *(f"data/models/{name}/config.json" for name in ("base", "sft", "rl")),
        *(f"data/instances/{name}.jsonl" for name in ("sft", "rl", "eval")),
        "data/instances/suite.json",
        "data/trajectories/summary.json",
        "data/validation/result.json",
        "data/sft/train.parquet",
        "data/rl/steps.jsonl",
        "data/rl/rewards.jsonl",
        *(f"data/evaluation/{system}/predictions.jsonl" for system in SYSTEMS),
        "data/report/index.html",
        "data/report/report.md",
    ]
    assert [name for name in wanted if not (project.folder / name).is_file()] == []
    assert not list((project.folder / "data").glob(".*.new"))


def test_the_splits_share_no_package(project: Project) -> None:
    packages = {s: {row["package"] for row in project.rows(f"data/instances/{s}.jsonl")} for s in ("sft", "rl", "eval")}
    assert packages["eval"] and not packages["eval"] & (packages["sft"] | packages["rl"])


def test_only_resolved_trajectories_are_trained_on(project: Project) -> None:
    import pyarrow.parquet as pq

    trained = set(pq.read_table(project.folder / "data/sft/train.parquet")["trajectory_id"].to_pylist())
    all_of_them = load_trajectories(project.folder / "data/trajectories/sft")
    resolved = {t.trajectory_id for t in all_of_them if t.resolved}
    assert trained and trained <= resolved
    assert len(all_of_them) == 4 == project.json("data/trajectories/summary.json")["counts"]["attempts"]


def test_training_changed_the_weights(project: Project) -> None:
    base, sft = ((project.folder / f"data/models/{name}/model.safetensors").read_bytes() for name in ("base", "sft"))
    assert base != sft


def test_rl_moved_the_weights_exactly_when_a_reward_said_so(project: Project) -> None:
    """A random model's rollouts often earn the same reward, which teaches nothing: then nothing may move."""
    steps = project.rows("data/rl/steps.jsonl")
    assert len(steps) == 2 and all(step["rollouts"] == 2 and step["masked"] == 0 for step in steps)
    sft, rl = ((project.folder / f"data/models/{name}/model.safetensors").read_bytes() for name in ("sft", "rl"))
    if all(step["groups_without_signal"] == step["groups"] for step in steps):
        assert sft == rl
    rewards = project.rows("data/rl/rewards.jsonl")
    assert len(rewards) == 4 and all(not line["masked"] and "total" in line for line in rewards)


def test_the_numbers_are_those_of_the_trajectories(project: Project) -> None:
    metrics = project.json("data/metrics/evaluate.json")
    expected = {row["instance_id"] for row in project.rows("data/instances/eval.jsonl")}
    for system in SYSTEMS:
        done = project.evaluated(system)
        assert {t.instance_id for t in done} == expected
        graded = [t for t in done if t.failure is None]
        assert metrics[system]["graded"] == len(graded) and metrics[system]["resolved"] == sum(
            t.resolved for t in graded
        )
        reported = project.json(f"data/metrics/systems/{system}.json")
        assert (reported["n"], reported["resolved"]) == (len(graded), sum(t.resolved for t in graded))
        patches = {
            row["instance_id"]: row["model_patch"]
            for row in project.rows(f"data/evaluation/{system}/predictions.jsonl")
        }
        assert patches == {t.instance_id: t.patch for t in done}
        assert all(t.tokens is not None and len(t.tokens.ids) == len(t.tokens.mask) for t in graded)
        assert all(t.policy.digest == graded[0].policy.digest for t in graded)
    digests = {model: project.evaluated(f"{model}-none")[0].policy.digest for model in ("base", "sft", "rl")}
    assert digests["base"] != digests["sft"]


def test_each_instance_has_a_task_run_and_each_evaluation_a_page(project: Project) -> None:
    runs = project.ask("task_runs/filter", {"limit": 200})
    names = {run["name"] for run in runs}
    assert {t.trajectory_id for system in SYSTEMS for t in project.evaluated(system)} <= names
    keys = {page["key"] for page in project.ask("artifacts/filter", {"limit": 200})}
    assert {f"evaluation-{system}" for system in SYSTEMS} | {"report", "validation"} <= keys


def test_a_second_run_does_nothing(project: Project) -> None:
    output = project.run("dvc", "repro")
    assert "Data and pipelines are up to date." in output and "Running stage" not in output


def test_changing_one_row_reruns_that_instance_only(project: Project) -> None:
    path = project.folder / "data/instances/eval.jsonl"
    before = path.read_text()
    rows = project.rows("data/instances/eval.jsonl")
    changed = rows[0]["instance_id"]
    rows[0]["problem_statement"] += "\nIt happens every time."
    try:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = units(project.run("flows.evaluate"))
    finally:
        path.write_text(before)
    assert len(done) == len(rows) * len(SYSTEMS)
    assert {name for name, cached in done.items() if not cached} == {f"{changed}.{system}" for system in SYSTEMS}


def test_a_killed_evaluation_goes_on_where_it_stopped(project: Project) -> None:
    params = project.folder / "params.yaml"
    before = params.read_text()
    published = {p.name: p.read_bytes() for p in (project.folder / "data/evaluation").rglob("summary.json")}
    try:
        params.write_text(before.replace("seed: 13", "seed: 14"))
        first = project.start("flows.evaluate")
        assert first.stdout is not None
        said = ""
        for line in first.stdout:
            said += line
            if len(units(said)) >= 3:
                break
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        finished = set(units(said))
        assert finished, said
        now = {p.name: p.read_bytes() for p in (project.folder / "data/evaluation").rglob("summary.json")}
        assert now == published, "a killed stage must not touch what was published"
        second = units(project.run("flows.evaluate"))
    finally:
        params.write_text(before)
    total = len(SYSTEMS) * len(project.rows("data/instances/eval.jsonl"))
    assert len(second) == total
    assert finished <= {name for name, cached in second.items() if cached}
    assert any(not cached for cached in second.values())


def test_down_leaves_no_process_and_no_container(project: Project) -> None:
    from protege.sandbox import images

    project.run("infra.processes")
    project.run("tasks.server", "stop")
    assert not list((project.folder / ".cache/protege/run").glob("server-*.json"))
    assert not (project.folder / ".cache/protege/run/prefect.json").exists()
    ours = {row["image"] for split in ("sft", "rl", "eval") for row in project.rows(f"data/instances/{split}.jsonl")}
    left_over = images.docker_client().api.containers(all=True, filters={"label": f"{images.LABEL}=1"})
    assert [item["Names"] for item in left_over if item["Image"] in ours] == []
    own = str(project.folder)
    left = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _cwd(p) == own]
    assert left == []


def _cwd(process: Path) -> str:
    try:
        return os.readlink(process / "cwd")
    except OSError:
        return ""
