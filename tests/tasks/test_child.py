"""A stage as a child: its error arrives as what it is, and it does not outlive whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.child import StageFailed, run_child
from tasks.lineage import gone, identity

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def failed(code: str) -> tuple[StageFailed, list[str]]:
    lines: list[str] = []
    with pytest.raises(StageFailed) as caught:
        run_child("rl", [sys.executable, "-c", code], ENV, lines.append)
    return caught.value, lines


def test_an_error_arrives_as_what_it_is() -> None:
    """What it prints decides nothing."""
    error, lines = failed(
        "import sys\nfrom protege.errors import ModelServerError\nfrom tasks.child import Parent\n"
        "Parent.of_this_process().send(ModelServerError('no answer'))\nprint('rl: BadInput: not this')\nsys.exit(3)"
    )
    assert (error.kind, error.boundary, error.retryable) == ("ModelServerError", "model_server", True)
    assert str(error) == "stage rl: ModelServerError: no answer"
    assert lines == ["rl: BadInput: not this"] and error.log_tail == "rl: BadInput: not this\n"


def test_an_error_of_any_length_arrives() -> None:
    error, _ = failed(
        "import sys\nfrom protege.errors import BadInput\nfrom tasks.child import Parent\n"
        "Parent.of_this_process().send(BadInput('ü' * 1_000_000 + ' the end'))\nsys.exit(1)"
    )
    assert error.kind == "BadInput" and not error.retryable and str(error).endswith(" the end")


def test_a_death_without_a_word_may_pass_and_a_defect_does_not() -> None:
    killed, _ = failed("import os, signal\nprint('at work')\nos.kill(os.getpid(), signal.SIGKILL)")
    assert str(killed) == "stage rl was killed by SIGKILL: at work" and killed.retryable
    defect, _ = failed("1 / 0")
    assert "ended with status 1: ZeroDivisionError" in str(defect) and not defect.retryable
    with pytest.raises(StageFailed, match="cannot run 'no-such-program'") as caught:
        run_child("rl", ["no-such-program"], ENV, print)
    assert not caught.value.retryable


CHILD = """
import os, sys, time
from tasks.child import Parent
Parent.of_this_process().end_with()
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
finally:
    time.sleep(1)
    open(sys.argv[1], "a").write("closed")
"""
PARENT = """
import os, sys
from tasks.child import run_child
run_child("rl", [sys.executable, "-c", sys.argv[1], sys.argv[2]], dict(os.environ), lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_child_ends_with_its_parent_and_closes_what_it_holds(tmp_path: Path, sent: signal.Signals) -> None:
    """Ctrl-C goes to a terminal's whole process group: a second interrupt would break off the clean-up."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, str(tmp_path / "closed")],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    assert parent.stdout is not None
    child = identity(int(parent.stdout.readline()))
    try:
        os.killpg(parent.pid, sent) if sent is signal.SIGINT else parent.send_signal(sent)
        deadline = time.monotonic() + 20
        while not gone(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert gone(child) and (tmp_path / "closed").read_text() == "closed"
        parent.wait(10)
    finally:
        parent.kill()
        parent.stdout.close()
        if not gone(child):
            os.kill(child["pid"], signal.SIGKILL)
