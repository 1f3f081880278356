"""The kill laboratories: SIGKILL at random instants of an evaluation, and in every stage of a night."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.kills import experiment

pytestmark = [pytest.mark.docker, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


def test_kills_of_an_evaluation(tmp_path: Path) -> None:
    found, same = experiment(tmp_path / "kills", kills=8, seed=2, count=16)
    assert [item.line(number) for number, item in enumerate(found, 1) if not item.ok] == []
    assert sum(item.more for item in found) > 0 and any(item.containers for item in found)
    assert same


@pytest.mark.parametrize("laboratory", ["nightkills", "nights"])
def test_nights(laboratory: str, tmp_path: Path) -> None:
    """Every process of a night killed in every stage; three nights, each with an outage."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.chaos.{laboratory}", str(tmp_path / "lab")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
