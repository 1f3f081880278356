"""Helpers of the attacks: patches as an agent's sandbox would hand them over."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.sandbox.tiny import BUGGY, Tiny

ENV = {
    **os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{role}_{what}": "someone@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}  # fmt: skip


def git(repo: Path, *arguments: str) -> str:
    """What git prints in ``repo``, with no configuration but the repository's own."""
    done = subprocess.run(["git", *arguments], cwd=repo, env=ENV, check=True, capture_output=True)
    return done.stdout.decode(errors="replace").strip()


def diff_of(tiny: Tiny, files: dict[str, str | None]) -> str:
    """``git diff`` of the tiny repository with ``files`` written (None: removed) on top of its commit."""
    with tempfile.TemporaryDirectory() as scratch:
        repo = Path(scratch) / "repo"
        shutil.copytree(tiny.testbeds.parent / "testbed", repo)
        for name, text in files.items():
            path = repo / name
            if text is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        git = ["git", "-c", "core.excludesFile=", "-c", "safe.directory=*"]
        subprocess.run([*git, "add", "-A", "-f"], cwd=repo, check=True, capture_output=True)
        done = subprocess.run(
            [*git, "diff", "--cached", "--no-renames", "--full-index"],
            cwd=repo,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout


def buggy_with(code: str) -> dict[str, str | None]:
    """The faulty module with ``code`` in front: code under test that the tests import."""
    return {"calc.py": f"{code.strip()}\n\n\n{BUGGY}"}
