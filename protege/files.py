"""Atomic writes, content hashes, and a content-addressed store of JSON results.

Everything that is written for a later reader goes through ``write_atomic``: a reader sees the old
file or the new one, never half of one, whatever instant the writer is killed at.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protege.errors import StorageError

_MEND = {
    errno.ENOSPC: "the disk is full; free some (`df -h`, `dvc gc --workspace`)",
    errno.EDQUOT: "the disk quota is used up; free some (`quota`, `dvc gc --workspace`)",
    errno.EROFS: "the file system is read-only; make it writable, or work in another folder",
    errno.EACCES: "this user may not write there; change the owner or the mode",
    errno.EPERM: "this user may not write there; change the owner or the mode",
    errno.ENOTDIR: "a file stands where a folder belongs; move it away",
    errno.EEXIST: "a file stands where a folder belongs; move it away",
    errno.EIO: "the disk answers with an error; see `dmesg`",
}


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """What goes wrong with the disk while ``path`` is written leaves as StorageError, with what to do about it."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in _MEND:
            raise
        found = StorageError(
            f"{path} cannot be written: {_MEND[error.errno]}. Finished work is kept: run the same command again"
        )
        found.errno = error.errno
        raise found from error


def write_atomic(path: Path | str, data: bytes | str) -> Path:
    """Write ``data`` to ``path`` through a temporary file in the same folder and a rename.

    Raises:
        StorageError: the disk is full or cannot be written; an older file at ``path`` is as it was.
    """
    path = Path(path)
    with storage_errors(path):
        return _write(path, data.encode() if isinstance(data, str) else data)


def _write(path: Path, raw: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(fd, "wb") as handle:
            handle.write(raw)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException:
        Path(tmp).unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path | str, value: Any) -> Path:
    """Write ``value`` as readable JSON, atomically."""
    return write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: Path | str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``parts``; equal content gives an equal digest.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    >>> digest("ab", "c") == digest("a", "bc")
    False
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_tree(root: Path | str, patterns: tuple[str, ...] = ("**/*",)) -> str:
    """SHA-256 over the relative names and bytes of the files under ``root`` that match ``patterns``."""
    root = Path(root)
    files = sorted({p for pattern in patterns for p in root.glob(pattern) if p.is_file()})
    sha = hashlib.sha256()
    for path in files:
        sha.update(str(path.relative_to(root)).encode() + b"\0")
        with path.open("rb") as handle:
            while chunk := handle.read(1 << 20):
                sha.update(chunk)
        sha.update(b"\0")
    return sha.hexdigest()


class Store:
    """Finished units of work by the digest of what decided them: ``<root>/<kind>/<ab>/<key>.json``.

    Survives SIGKILL (atomic writes) and is safe under concurrent writers (same key, same content).
    A file that does not parse is treated as absent, so that a damaged disk costs a recomputation only.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / f"{key}.json"

    def get(self, kind: str, key: str) -> Any | None:
        try:
            return json.loads(self.path(kind, key).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def put(self, kind: str, key: str, value: Any) -> Path:
        return write_json(self.path(kind, key), value)
