"""Attempts in the processes of a local Dask cluster give what threads give."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from protege.config import RunnerParams, SandboxParams
from protege.errors import BadParams, ModelServerError
from protege.sandbox.bubblewrap import BubblewrapProvider
from tasks import runner
from tests.infra.own_server import ROOT, own_server


def test_only_dask_has_a_scheduler():
    with pytest.raises(ValueError, match="belong to kind: dask"):
        RunnerParams(address="tcp://127.0.0.1:8786")


def test_without_prefect_dask_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(BadParams, match="pip install"):
        runner.task_runner(RunnerParams(kind="dask"), 2)


def test_a_provider_is_made_once_in_a_process(tmp_path):
    runner.make_portable()
    provider = BubblewrapProvider(SandboxParams(memory_mb=99), tmp_path)
    there = pickle.dumps(provider)
    again = pickle.loads(there)
    assert again is pickle.loads(there) and (again.params, again.testbeds) == (provider.params, provider.testbeds)


def test_the_token_is_away_while_the_server_is_seen_to(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LOOK_AGAIN_S", 0.01)
    seen, enough = [], threading.Event()

    def prepare() -> None:
        seen.append([path.name for path in tmp_path.glob("ready-*")])
        if len(seen) == 3:
            raise ModelServerError("away")
        if len(seen) > 5:
            enough.set()

    with runner.keeping_ready([prepare, prepare], tmp_path) as token:
        assert enough.wait(60)
    assert seen == [[]] * len(seen) and not token.exists()
    with pytest.raises(BadParams, match="one model"), runner.keeping_ready([prepare, lambda: None], tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), runner.keeping_ready([lambda: print(1 / 0)], tmp_path):
        pass


def test_a_worker_waits_for_both_server_and_token(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PATIENCE_S", 1.0)

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(ModelServerError, match="did not become ready"):
            runner.Answering(url, tmp_path / "token")()
        (tmp_path / "token").touch()
        runner.Answering(url, tmp_path / "token")()
        server.shutdown()
    with pytest.raises(ModelServerError):
        runner.Answering(url, tmp_path / "token")()


@pytest.mark.slow
def test_dask_gives_what_threads_give(tmp_path):
    pytest.importorskip("prefect_dask")
    cache = Path(os.environ.get("PROTEGE_CACHE", tmp_path / "cache"))
    with own_server(tmp_path) as url:
        done = subprocess.run(
            [sys.executable, "-m", "tests.tasks.dask_program"],
            cwd=tmp_path,
            env={**os.environ, "PREFECT_API_URL": url, "PYTHONPATH": str(ROOT), "PROTEGE_CACHE": str(cache)},
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    threads, dask = result["threads"], result["dask"]
    for one, other in zip(threads, dask, strict=True):
        assert one["resolved"] and other["resolved"], (one, other)
        assert (one["id"], one["patch"], one["cached"]) == (other["id"], other["patch"], other["cached"])
    assert {o["process"] for o in threads} == {result["flow"]}
    assert result["flow"] not in {o["process"] for o in dask}
    assert all(o["cached"] for o in [*result["threads again"], *result["dask again"]])
    # the stage's own process sees to the model server; nothing is left of it
    assert set(result["prepared"]) == {result["flow"]} and result["tokens"] == []
