"""Builders shared by the tests: a small instance and trajectories made turn by turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from protege.config import machine_keys, sections
from protege.core.instance import Instance
from protege.core.trajectory import ExpertCall, Identity, Message, ToolCall, Trajectory, Turn, Verdict

GOLD = """\
--- a/calc/core.py
+++ b/calc/core.py
@@ -1,5 +1,5 @@
 def difference(first, second):
     \"\"\"What is left of first when second is taken away.\"\"\"
-    result = first + second
+    result = first - second
     return result
"""


def by(patience_s: float, true: Callable[[], object]) -> bool:
    """Does it become true within ``patience_s``?"""
    deadline = time.monotonic() + patience_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(true())


def hear_interrupts() -> None:
    """``preexec_fn`` of a process that is sent SIGINT: a shell's background job passes on that it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_server(folder: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """``python -m tasks.server start`` in ``folder``, as a user of this checkout would run it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "PROTEGE_SERVER"))}
    return subprocess.run(
        [sys.executable, "-m", "tasks.server", "start"],
        cwd=folder,
        env={**env, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def write_settings(folder: Path, raw: dict[str, Any]) -> None:
    """``raw``, by section, as params.yaml and machine.yaml of ``folder``: each key in the file that it belongs to."""
    known = sections()
    what, how = {}, {}
    for name, values in raw.items():
        keys = machine_keys(known[name]) if name in known else set()
        if not isinstance(values, dict):
            what[name] = values
            continue
        mine = {key: value for key, value in values.items() if key in keys}
        if mine:
            how[name] = mine
        rest = {key: value for key, value in values.items() if key not in keys}
        if rest or not mine:
            what[name] = rest
    (folder / "params.yaml").write_text(yaml.safe_dump(what, sort_keys=False), encoding="utf-8")
    (folder / "machine.yaml").write_text(yaml.safe_dump(how, sort_keys=False), encoding="utf-8")


def read_settings(folder: Path) -> dict[str, Any]:
    """What :func:`write_settings` wrote; machine.yaml may be absent."""
    files = (folder / "params.yaml", folder / "machine.yaml")
    what, how = (yaml.safe_load(f.read_text(encoding="utf-8")) or {} if f.is_file() else {} for f in files)
    return {name: {**what.get(name, {}), **how[name]} if name in how else what[name] for name in {**what, **how}}


def make_instance(**changes: Any) -> Instance:
    row = {
        "instance_id": "calc__calc-1.0.func_pm_op_change__0001",
        "repo": "calc/calc",
        "base_commit": "0" * 40,
        "problem_statement": "difference() adds\n\n```python\n>>> from calc.core import difference\n>>> difference(5, 3)\n8\n```\nI expected 2.",
        "patch": GOLD,
        "test_patch": "--- a/tests/test_core.py\n+++ b/tests/test_core.py\n@@ -1 +1,3 @@\n import calc\n+def test_secret():\n+    assert 1\n",
        "FAIL_TO_PASS": ["tests/test_core.py::test_secret"],
        "PASS_TO_PASS": ["tests/test_core.py::test_open"],
        "image": "protege-desk-calc:1",
        "eval_script": "#!/bin/bash\n",
        "log_parser": "parse_log_pytest",
        "entity": "difference",
    }
    return Instance.from_row(row | changes)


def make_turn(
    index: int, tool: str | None, *, observation: str = "ok", message: str = "thought", **arguments: str
) -> Turn:
    call = ToolCall(name=tool, arguments=arguments) if tool else None
    return Turn(
        index=index,
        message=message,
        call=call,
        observation=observation,
        malformed=call is None,
        exit_code=0 if tool == "bash" else None,
        completion_tokens=10,
    )


def make_trajectory(turns: list[Turn], calls: list[ExpertCall] | None = None, **changes: Any) -> Trajectory:
    values: dict[str, Any] = {
        "trajectory_id": "t0",
        "instance_id": "calc__calc-1.0.func_pm_op_change__0001",
        "instance_digest": "d",
        "repo": "calc/calc",
        "policy": Identity(name="p", digest="d", kind="scripted"),
        "expert": None,
        "seed": 0,
        "messages": [Message(role="system", content="s"), Message(role="user", content="difference() adds")],
        "turns": turns,
        "expert_calls": calls or [],
        "exit_status": "submitted",
        "patch": GOLD,
    }
    return Trajectory(**(values | changes))


def make_verdict(resolved: bool) -> Verdict:
    return Verdict(
        instance_id="calc__calc-1.0.func_pm_op_change__0001",
        instance_digest="d",
        patch_digest="p",
        resolved=resolved,
        applied=True,
    )


CALC = {
    "calc/__init__.py": "",
    "calc/core.py": 'def difference(first, second):\n    """What is left of first when second is taken away."""\n'
    "    result = first + second\n    return result\n",
    "tests/test_open.py": "from calc.core import difference\n\n\ndef test_open():\n    assert difference(2, 0) == 2\n",
}


def make_testbed(folder: Path, instance_id: str, files: dict[str, str] | None = None) -> Path:
    """``folder/<instance_id>.tar.gz`` with a one-commit git repository as ``testbed/``; returns ``folder``."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "testbed"
        for name, text in (files or CALC).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "state"]):
            subprocess.run(["git", *command], cwd=root, check=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / f"{instance_id}.tar.gz", "w:gz") as tar:
            tar.add(root, arcname="testbed")
    return folder
