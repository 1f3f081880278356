from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from protege.errors import ProtegeError
from protege.ports import is_free
from tasks import server as module
from tasks.server import ServerError, ensure, free_port, healthy, running, stop, ui
from tests.helpers import by

ROOT = Path(__file__).parents[2]


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) > port
        with pytest.raises(ServerError, match=str(port)):
            free_port(port, tries=1)


def test_no_run_file_or_a_dead_process_is_no_server(in_tmp: Path) -> None:
    assert running() is None
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = in_tmp / ".cache/protege/run"
    folder.mkdir(parents=True)
    (folder / "prefect.json").write_text(json.dumps({"pid": gone.pid, "created": 1.0, "url": "http://127.0.0.1:9/api"}))
    assert running() is None
    assert stop() is False
    assert not (folder / "prefect.json").exists()


def test_another_process_with_the_same_number_is_left_alone(in_tmp: Path) -> None:
    folder = in_tmp / ".cache/protege/run"
    folder.mkdir(parents=True)
    (folder / "prefect.json").write_text(
        json.dumps({"pid": os.getpid(), "created": 1.0, "url": "http://127.0.0.1:9/api"})
    )
    assert stop() is False  # and we still live


def test_an_address_of_the_users_own_that_does_not_answer_is_an_error(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROTEGE_SERVER", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(ServerError, match="PREFECT_API_URL"):
        ensure()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A real server of a project in a temporary folder."""
    folder = tmp_path_factory.mktemp("project")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "PROTEGE_SERVER"))}
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "tasks.server"]

    def call(what: str) -> str:
        done = subprocess.run([*command, what], cwd=folder, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    try:
        assert "started" in call("start")
        again = call("start")
        assert "runs at" in again, "the second start must find the first"
        yield folder, call("url") + "/api"
    finally:
        call("stop")
    with pytest.raises(AssertionError):
        call("url")


def ask(url: str, body: dict[str, object] | None = None) -> object:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_the_ui_reaches_its_own_api(server: tuple[Path, str]) -> None:
    _, url = server
    assert healthy(url)
    settings = ask(f"{ui(url)}/ui-settings")
    assert isinstance(settings, dict) and settings["api_url"] == url


@pytest.mark.slow
def test_a_cron_schedule_fires(server: tuple[Path, str]) -> None:
    """With a wrong SQLAlchemy the server looks healthy but plans no run."""
    _, url = server
    flow = ask(f"{url}/flows/", {"name": "ticking"})
    assert isinstance(flow, dict)
    schedule = {"schedule": {"cron": "* * * * *"}, "active": True}
    ask(f"{url}/deployments/", {"name": "each-minute", "flow_id": flow["id"], "schedules": [schedule]})
    deadline = time.monotonic() + 180
    runs: object = []
    while not runs and time.monotonic() < deadline:
        time.sleep(2)
        runs = ask(f"{url}/flow_runs/filter", {"flows": {"id": {"any_": [flow["id"]]}}})
    assert isinstance(runs, list) and runs and runs[0]["state_type"] == "SCHEDULED"


@pytest.mark.slow
def test_attempts_that_fail_are_retried_then_masked_and_finished_ones_are_not_done_again(
    server: tuple[Path, str],
) -> None:
    folder, url = server
    script = Path(__file__).with_name("attempts_program.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": url}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["finished"] == {"exit": "submitted", "resolved": True, "cached": True, "state": "Cached", "runs": 1}
    assert result["broken"] == {
        "exit": "infrastructure",
        "boundary": "sandbox",
        "attempts": 2,
        "state": "Failed",
        "runs": 2,
    }
    assert result["hopeless"] == {
        "exit": "infrastructure",
        "boundary": "sandbox",
        "attempts": 1,
        "state": "Failed",
        "runs": 1,
    }
    assert result["opened"] == {"broken": 2, "hopeless": 1}
    assert result["artifacts"] == ["failure-broken", "failure-hopeless"]
    assert "attempt 2 of 2" in result["page"]
    assert result["stored"] == 1


@pytest.mark.slow
def test_a_killed_server_is_started_again_on_its_port_or_said_to_be_lost(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "PROTEGE_SERVER"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(module, "WATCH_S", 0.1)
    lost: queue.Queue[ProtegeError] = queue.Queue()
    file = in_tmp / ".cache/protege/run/prefect.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # where no other project's server is put meanwhile
    url = f"http://127.0.0.1:{port}/api"

    def kill() -> int:
        pid = int(json.loads(file.read_text(encoding="utf-8"))["pid"])
        os.kill(pid, signal.SIGKILL)
        return pid

    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"pid": 2**22 + 1, "created": 1.0, "url": url}), encoding="utf-8")
    before = dict(os.environ)
    try:
        assert ensure() == url, "the port of the last start is taken again"
        with module.watched(url, lost.put):
            old = kill()
            assert by(240, lambda: running() == url and json.loads(file.read_text(encoding="utf-8"))["pid"] != old)
            assert lost.empty()
            with socket.socket() as taken:
                with module._lock():  # the watcher waits
                    kill()
                    assert by(60, lambda: is_free(port))
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    taken.bind(("127.0.0.1", port))
                    taken.listen()
                assert f"another program has taken port {port}" in str(lost.get(timeout=60))
    finally:
        stop()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
