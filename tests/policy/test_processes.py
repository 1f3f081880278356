"""A killed parent leaves no process: the watcher ends the group, and the next start reaps what it missed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protege.policy.processes import group_members, kill_group, reap_orphans, start_time

# A leader with a child that ignores SIGTERM, as a stuck engine would.
STUBBORN = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, 1); time.sleep(600)']); time.sleep(600)"


def spawn() -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(group_members(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    return process


def record(
    folder: Path, process: subprocess.Popen[bytes], owner: int, owner_started: int | None, started: int | None = None
) -> Path:
    path = folder / f"server-{process.pid}.json"
    started = start_time(process.pid) if started is None else started
    path.write_text(
        json.dumps({"pid": process.pid, "started": started, "owner": owner, "owner_started": owner_started})
    )
    return path


def test_a_group_is_ended_to_the_last_process() -> None:
    process = spawn()
    assert len(group_members(process.pid)) == 2
    kill_group(process.pid, grace_s=0.5)
    process.wait()
    assert group_members(process.pid) == []


def test_only_orphans_are_reaped(tmp_path: Path) -> None:
    process = spawn()
    try:
        path = record(tmp_path, process, os.getpid(), start_time(os.getpid()))
        assert reap_orphans(tmp_path) == [] and path.exists(), "its owner lives"
        path = record(tmp_path, process, os.getpid(), 1, started=12345)
        assert reap_orphans(tmp_path) == [] and not path.exists(), "the number belongs to another process now"
        assert len(group_members(process.pid)) == 2
        record(tmp_path, process, os.getpid(), 1)
        assert reap_orphans(tmp_path) == [process.pid]
        assert group_members(process.pid) == []
    finally:
        kill_group(process.pid, 0.1)
        process.wait()


def test_make_down_ends_everything(tmp_path: Path) -> None:
    process = spawn()
    record(tmp_path, process, os.getpid(), start_time(os.getpid()))
    assert reap_orphans(tmp_path, everything=True) == [process.pid]
    process.wait()
    assert group_members(process.pid) == [] and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "thread that ended"])
def test_a_killed_parent_takes_the_server_with_it(tiny: Path, tmp_path: Path, thread: bool) -> None:
    """The thread that starts a server may end (a thread pool's do); only the process's end ends the server."""
    program = (
        "import sys, threading, time\nfrom protege.policy.server import ModelServer\n"
        f"server = ModelServer({str(tiny)!r}, run_dir={str(tmp_path)!r})\n"
        "server._wait = lambda began: None\n"
        + ("t = threading.Thread(target=server.start); t.start(); t.join()\n" if thread else "server.start()\n")
        + "print('started', flush=True)\ntime.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None and parent.stdout.readline() == "started\n"
    (path,) = tmp_path.glob("server-*.json")
    pid = json.loads(path.read_text())["pid"]
    time.sleep(2)
    assert group_members(pid), "the server outlives the thread that started it"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while group_members(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert group_members(pid) == []
    assert reap_orphans(tmp_path) == [] and not list(tmp_path.glob("server-*.json"))
