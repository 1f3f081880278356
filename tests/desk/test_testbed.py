from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from protege.desk.testbed import AGENT_UID, content_digest, make_testbed

FILES = {"pkg/core.py": b"x = 1\n", "run.sh": b"#!/bin/sh\n", "a b.txt": "ä".encode()}


def git(repo: Path, *arguments: str) -> str:
    command = ["git", "-c", "safe.directory=*", "-C", str(repo), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        assert {(m.uid, m.gid, m.mtime) for m in tar} == {(AGENT_UID, AGENT_UID, 0)}
        tar.extractall(folder, filter="data")
    return folder / "testbed"


def test_same_files_same_commit_and_same_bytes(tmp_path: Path):
    first = make_testbed(FILES, frozenset({"run.sh"}), tmp_path / "a.tar.gz")
    second = make_testbed(dict(reversed(FILES.items())), frozenset({"run.sh"}), tmp_path / "b.tar.gz")
    assert first == second
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    other = make_testbed({**FILES, "run.sh": b"#!/bin/bash\n"}, frozenset({"run.sh"}), tmp_path / "c.tar.gz")
    assert other[0] != first[0] and other[1] != first[1]


def test_one_commit_and_nothing_else(tmp_path: Path):
    commit, _ = make_testbed(FILES, frozenset({"run.sh"}), tmp_path / "a.tar.gz")
    repo = unpacked(tmp_path / "a.tar.gz", tmp_path)
    assert git(repo, "log", "--all", "--format=%H").split() == [commit]
    assert git(repo, "status", "--porcelain") == ""
    assert git(repo, "fsck", "--lost-found", "--no-progress") == ""
    assert git(repo, "remote") == "" and git(repo, "reflog") == ""
    # commit, two trees, three blobs
    assert git(repo, "count-objects").startswith("6 objects")
    assert git(repo, "ls-files", "-s", "run.sh").startswith("100755")
    assert not any((repo / ".git" / name).exists() for name in ("hooks", "logs", "packed-refs", "COMMIT_EDITMSG"))


def test_the_content_digest_is_of_the_content(tmp_path: Path):
    _, found = make_testbed(FILES, frozenset(), tmp_path / "a.tar.gz")
    assert content_digest((tmp_path / "a.tar.gz").read_bytes()) == found
