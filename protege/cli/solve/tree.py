"""What of a user's folder goes into the sandbox: a list of files, and an archive of their copies.

The folder is only read. Git is asked which files there are (tracked, and untracked but not ignored) with the
repository's hooks and file monitor switched off and without taking a lock; nothing of ``.git`` is copied.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from protege.desk.testbed import commit_tree
from protege.errors import BadInput
from protege.sandbox.rootfs import AGENT_UID

_MB = 1024 * 1024
_MTIME = 1_767_225_600  # 2026-01-01: archivers and build tools refuse the year 1970
_NO_HOOKS = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*")

JUNK = "__pycache__/ *.pyc .venv/ venv/ .tox/ .nox/ node_modules/ .mypy_cache/ .ruff_cache/ .pytest_cache/ .DS_Store".split()
SECRETS = ".env .env.* .netrc .pypirc .npmrc .aws/ .ssh/ *.pem *.key *.p12 id_rsa* id_ed25519*".split()
"""Untracked files that are never copied: what the agent reads, an expert behind an API may be sent."""


@dataclass(frozen=True)
class Tree:
    """The files of ``root`` that are copied, by POSIX path in order, and a phrase for each thing that is not.

    ``top`` is the top of the Git repository that ``root`` lies in, None for a plain folder.
    """

    root: Path
    top: Path | None
    files: tuple[str, ...]
    size: int
    left_out: tuple[str, ...] = ()

    @property
    def apply_at(self) -> tuple[str, ...]:
        """What goes between ``git`` and the patch's name to apply it: ``-C TOP apply [--directory=SUB]``."""
        if self.top is None or self.top == self.root:
            return ("-C", str(self.root), "apply")
        return ("-C", str(self.top), "apply", f"--directory={self.root.relative_to(self.top).as_posix()}")


def list_tree(repo: Path | str, max_mb: float = 200.0, max_files: int = 20_000) -> Tree:
    """What there is in ``repo``: a Git repository, a folder in one, or a plain folder.

    Links are kept as links and never followed. Left out: submodules and nested repositories, files behind a link to
    elsewhere, sockets and devices, names that are not UTF-8, and untracked files of :data:`JUNK` and :data:`SECRETS`.

    Raises:
        BadInput: no folder, a bare repository, nothing to copy, or more than ``max_mb`` MiB or ``max_files`` files.
    """
    root = Path(repo).expanduser()
    if not root.exists():
        raise BadInput(f"--repo {repo} does not exist; give the folder of the repository")
    if not root.is_dir():
        raise BadInput(f"--repo {repo} is a file; give the folder of the repository")
    root = root.resolve()
    top = _top(root)
    names = _names(root, in_git=top is not None)
    files: list[str] = []
    left_out: list[str] = []
    sizes: Counter[str] = Counter()
    safe: dict[PurePosixPath, bool] = {}
    for raw in names:
        name = os.fsdecode(raw)
        reason, size = _look(root, name, safe)
        if top is None and PurePosixPath(name).name == ".gitattributes":
            reason = "outside a repository git apply does not heed it, so the patch must not either"
        if reason:
            left_out.append(f"{name.encode(errors='replace').decode()}: {reason}")
        elif size is not None:
            files.append(name)
            sizes[name.split("/", 1)[0]] += size
    if not files:
        hint = "; git ignores every file in it" if any(root.iterdir()) else "; the folder is empty"
        raise BadInput(f"--repo {root} holds no file to work on{hint}")
    total = sum(sizes.values())
    if total > max_mb * _MB or len(files) > max_files:
        largest = ", ".join(
            f"{name} ({size / _MB:.1f} MiB)" for name, size in sizes.most_common(4) if size >= total / 100
        )
        raise BadInput(
            f"--repo {root} is too large: {len(files)} files, {total / _MB:.1f} MiB (at most {max_files} and {max_mb:g} MiB); "
            f"the largest parts are {largest}. Add what is generated to .gitignore, give a folder below, or raise --max-mb"
        )
    return Tree(root, top, tuple(files), total, tuple(left_out))


def _look(root: Path, name: str, safe: dict[PurePosixPath, bool]) -> tuple[str, int | None]:
    """(why it is left out, its size); ("", None) where there is nothing on disk."""
    path = PurePosixPath(name)
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8", None
    if name.endswith("/"):
        return "a repository of its own", None
    if ".git" in path.parts:
        return "belongs to git", None
    for parent in path.parents[:-1]:
        if parent not in safe:
            safe[parent] = not (root / parent).is_symlink()
        if not safe[parent]:
            return f"lies behind the link {parent}", None
    try:
        info = os.lstat(root / path)
    except (FileNotFoundError, NotADirectoryError):
        return "", None  # tracked, and deleted in the work tree
    if stat.S_ISLNK(info.st_mode):
        return "", info.st_size
    if stat.S_ISDIR(info.st_mode):
        return "a submodule", None
    if not stat.S_ISREG(info.st_mode):
        return "no regular file", None
    return ("", info.st_size) if os.access(root / path, os.R_OK) else ("it cannot be read", None)


def git_environment() -> dict[str, str]:
    """For git commands that only read: no variable of a surrounding git command, no lock, no prompt."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return {**kept, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def run_git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Git in ``root``, without its hooks. Raises BadInput where there is no git."""
    try:
        return subprocess.run(
            ["git", *_NO_HOOKS, *arguments], cwd=root, env=git_environment(), capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise BadInput("git is not installed here; apt-get install git") from error
    except PermissionError as error:
        raise BadInput(f"--repo {root} cannot be entered: {error}") from error


def _top(root: Path) -> Path | None:
    asked = run_git(root, "rev-parse", "--is-bare-repository", "--is-inside-git-dir")
    if asked.returncode != 0:
        return None
    if b"true" in asked.stdout.split():
        raise BadInput(f"--repo {root} is a repository without a work tree; clone it and give the clone")
    done = run_git(root, "rev-parse", "--show-toplevel")
    return Path(os.fsdecode(done.stdout.removesuffix(b"\n"))).resolve() if done.returncode == 0 else None


def _names(root: Path, in_git: bool) -> list[bytes]:
    listing = ["ls-files", "-z", "--others", "--exclude-standard", *(f"--exclude={p}" for p in (*JUNK, *SECRETS))]
    done = run_git(root, *listing, "--cached") if in_git else run_git_apart(root, *listing)
    if done.returncode != 0:
        raise BadInput(f"git could not list the files of {root}: {done.stderr.decode(errors='replace')[-300:].strip()}")
    return sorted(set(done.stdout.split(b"\0")) - {b""})


def run_git_apart(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Git with ``root`` as the work tree of an empty repository, so that no configuration of its own counts."""
    with tempfile.TemporaryDirectory(prefix="protege-solve-") as empty:
        run_git(Path(empty), "init", "-q", "--bare", "--template=", empty)
        return run_git(root, f"--git-dir={empty}", f"--work-tree={root}", *arguments)


def write_archive(tree: Tree, target: Path, prefix: str = "testbed") -> str:
    """Write ``target``, a tar with copies of the files as ``<prefix>/`` and one commit of them; returns its id.

    Raises:
        BadInput: a file vanished or cannot be read.
        SandboxError: git cannot hold the files.
    """
    with tempfile.TemporaryDirectory(prefix="protege-solve-") as scratch:
        copy = Path(scratch) / prefix
        copy.mkdir()
        for name in tree.files:
            _copy(tree.root / name, copy / name)
        commit = commit_tree(copy)
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.add(copy, prefix, filter=agents)
    return commit


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
            return
        with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as reader:
            info = os.fstat(reader.fileno())
            with target.open("wb") as writer:
                shutil.copyfileobj(reader, writer)
        target.chmod(0o755 if info.st_mode & 0o100 else 0o644)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BadInput(f"{source} could not be read: {error}; did it change meanwhile?") from error


def agents(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """An archive's entry as the agent's, with nothing of this machine in it."""
    info.uid = info.gid = AGENT_UID
    info.uname = info.gname = ""
    info.mtime = _MTIME
    info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
    return info
