"""Nights of a small pipeline with real processes: a schedule that fires, a kill in the middle, a stage that fails."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.lineage import gone, identity
from tests.nightly.project import ROOT, Project, ask
from tests.nightly.webhook import webhook

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, server: str) -> tuple[Project, str]:
    made = Project(tmp_path_factory.mktemp("project"))
    made.env["PREFECT_API_URL"] = server
    return made, server


def runs(url: str, *names: str, **state: object) -> list[dict[str, Any]]:
    wanted: dict[str, Any] = {"flows": {"name": {"any_": list(names)}}, "sort": "EXPECTED_START_TIME_ASC"}
    found = ask(f"{url}/flow_runs/filter", wanted)
    return [run for run in found if run["state_type"] != "SCHEDULED"]


def wait(what: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, (
            f"waited in vain; processes here: {psutil.Process().children(recursive=True)}"
        )
        time.sleep(0.3)
    return found


def of_the_night(folder: Path) -> list[int]:
    """Processes in ``folder``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def lost(url: str, names: list[str], grace_s: float) -> list[str]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from infra.serve import recover

    with temporary_settings({PREFECT_API_URL: url}):
        return recover(names, grace_s)


def night_of(message: dict[str, Any]) -> str:
    """The date in a message's verdict, "Night of 2026-11-22: …"."""
    return str(message["verdict"]).removeprefix("Night of ").partition(":")[0]


def test_a_scheduled_night_runs_every_stage_as_its_child_and_crowns_the_first_model(
    project: tuple[Project, str],
) -> None:
    small, url = project
    small.set("rl", steps=10)
    with webhook() as hook:
        served = small.start(
            "infra.serve", "--every", "4", PREFECT_RUNNER_POLL_FREQUENCY="2", PROTEGE_WEBHOOK_URL=hook.url
        )
        try:
            wait(lambda: hook.messages)
            night = wait(lambda: [r for r in runs(url, "nightly") if r["state_type"] == "COMPLETED"])[0]
        finally:
            served.send_signal(signal.SIGINT)
            served.communicate(timeout=60)
    # a run that it had taken and not begun when it was stopped stays pending until recover finds it: not for the tests below
    lost(url, ["nightly/nightly"], 0.0)
    message = hook.messages[0]
    assert "the new model is the champion: there is no champion yet" in message["verdict"]
    assert message["link"].endswith(f"/runs/flow-run/{night['id']}") and "0.250" in message["table"]
    assert small.done()[:3] == ["model", "rl", "evaluate 10"]
    assert small.json("data/champion/champion.json")["promote"] is True
    parents = [run["parent_task_run_id"] for run in runs(url, "rl", "evaluate")]
    assert [ask(f"{url}/task_runs/{p}")["flow_run_id"] for p in parents if p][:2] == [night["id"]] * 2
    assert night["state"]["message"] == message["verdict"]
    of = f"night of {night_of(message)}"
    assert night["name"] == of
    found = {run["name"]: run["state"]["message"] for run in runs(url, "rl", "evaluate")}
    assert found[f"{of}: evaluate rl with none"] == "10 of 40 resolved" and f"{of}: rl" in found
    overlapping = [r for r in runs(url, "nightly") if r["state_type"] == "CANCELLED"]
    assert overlapping, "each run takes longer than the interval"
    assert ask(f"{url.removesuffix('/api')}/ui-settings")["api_url"] == url
    assert (small.folder / "data/champion.dvc").is_file()


def test_a_night_killed_in_the_middle_goes_on_and_nothing_is_done_twice(project: tuple[Project, str]) -> None:
    small, url = project
    small.set("rl", steps=20)
    hold = small.folder / "hold"
    hold.touch()
    before = len(small.done())
    first = small.start("flows.nightly", "--night", "2026-11-23")
    try:
        wait(lambda: "held" in small.done()[before:])
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        wait(lambda: not of_the_night(small.folder), 30)  # neither DVC nor the stage outlives the night
    finally:
        hold.unlink()
        first.kill()
    assert small.json("data/nights/2026-11-23/night.json")["stages"] == {"model": "unchanged", "rl": "done"}
    (small.folder / "break").touch()  # and the stage fails once, which is retried
    output = small.run("flows.nightly", "--night", "2026-11-23")
    done = [line for line in small.done()[before:] if line != "held"]
    assert done == ["rl", "evaluate 20", "evaluate 10"], output
    night = small.json("data/nights/2026-11-23/night.json")
    assert (
        night["stages"] == {"model": "unchanged", "rl": "done", "evaluate": "done"}
        and night["promoted"]
        and night["seed"] == 20261123
    )
    assert night["decided"]["paired"]["difference"] == 0.25
    assert (small.folder / "data/champion-evaluation/evaluation/champion-none/trajectories").is_dir()
    found = runs(url, "nightly", "rl", "evaluate")
    assert not {"RUNNING", "PENDING"} & {run["state_type"] for run in found}
    assert "night of 2026-11-23: evaluate champion with none" in {run["name"] for run in found}
    killed = [run for run in runs(url, "nightly") if run["parameters"].get("night") == "2026-11-23"]
    assert [run["state_type"] for run in killed] == ["CRASHED", "COMPLETED"]
    assert "is gone" in killed[0]["state"]["message"]
    failed = [run for run in runs(url, "evaluate") if run["state_type"] == "FAILED"]
    assert [("SandboxDied" in run["state"]["message"]) for run in failed] == [True]


def test_a_second_night_is_cancelled_with_the_first_one_s_name_and_nobody_is_woken(
    project: tuple[Project, str],
) -> None:
    small, url = project
    small.set("rl", steps=15)
    hold, before = small.folder / "hold", len(small.done())
    hold.touch()
    first = small.start("flows.nightly", "--night", "2026-10-01")
    try:
        wait(lambda: "held" in small.done()[before:])
        with webhook() as hook:
            output = small.run("flows.nightly", "--night", "2026-10-02", status=1, PROTEGE_WEBHOOK_URL=hook.url)
    finally:
        hold.unlink()
        said, _ = first.communicate(timeout=300)
    assert first.returncode == 0, said
    refused = f"refused: the night of 2026-10-01 still runs (process {first.pid})"
    assert f"nightly: {refused}" in output and "Traceback" not in output
    (run,) = [run for run in runs(url, "nightly") if run["parameters"].get("night") == "2026-10-02"]
    assert (run["state_type"], run["state"]["message"]) == ("CANCELLED", refused)
    assert not hook.messages and not (small.folder / "data/nights/2026-10-02").exists()


def test_a_cancelled_night_and_a_cancelled_stage_end_and_are_cancelled(project: tuple[Project, str]) -> None:
    """Started by hand: no runner of Prefect owns them."""
    small, url = project
    small.set("rl", steps=16)
    hold = small.folder / "hold"
    hold.touch()
    try:
        for command in (["flows.nightly", "--night", "2026-10-03"], ["tests.nightly.small", "evaluate"]):
            before = len(small.done())
            with webhook() as hook:
                started = small.start(*command, PROTEGE_WEBHOOK_URL=hook.url)
                try:
                    wait(lambda n=before: "held" in small.done()[n:])
                    name = "nightly" if command[0] == "flows.nightly" else "evaluate"
                    run = next(r for r in runs(url, name) if r["state_type"] == "RUNNING")
                    state = {"state": {"type": "CANCELLING"}}  # as the button in the UI, and `prefect flow-run cancel`
                    assert ask(f"{url}/flow_runs/{run['id']}/set_state", state)["status"] == "ACCEPT"
                    said, _ = started.communicate(timeout=120)
                finally:
                    started.kill()
            assert started.returncode == 1 and "was cancelled in Prefect" in said.splitlines()[-1], said
            assert ask(f"{url}/flow_runs/{run['id']}")["state_type"] == "CANCELLED"
            assert not of_the_night(small.folder) and not hook.messages
            wanted = {"flow_runs": {"id": {"any_": [run["id"]]}}}
            left = {task["state_type"] for task in ask(f"{url}/task_runs/filter", wanted)}
            assert not left & {"PENDING", "RUNNING"}
    finally:
        hold.unlink()


def test_a_run_to_be_cancelled_whose_process_is_gone_becomes_what_the_server_takes(
    server: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Cancelling, Completed, Running

    from tasks import runs

    @flow
    def stage() -> None: ...

    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        run, over = runs.create_run(stage, {}), runs.create_run(stage, {})
        for one in (run, over):
            client.update_flow_run_labels(one.id, {"protege.pid": 2**22 + 1})
            client.set_flow_run_state(one.id, Running())
        client.set_flow_run_state(run.id, Cancelling())
        stale = [client.read_flow_run(one.id) for one in (run, over)]
        client.set_flow_run_state(over.id, Completed(), force=True)  # after it was listed
        monkeypatch.setattr(runs, "_unfinished", lambda _: stale)
        assert runs.reap() == [f"{run.name} (Cancelled)"]
        assert [client.read_flow_run(one.id).state_name for one in (run, over)] == ["Cancelled", "Completed"]


def test_a_worse_model_is_not_promoted_and_a_night_that_fails_tells_so(project: tuple[Project, str]) -> None:
    small, _ = project
    champion = (small.folder / "data/champion/champion.json").read_text()
    small.set("rl", steps=2)
    output = small.run("flows.nightly", "--night", "2026-11-24")
    assert "the champion stays: Pass@1 -0.450 against the champion" in output
    assert (small.folder / "data/champion/champion.json").read_text() == champion
    small.set("nightly", expert="oracle")
    with webhook() as hook:
        output = small.run("flows.nightly", status=1, PROTEGE_WEBHOOK_URL=hook.url)
    small.set("nightly", expert="none")
    assert "nightly: BadParams: nightly.model 'rl' with nightly.expert 'oracle'" in output
    (message,) = hook.messages
    assert message["outcome"] == "failed" and "BadParams" in message["verdict"]


def test_a_run_that_never_began_is_accounted_for_and_blocks_no_night(project: tuple[Project, str]) -> None:
    """Its starter was killed between taking the run and starting its process: there is no process to know it by."""
    _, url = project
    deployment = ask(f"{url}/deployments/name/nightly/nightly")
    run = ask(f"{url}/deployments/{deployment['id']}/create_flow_run", {"state": {"type": "PENDING"}})
    limit = f"{url}/v2/concurrency_limits/deployment:{deployment['id']}"
    names = ["nightly/nightly", "nightly/no-such-deployment"]
    assert lost(url, names, 600.0) == []
    assert ask(f"{url}/flow_runs/{run['id']}")["state_type"] == "PENDING"
    assert lost(url, names, 0.0) == [run["name"]]
    assert ask(f"{url}/flow_runs/{run['id']}")["state_type"] == "CRASHED"
    assert ask(limit)["active_slots"] == 0


def test_no_task_of_an_interrupted_run_stays_running(server: str, in_tmp: Path) -> None:
    """Prefect's flow says that it crashed when it is interrupted; what its threads were at is left Running."""
    from prefect import flow, task
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Crashed, Running

    from tasks import runs

    @flow
    def stage() -> None: ...

    @task
    def attempt() -> None: ...

    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        run = runs.create_run(stage, {})
        one = client.create_task_run(attempt, flow_run_id=run.id, dynamic_key="0", state=Running())
        client.set_flow_run_state(run.id, Crashed(), force=True)
        runs.reap()
        assert client.read_task_run(one.id).state_type == StateType.RUNNING, "its process lives"
        client.update_flow_run_labels(run.id, {"protege.pid": 2**22 + 1})
        runs.reap()
        assert client.read_task_run(one.id).state_type == StateType.CRASHED


ORPHAN = """
import os, time
from tasks.child import Parent
from tasks.stage import only_run
Parent.of_this_process().end_with()
with only_run("sft"):
    print(os.getpid(), flush=True)
    try:
        time.sleep(60)
    finally:
        time.sleep(2)  # it closes its sandboxes
"""
DVC = (
    "import subprocess, sys, time\nsubprocess.Popen([*sys.argv[2:], sys.executable, '-c', sys.argv[1]])\ntime.sleep(60)"
)


def start_dvc(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "dvc").write_text(DVC)
    return subprocess.Popen(
        [sys.executable, str(folder / "dvc"), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "DVC_STAGE": "sft"},
    )


@pytest.mark.parametrize("shell", [[], ["/bin/sh", "-c", '"$@"; :', "sh"]], ids=["direct", "through a shell"])
def test_a_stage_whose_dvc_was_killed_has_ended_before_the_next_one_starts(in_tmp: Path, shell: list[str]) -> None:
    from protege.errors import BadInput
    from tasks import stage

    parent = start_dvc(in_tmp, ORPHAN, *shell)
    assert parent.stdout is not None
    orphan = identity(int(parent.stdout.readline()))
    try:
        with pytest.raises(BadInput, match=str(orphan["pid"])), stage.only_run("sft", patience_s=0.5):
            pass  # its DVC lives, so it stays
        parent.kill()
        parent.wait()
        with stage.only_run("sft", patience_s=25):
            wait(lambda: gone(orphan), 5)
    finally:
        parent.kill()
        parent.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan["pid"], signal.SIGKILL)


WAITING = """
import os, threading, time
from tasks.child import Parent
threading.Thread(target=time.sleep, args=(60,)).start()  # as an attempt that waits for a model server
Parent.of_this_process().end_with(patience_s=1)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_stage_whose_dvc_was_killed_does_not_wait_for_its_threads(tmp_path: Path) -> None:
    parent = start_dvc(tmp_path, WAITING)
    assert parent.stdout is not None
    stage = int(parent.stdout.readline())
    identity_then = identity(stage)
    try:
        parent.kill()
        parent.wait()
        began = time.monotonic()
        assert parent.stdout.read() == "", "the pipe is closed when nobody holds it any more"
        assert time.monotonic() - began < 50
        wait(lambda: gone(identity_then), 60)
    finally:
        parent.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(stage, signal.SIGKILL)
