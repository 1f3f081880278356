from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UNREAD = """
import logging, sys, time
from pathlib import Path
from prefect.logging.handlers import PrefectConsoleHandler
from tasks.progress import outlive_reader, tell
outlive_reader()
log = logging.getLogger("a flow run")
log.addHandler(PrefectConsoleHandler())
print("ready", flush=True)
while Path("wait").exists():
    time.sleep(0.02)
{first}
log.warning("a line of Prefect's log, by way of rich")
tell("a line of ours")
print("one more", file=sys.stderr)
Path("done").touch()
"""


@pytest.mark.parametrize("first", ["tell('ours')", "log.warning('by way of rich')"], ids=["tell", "rich"])
def test_a_process_whose_output_nobody_reads_any_more_goes_on(in_tmp: Path, first: str) -> None:
    """Its starter (`make serve`, a worker) was killed."""
    (in_tmp / "wait").touch()
    command = [sys.executable, "-c", UNREAD.format(first=first)]
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    (in_tmp / "wait").unlink()
    assert process.wait(60) == 0
    assert (in_tmp / "done").exists()
