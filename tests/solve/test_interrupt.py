"""Ctrl-C in the middle of a command, with a real process: nothing is left behind but the partial patch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from protege.core.trajectory import Trajectory
from tests.helpers import hear_interrupts

PROGRAM = """
    import sys
    from protege.cli.main import app
    from protege.cli.solve import SolveParams, command
    from tests.solve.conftest import BUBBLEWRAP, Parrot, bash

    params = SolveParams(sandbox=BUBBLEWRAP.model_copy(update={"command_timeout_s": 60, "backend": sys.argv[3]}))
    work = Parrot(bash("echo changed >> run.sh"), bash("sleep 41"))
    command.run = lambda options: command.solve(options.repo, "issue", work, params=params, keep=sys.argv[2], report=command.show)
    app(["solve", "--repo", sys.argv[1], "--issue", "-"])
"""


@pytest.mark.parametrize(
    ("number", "backend"),
    [
        (signal.SIGINT, "bubblewrap"),
        (signal.SIGTERM, "bubblewrap"),
        pytest.param(signal.SIGINT, "docker", marks=pytest.mark.docker),
    ],
)
def test_an_interrupt_leaves_nothing_but_the_partial_patch(number, backend, repo, elsewhere, tmp_path, cache):
    temporary = tmp_path / "tmp"
    temporary.mkdir(mode=0o755)
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PROTEGE_CACHE": str(cache),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(repo), str(tmp_path / "kept"), backend],
        cwd=elsewhere,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    try:
        lines = []
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if line.startswith("step"):
                break
        time.sleep(0.5)
        os.killpg(process.pid, number)  # as a terminal does: git, the sandbox and all
        time.sleep(0.1)
        os.killpg(process.pid, number)
        rest = process.stderr.read()
        # the second signal may come when all is done and Python has put its own handlers back
        assert process.wait(60) in (130, -number), rest
    finally:
        process.kill()
        process.wait()
    assert "interrupted" in rest and "Traceback" not in rest, rest
    partial = Path(rest.split("partial patch, as the work stood: ")[1].split("; ")[0])
    assert "+changed" in partial.read_text(encoding="utf-8")
    assert [path.name for path in temporary.rglob("*") if path.name.startswith(("sandbox-", "protege-solve"))] == []
    assert not list(elsewhere.iterdir())
    running = subprocess.run(["pgrep", "-f", "sleep 41"], capture_output=True, text=True).stdout
    assert running == "", running
    if backend == "docker":
        check_docker(process.pid, partial)


def check_docker(pid: int, partial: Path) -> None:
    """Neither a container of process ``pid`` nor the image it worked in is there."""
    from protege.sandbox import images

    client = images.docker_client()
    labels = [item["Labels"] for item in client.api.containers(all=True, filters={"label": "protege=1"})]
    assert not [label for label in labels if label.get("protege.run", "").startswith(f"{pid}.")]
    kept = Trajectory.load(partial.with_name(partial.name.replace(".partial.patch", ".json")))
    assert kept.instance_id.startswith("solve-")
    assert not images.has_image(client, f"protege-solve:{kept.instance_id}")
