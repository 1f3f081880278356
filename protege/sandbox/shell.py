"""What every backend shares: files, diffs and commands in terms of one primitive, "run this argv inside"."""

from __future__ import annotations

import abc
import re
import shlex
from dataclasses import dataclass
from typing import Self

from protege.config import SandboxParams
from protege.errors import SandboxError
from protege.sandbox.base import WORKDIR, ExecResult

MAX_FILE_BYTES = 16 * 1024 * 1024
"""Largest file that ``read`` returns."""
MAX_DIFF_BYTES = 1024 * 1024
"""Largest diff that ``diff`` returns; beyond it a sandbox's work counts as no patch."""
_MAX_COMMAND_BYTES = 120_000  # Linux takes 128 KiB for one argument

PRIVATE = "/.protege"
"""Folder inside the sandbox that the agent can read but not write: a copy of ``.git`` as it was at the start."""

_LEFT_OUT = "__pycache__/ *.pyc *.pyo .pytest_cache/ .hypothesis/ .mypy_cache/ .ruff_cache/ .coverage *.egg-info/ *.orig *.rej .DS_Store"

PREPARE_GIT = rf"""
set -e
mkdir -p {PRIVATE} && rm -rf {PRIVATE}/*
cp -r {WORKDIR}/.git {PRIVATE}/git
cd {PRIVATE}/git
git -c safe.directory='*' --git-dir=. rev-parse --verify 'HEAD^{{commit}}' > {PRIVATE}/commit
rm -rf hooks info index config.worktree worktrees modules
printf '[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n' > config
mkdir info && printf '%s\n' {" ".join(shlex.quote(p) for p in _LEFT_OUT.split())} > info/exclude
: > info/attributes
chmod -R a+rX,go-w {PRIVATE}
"""
"""Run as root (or the host's user) before the agent's first command."""

_DIFF = rf"""
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
export GIT_DIR={PRIVATE}/git GIT_WORK_TREE="$PWD" GIT_INDEX_FILE="$work/index" GIT_OBJECT_DIRECTORY="$work/objects"
export GIT_ALTERNATE_OBJECT_DIRECTORIES={PRIVATE}/git/objects GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null
export GIT_CONFIG_SYSTEM=/dev/null GIT_ATTR_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0 GIT_OPTIONAL_LOCKS=0 LC_ALL=C
mkdir "$work/objects"
commit=$(cat {PRIVATE}/commit)
git() {{ command git -c core.fsmonitor=false -c core.hooksPath=/dev/null -c core.attributesFile=/dev/null -c core.untrackedCache=false \
  -c core.autocrlf=false -c core.safecrlf=false -c core.quotePath=true -c core.symlinks=true -c diff.renames=false -c diff.noprefix=false \
  -c diff.mnemonicPrefix=false -c core.bigFileThreshold=8m -c advice.addEmbeddedRepo=false -c "safe.directory=*" "$@"; }}
git read-tree "$commit"
git add -A --ignore-errors . >/dev/null 2>&1 || true
options="--cached --no-ext-diff --no-textconv --no-color --no-renames --ignore-submodules=all --full-index"
git diff $options --numstat -z "$commit" -- > "$work/stat"
set -- .
while IFS=$'\t' read -r -d '' added deleted path; do
  if [ "$added" = - ]; then set -- "$@" ":(exclude,top,literal)$path"; fi
done < "$work/stat"
git diff $options "$commit" -- "$@"
"""


@dataclass(frozen=True)
class Raw:
    """Bytes and outcome of one run inside. ``stderr`` is empty where the streams were merged by the command."""

    exit_code: int
    stdout: bytes
    stderr: bytes = b""
    timed_out: bool = False
    dropped: int = 0
    seconds: float = 0.0
    out_of_memory: bool = False
    disk_full: bool = False
    crowded: bool = False


class ShellSandbox(abc.ABC):
    """Base of the backends. A backend provides ``_run`` and ``close``."""

    id: str
    backend: str
    workdir: str = WORKDIR
    image_digest: str
    params: SandboxParams
    empty_diff_reason: str = ""
    """Why the last ``diff`` is empty although the tree may have changed ("" where it simply did not)."""

    @abc.abstractmethod
    def _run(
        self,
        argv: list[str],
        *,
        timeout: float,
        limit: int,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        merged: bool = False,
    ) -> Raw:
        """Run ``argv`` in ``workdir`` as the agent's user, keeping at most ``limit`` bytes of output.

        ``merged`` gives both streams one pipe, which keeps their order.

        Returns within a few seconds of ``timeout``, having killed whatever was started.
        Raises SandboxDied, SandboxOutOfMemory or SandboxError.
        """

    @abc.abstractmethod
    def live_for(self, seconds: float) -> None: ...

    @abc.abstractmethod
    def close(self) -> None: ...

    def exec(
        self,
        command: str,
        *,
        timeout: float | None = None,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
    ) -> ExecResult:
        """See :class:`protege.sandbox.base.Sandbox`. A command that no shell could take exits 126 and says why."""
        if "\0" in command:
            return ExecResult(126, "bash: the command holds a NUL character\n")
        size = len(command.encode(errors="surrogateescape"))
        if size > _MAX_COMMAND_BYTES:
            return ExecResult(
                126,
                f"bash: the command is too long ({size} bytes, at most {_MAX_COMMAND_BYTES}); write it to a file first\n",
            )
        raw = self._run(
            ["/bin/bash", "-c", command],
            timeout=timeout or self.params.command_timeout_s,
            limit=self.params.max_output_bytes,
            stdin=stdin,
            env={"PYTHONHASHSEED": "0", **(env or {})},  # sets print in the same order in every sandbox
            merged=True,
        )
        text = (raw.stdout + raw.stderr).decode("utf-8", "replace") + self._notes(raw)
        return ExecResult(
            raw.exit_code,
            text,
            raw.timed_out,
            raw.dropped,
            raw.seconds,
            out_of_memory=raw.out_of_memory,
            disk_full=raw.disk_full,
        )

    def _notes(self, raw: Raw) -> str:
        """What the agent must know of the limits that its command ran into."""
        notes = ""
        if raw.out_of_memory:
            notes += f"\n[sandbox] a process was killed: it used more than the {self.params.memory_mb} MB of memory there are\n"
        if raw.disk_full:
            notes += f"\n[sandbox] the command was killed: more than {self.params.disk_mb} MB are on disk; remove some files\n"
        if raw.crowded:
            notes += "\n[sandbox] all background processes were killed: they left no room for one more\n"
        return notes

    def _script(self, script: str, *args: str, stdin: bytes | None = None, limit: int = 65536) -> Raw:
        raw = self._run(
            ["/bin/bash", "-c", script, "bash", *args], timeout=60.0, limit=limit, stdin=stdin, env={"LC_ALL": "C"}
        )
        if raw.timed_out:
            raise SandboxError(
                f"sandbox {self.id}: a file operation on {args[0] if args else '/'} took longer than 60 s"
            )
        return raw

    def _path(self, path: str) -> str:
        if "\0" in path:
            raise FileNotFoundError(f"{path!r}: a path cannot hold a NUL character")
        return path if path.startswith("/") else f"{self.workdir}/{path}"

    def read(self, path: str) -> bytes:
        """See the protocol. A device, a pipe or a file over 16 MiB is refused with PermissionError."""
        path = self._path(path)
        script = (
            '[ -d "$1" ] && exit 71; [ -e "$1" ] || { p=$1; while :; do p=${p%/*}; [ -e "${p:-/}" ] && break; done; '
            '[ -x "${p:-/}" ] || exit 72; exit 70; }; [ -f "$1" ] || exit 73; [ -r "$1" ] || exit 72; exec cat < "$1"'
        )
        raw = self._script(script, path, limit=MAX_FILE_BYTES)
        _raise_for(raw, path)
        if raw.dropped:
            raise PermissionError(f"{path}: larger than the {MAX_FILE_BYTES} bytes that can be read at once")
        return raw.stdout

    def write(self, path: str, data: bytes) -> None:
        """See the protocol."""
        path = self._path(path)
        script = (
            '[ -d "$1" ] && exit 71; d=$(dirname -- "$1"); mkdir -p -- "$d" 2>/dev/null || exit 72; '
            '[ -e "$1" ] && { [ -f "$1" ] || exit 73; }; { cat > "$1"; } 2>/dev/null || { [ -w "$1" ] && exit 74; exit 72; }'
        )
        raw = self._script(script, path, stdin=data)
        _raise_for(raw, path)

    def diff(self) -> str:
        """See the protocol. Taken with a private copy of ``.git`` made before the agent's first command.

        Left out: binary files, files whose diff is not UTF-8, caches and byte code, nested repositories.
        A diff over 1 MiB is returned as the empty string, with the reason in ``empty_diff_reason``: such a
        patch would be rejected by grading, and it is the agent's doing, not a failure of the sandbox.
        """
        self.empty_diff_reason = ""
        raw = self._run(
            ["/bin/bash", "-c", _DIFF], timeout=120.0, limit=MAX_DIFF_BYTES * 4, env={"HOME": "/nonexistent"}
        )
        if raw.timed_out:
            self.empty_diff_reason = "taking the diff took longer than 120 s"
            return ""
        if raw.exit_code != 0:
            # the sandbox has answered, so it is alive: whatever keeps git from working is the agent's doing
            self.empty_diff_reason = (
                f"git diff exited {raw.exit_code}: {(raw.stderr or raw.stdout)[-500:].decode(errors='replace')}"
            )
            return ""
        if raw.dropped or len(raw.stdout) > MAX_DIFF_BYTES:
            self.empty_diff_reason = f"the diff is larger than {MAX_DIFF_BYTES} bytes"
            return ""
        return _text_parts(raw.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _raise_for(raw: Raw, path: str) -> None:
    if raw.exit_code == 0:
        return
    kinds: dict[int, OSError] = {
        70: FileNotFoundError(f"{path}: no such file"),
        71: IsADirectoryError(f"{path}: is a directory"),
        72: PermissionError(f"{path}: permission denied"),
        73: PermissionError(f"{path}: not a regular file"),
    }
    if raw.exit_code in kinds:
        raise kinds[raw.exit_code]
    raise SandboxError(
        f"{path}: the file operation exited {raw.exit_code}: {raw.stderr[-300:].decode(errors='replace')}"
    )


def _text_parts(diff: bytes) -> str:
    """The files of a diff that are UTF-8 text."""
    parts = re.split(rb"(?m)^(?=diff --git )", diff)
    kept = []
    for part in parts:
        try:
            kept.append(part.decode("utf-8"))
        except UnicodeDecodeError:
            continue
    return "".join(kept)


class Buffer:
    """Keeps the first ``limit`` bytes of what it is fed and counts the rest."""

    def __init__(self, limit: int) -> None:
        self.limit, self.dropped = limit, 0
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        room = self.limit - self._size
        if room > 0:
            self._parts.append(data[:room])
            self._size += min(room, len(data))
        self.dropped += max(0, len(data) - max(room, 0))

    def value(self) -> bytes:
        return b"".join(self._parts)
