"""The agent's /testbed: a git repository with one commit, packed as a deterministic tar.

Same files give the same commit, the same tar and so the same image tag on every machine: author, dates and modes
are fixed, git's own configuration is switched off, and the index carries no stat data.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from protege.errors import SandboxError
from protege.files import write_atomic

AGENT_UID = 1000
TOP = "testbed"

_GIT_ENV = {
    "GIT_AUTHOR_NAME": "desk",
    "GIT_AUTHOR_EMAIL": "desk@localhost",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00+0000",
    "GIT_COMMITTER_NAME": "desk",
    "GIT_COMMITTER_EMAIL": "desk@localhost",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00+0000",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C.UTF-8",
}
_CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = false\n[gc]\n\tauto = 0\n"


def git(repo: Path, *arguments: str, stdin: bytes | None = None) -> str:
    """Run git in ``repo`` with no configuration but the repository's own. Raises SandboxError when it fails."""
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(repo), **_GIT_ENV}
    done = subprocess.run(["git", *arguments], cwd=repo, env=env, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise SandboxError(
            f"git {' '.join(arguments)} in {repo}: exit {done.returncode}: {done.stderr.decode()[-400:]}"
        )
    return done.stdout.decode("utf-8", "surrogateescape")


def commit_tree(root: Path) -> str:
    """Make ``root`` a repository whose only commit holds every file in it; returns the commit's sha.

    Plumbing only: no reflog, no COMMIT_EDITMSG, no hooks, no sample files, and nothing in the object store but
    the commit's own trees and blobs.
    """
    git(root, "init", "-q", "--template=", "--initial-branch=main", "--object-format=sha1")
    (root / ".git" / "config").write_text(_CONFIG)
    git(root, "-c", "core.autocrlf=false", "add", "--all", "--force", ".")
    tree = git(root, "write-tree").strip()
    commit = git(root, "commit-tree", tree, "-m", "Initial commit").strip()
    git(root, "update-ref", "refs/heads/main", commit)
    (root / ".git" / "index").unlink()
    git(root, "read-tree", "HEAD")  # an index without stat data: the first `git status` fills it in
    return commit


def pack(root: Path) -> bytes:
    """Gzipped tar of ``root`` as ``testbed/``: sorted, owned by the agent, all times zero."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(_entry(TOP, 0o755, directory=True))
        for path in sorted(root.rglob("*")):
            name = f"{TOP}/{path.relative_to(root).as_posix()}"
            if path.is_symlink():
                raise SandboxError(f"{path}: a testbed holds regular files only, this is a link")
            if path.is_dir():
                archive.addfile(_entry(name, 0o755, directory=True))
                continue
            data = path.read_bytes()
            info = _entry(name, 0o755 if path.stat().st_mode & 0o100 else 0o644)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)


def _entry(name: str, mode: int, directory: bool = False) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    info.mode, info.uid, info.gid, info.mtime = mode, AGENT_UID, AGENT_UID, 0
    return info


def make_testbed(files: dict[str, bytes], executables: frozenset[str], target: Path) -> tuple[str, str]:
    """Write ``target`` (<instance_id>.tar.gz) with a repository of ``files``; returns (base_commit, digest).

    The digest is that of :func:`content_digest` and so the same on every machine.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / TOP
        for name, data in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o755 if name in executables else 0o644)
        commit = commit_tree(root)
        packed = pack(root)
    write_atomic(target, packed)
    return commit, content_digest(packed)


def members(packed: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Every entry of a packed testbed with its bytes (empty for folders)."""
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        for info in archive:
            handle = archive.extractfile(info) if info.isfile() else None
            yield info, handle.read() if handle else b""


def content_digest(packed: bytes) -> str:
    """SHA-256 over names, modes and contents; loose objects by name only, since zlib versions may differ."""
    sha = hashlib.sha256()
    for info, data in members(packed):
        loose = f"{TOP}/.git/objects/" in info.name
        sha.update(f"{info.name}\0{info.mode:o}\0".encode() + (b"" if loose else hashlib.sha256(data).digest()))
    return sha.hexdigest()
