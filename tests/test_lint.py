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
    "typos",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_to_complain_of(command: str) -> None:
    program, *arguments = command.split()
    program = str(Path(sys.executable).with_name(program))
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_lint_runs_the_same() -> None:
    assert all(f"\n\t{command}\n" in (ROOT / "Makefile").read_text(encoding="utf-8") for command in COMMANDS)
