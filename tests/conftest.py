"""What tests share. Each test that touches the project's files works in a folder of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from protege.core.instance import Instance

# The same examples in every CI run; a developer's own runs go on searching. No deadline: the machine may be busy.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# Threads that wait for each other must not take the cores from the tests beside them (protege/train/cpu/speed.py).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("KMP_BLOCKTIME", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.schedule import Groups

    return Groups(config, log)


PATCH = """diff --git a/pkg/core.py b/pkg/core.py
--- a/pkg/core.py
+++ b/pkg/core.py
@@ -1,3 +1,3 @@
 def double(value):
     # twice as much
-    return value * 3
+    return value * 2
"""


@pytest.fixture
def make_instance():
    """A small, complete row; keyword arguments replace fields."""

    def make(instance_id: str = "pkg__core-1", **changes: object) -> Instance:
        row: dict[str, object] = {
            "instance_id": instance_id,
            "repo": "someone/pkg",
            "base_commit": "0" * 40,
            "problem_statement": "double(2) gives 6, expected 4",
            "patch": PATCH,
            "test_patch": "",
            "FAIL_TO_PASS": json.dumps(["tests/test_core.py::test_double"]),
            "PASS_TO_PASS": ["tests/test_core.py::test_other"],
            "version": "1.0",
            "image": "protege/pkg:1",
            "eval_script": "true",
            "log_parser": "pytest",
            "eval_type": "pass_and_fail",
        }
        return Instance.from_row({**row, **changes})

    return make


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
