"""What `make lint` runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = [
    "mypy protege tasks flows infra",
    "ruff check .",
    "ruff format --check .",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_to_complain_of(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_lint_runs_the_same() -> None:
    assert all(f"\n\t{command}\n" in (ROOT / "Makefile").read_text(encoding="utf-8") for command in COMMANDS)
