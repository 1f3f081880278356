"""A user's repository with what makes patches fail, and a policy that says what it is told to."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from protege.agent.tools import render_call
from protege.cli.solve import SolveParams
from protege.config import SandboxParams
from protege.core.trajectory import Identity, ToolCall
from protege.policy.base import Completion
from tests.sandbox.fixtures import cache

__all__ = ["cache"]

IDENTITY = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
BUBBLEWRAP = SandboxParams(backend="bubblewrap", memory_mb=512, command_timeout_s=20, images_gb=0)


def say(tool: str, **arguments: str) -> str:
    return "A thought.\n" + render_call(ToolCall(name=tool, arguments=arguments))


def bash(command: str) -> str:
    return say("bash", command=command)


SUBMIT = say("submit")


class Parrot:
    """Says the given messages in turn, the last one for ever; an exception among them is raised."""

    def __init__(self, *messages: str | Exception) -> None:
        self.messages = messages
        self.identity = Identity(name="parrot", digest="0", kind="scripted")

    def start(self, instance, seed):
        self.says: Iterator[str | Exception] = itertools.chain(self.messages, itertools.repeat(self.messages[-1]))
        return self

    def step(self, new_messages):
        text = next(self.says)
        if isinstance(text, Exception):
            raise text
        return Completion(text, completion_tokens=3)

    def tokens(self):
        return None


def git(folder: Path, *arguments: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment = {**clean, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout


def fingerprint(root: Path) -> dict[str, tuple[int, int, int, str]]:
    """Mode, time of change in ns, number of links and content of everything below ``root``, ``.git`` included."""
    found = {}
    for path in sorted([root, *root.rglob("*")]):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        raw = content.encode() if isinstance(content, str) else content
        found[str(path)] = (info.st_mode, info.st_mtime_ns, info.st_nlink, hashlib.sha256(raw).hexdigest())
    return found


FILES: dict[str, bytes] = {
    "pkg/__init__.py": b"",
    "pkg/core.py": b"def double(x):\n    return x * 3\n",
    "pkg/crlf.py": b"a = 1\r\nb = 2\r\nc = 3\r\n",
    "pkg/attributes.bat": b"echo 1\r\necho 2\r\n",
    "pkg/no_newline.txt": b"first\nlast",
    "pkg/gone.py": b"unused = 1\n",
    "m\u00fcnchen/stra\u00dfe \u2713.py": "gru\u00df = 'h\u00e9llo'\n".encode(),
    "with space.txt": b"one\n",
    "run.sh": b"#!/bin/sh\necho run\n",
    ".gitattributes": b"*.bat text eol=crlf\n",
    ".gitignore": b"*.log\nbuild/\n",
}


def fill(root: Path) -> Path:
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "run.sh").chmod(0o755)
    return root


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with a commit, changes that are not committed, ignored files, secrets, hooks and odd links."""
    root = fill(tmp_path / "My repo")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, *IDENTITY, "commit", "-qm", "start")
    (root / "pkg" / "core.py").write_text("def double(x):\n    # not committed\n    return x * 3\n")
    (root / "untracked.py").write_text("new = True\n")
    (root / "debug.log").write_text("ignored\n")
    (root / ".env").write_text("TOKEN=the-secret\n")
    hook = root / ".git" / "hooks" / "fsmonitor"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/hook-ran'\n")
    hook.chmod(0o755)
    git(root, "config", "core.fsmonitor", ".git/hooks/fsmonitor")
    git(root, "config", "credential.helper", "store --file=the-credential")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "private.txt").write_text("the-outside\n")
    (root / "link_out").symlink_to(outside / "private.txt")
    (root / "link_in").symlink_to("pkg/core.py")
    return root


@pytest.fixture
def params() -> SolveParams:
    return SolveParams(sandbox=BUBBLEWRAP)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """The current folder is neither the project nor the repository; the user's cache is a fresh one."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    # the checkout that the library runs from would be taken for the project
    monkeypatch.setattr("protege.cli.solve.params.project_folder", lambda: None)
    return folder
