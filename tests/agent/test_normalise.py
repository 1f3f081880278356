"""The same commands show the same text whenever and wherever they run, and files stay as they are."""

import subprocess
import sys

import pytest

from protege.agent.loop import roll_out
from protege.agent.normalise import normalised
from protege.agent.tools import Toolbox
from protege.config import AgentParams, SandboxParams
from protege.core.loops import only_looks
from protege.core.trajectory import ToolCall
from protege.desk.teacher import ScriptedTeacher
from protege.expert.oracle import OracleExpert
from protege.sandbox.bubblewrap import BubblewrapProvider
from protege.validation import conversation
from tests.helpers import CALC, make_instance, make_testbed
from tests.sandbox.tiny import make_site

VARYING = '''"""What a suite may print that is not the same twice."""
import os
import tempfile
import time
import unittest
from pathlib import Path
from unittest.mock import Mock

_kept = []


class Item:
    pass


def wait():
    time.sleep(os.urandom(1)[0] / 400)
    _kept.append(bytearray(int.from_bytes(os.urandom(2), "big")))


class OpenTest(unittest.TestCase):
    def test_address(self):
        wait()
        assert Item() is Mock(name="x"), f"{Item()}"

    def test_temporary(self):
        wait()
        (Path(tempfile.mkdtemp()) / "missing").read_text()

    def test_order(self):
        assert {"one", "two", "three", "four", "five"} == 1


def test_folder(tmp_path):
    wait()
    assert not tmp_path
'''


@pytest.mark.parametrize(
    "command", ["pytest", "pytest -q --tb=short", "pytest -v -k address --durations=1", "unittest test_varying"]
)
def test_two_runs_of_a_suite_show_the_same(tmp_path, command):
    (tmp_path / "test_varying.py").write_text(VARYING, encoding="utf-8")

    def run():
        done = subprocess.run(
            [sys.executable, "-m", *command.split(), *(["-p", "no:cacheprovider"] if "pytest" in command else [])],
            cwd=tmp_path,
            env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    raw = [run(), run()]
    assert raw[0] != raw[1]
    shown = [normalised(text) for text in raw]
    assert shown[0] == shown[1] and "[time]" in shown[0] and "0x[address]" in shown[0]
    if "-k" not in command:
        assert "/tmp/tmp[name]/missing" in shown[0]
    if command.startswith("pytest") and "-k" not in command:
        assert "/pytest-[n]/test_folder0" in shown[0]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("====== 1 failed, 2 passed in 65.32s (0:01:05) ======", " 1 failed, 2 passed in [time] ".center(80, "=")),
        ("1/5 tests collected (4 deselected) in 0.02s", "1/5 tests collected (4 deselected) in [time]"),
        ("no tests ran in 0.00s", "no tests ran in [time]"),
        ("3 passed in 0.12 seconds", "3 passed in [time]"),
        ("1.08s call     tests/test_x.py::test_y", "[time] call     tests/test_x.py::test_y"),
        ("\nreal\t0m1.234s\nuser\t0m0.9s", "\nreal\t[time]\nuser\t[time]"),
        ("real 0.01", "real [time]"),
        (
            "Test took 312.15ms, which exceeds the deadline of 200.00ms",
            "Test took [time], which exceeds the deadline of 200.00ms",
        ),
        (
            "Current thread 0x00007f3a5c0b2d90 (most recent call first):",
            "Current thread 0x[address] (most recent call first):",
        ),
        (
            "/bin/bash: line 1:    17 Segmentation fault      python x",
            "/bin/bash: line 1:    [pid] Segmentation fault      python x",
        ),
        ("This process (pid=17) is multi-threaded", "This process (pid=[pid]) is multi-threaded"),
        ("none /tmp/protege-0/sandbox-k3v9x_1a/testbed", "none /tmp/protege-[user]/sandbox-[name]/testbed"),
    ],
)
def test_what_is_replaced(said, shown):
    assert normalised(said) == shown
    assert normalised(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "the request failed in 0.25s",
        "it took 1.5 seconds",
        "retry in 0.5s",
        "0xdeadbeef and at 0xff",
        "timeout = 1.08s  # call",
        "12 passed",
        "/tmp/tmp.Xk3v9A1b2C",
        "/testbed/tmp/tmpk3v_9x1a/x",
        "bash: line 1: foo: command not found",
        "real 12",
    ],
)
def test_what_is_not(text):
    assert normalised(text) == text


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beds")
    testbeds = make_testbed(
        folder / "testbeds", make_instance().instance_id, {**CALC, "tests/test_varying.py": VARYING}
    )
    return BubblewrapProvider(SandboxParams(), testbeds, make_site(folder / "site"))


def test_files_are_shown_as_they_are(provider):
    log = "=== 3 passed in 1.08s ===\n<A object at 0x7f3a5c0b2d90> /tmp/tmpk3v_9x1a/x\n"
    with provider.open(make_instance()) as sandbox:
        sandbox.write("/testbed/log.txt", log.encode())
        tools = Toolbox(sandbox, 30)

        def shown(name, **arguments):
            return tools.run(ToolCall(name=name, arguments=arguments), 60).observation

        for command in (
            "cat log.txt",
            "cd /testbed && head -n 9 log.txt | sort -r",
            "git diff --no-index /dev/null log.txt",
        ):
            assert only_looks(command)
            text = shown("bash", command=command)
            assert all(line in text for line in log.splitlines()), command
        viewed = shown("str_replace_editor", command="view", path="/testbed/log.txt")
        assert all(line in viewed for line in log.splitlines())
        assert "1.08" not in shown("bash", command="python -c 'print(open(\"log.txt\").read())'")


def test_a_temporary_folder_that_the_agent_made_stays_usable(provider):
    with provider.open(make_instance()) as sandbox:
        tools = Toolbox(sandbox, 30)

        def shown(command):
            return tools.run(ToolCall(name="bash", arguments={"command": command}), 60).observation

        folder = shown("mktemp -d")
        assert shown(f"echo 1 > {folder}/x; wc -c {folder}/x") == f"2 {folder}/x"
        assert folder in shown(f"cd {folder}; python missing.py")
        assert folder in shown("for f in /tmp/tmp.*; do python $f/missing.py; done")


EXAMPLE = """difference() adds

```python
import tempfile
print(object(), {"one", "two", "three", "four"})
open(tempfile.mkdtemp() + "/missing")
```
I expected 2."""


@pytest.mark.parametrize("seed", range(4))
def test_two_rollouts_of_the_teacher_are_equal(provider, seed):
    """Other durations, addresses and folders, in two sandboxes: what is said and shown is the same to the letter."""
    first, second = (
        roll_out(
            make_instance(problem_statement=EXAMPLE),
            ScriptedTeacher(),
            OracleExpert(),
            provider,
            AgentParams(step_limit=25, observation_chars=20_000),
            seed,
            trajectory_id="t",
        )
        for _ in range(2)
    )
    assert conversation(first) == conversation(second) and first.patch == second.patch
    assert [call.query for call in first.expert_calls] == [call.query for call in second.expert_calls]
    text = "\n".join(message["content"] for message in conversation(first))
    assert "4 failed, 1 passed in [time]. I submit." in text
    if first.expert_calls:
        assert "<object object at 0x[address]>" in text and "'/tmp/tmp[name]/missing'." in text
