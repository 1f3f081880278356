"""A small Linux root made from the host's own Python and Debian files, where no image registry can be reached.

Both backends stand on it: Docker imports it as the base image, bubblewrap unpacks it and shows it
to commands as ``/``. Nothing of the host's site-packages is in it, so no installed copy of a package can
give an answer away.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import marshal
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protege.errors import SandboxUnavailable

AGENT_UID = 1000
"""Numeric id of the unprivileged user ``agent`` in the root."""
HOME = "/home/agent"
"""That user's home."""

_RECIPE = 3  # raise it when the layout below changes: it is part of the digest

_NEEDED = (
    "bash sh env ls cat cp mv rm mkdir rmdir ln chmod chown touch head tail wc sort uniq cut tr tee seq sleep date echo printf "
    "true false test pwd basename dirname readlink realpath stat du df id whoami uname nproc nohup printenv mktemp dd od comm paste join "
    "split tac nl fold expand md5sum sha1sum sha256sum base64 timeout nice yes sync truncate shuf xargs find grep egrep fgrep "
    "sed awk mawk diff cmp patch git tar gzip gunzip zcat ps kill setsid setpriv hostname"
).split()
_WANTED = "gawk less which file pgrep pkill free uptime tree xz bzip2 nohup numfmt tty stty arch b2sum cksum csplit dircolors factor fmt hostid link logname nproc pathchk pinky pr printenv ptx sha224sum sha384sum sha512sum stdbuf sum tsort unexpand unlink users who expr factor install mkfifo dir vdir dash diff3 sdiff".split()
_HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_STDLIB_SKIP = {
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "turtledemo",
    "tkinter",
    "ensurepip",
    "site-packages",
}
_STDLIB_SKIP |= {"dist-packages"}

_TEXT_FILES = {
    "etc/passwd": f"root:x:0:0:root:/root:/bin/bash\nagent:x:{AGENT_UID}:{AGENT_UID}:agent:{HOME}:/bin/bash\n",
    "etc/group": f"root:x:0:\nagent:x:{AGENT_UID}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/hostname": "sandbox\n",
    "etc/resolv.conf": "",
    # safe.directory: the harness runs git as root in a tree that the agent owns
    "etc/gitconfig": "[user]\n\tname = agent\n\temail = agent@localhost\n[safe]\n\tdirectory = *\n"
    "[init]\n\tdefaultBranch = main\n[gc]\n\tauto = 0\n",
}
_SCRIPTS = {"usr/local/bin/pytest": '#!/bin/sh\nexec python3 -m pytest "$@"\n'}

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "PIP_NO_INDEX": "1",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "TERM": "dumb",
}
"""Environment of every command in either backend; nothing of ours leaks into it."""


@dataclass(frozen=True)
class Entry:
    """One member: a folder (``data`` and ``target`` None), a symlink (``target``) or a file (``data``)."""

    name: str
    mode: int
    data: bytes | None = None
    target: str | None = None
    mtime: int = 0
    uid: int = 0


def _which(name: str) -> Path | None:
    found = shutil.which(name, path=_HOST_PATH)
    return Path(found).resolve() if found else None


def _libraries(elf: list[Path]) -> dict[str, Path]:
    """Shared objects (by the name they are looked up with) that the given ELF files load, the loader included."""
    libraries: dict[str, Path] = {}
    for start in range(0, len(elf), 40):
        run = subprocess.run(["ldd", *map(str, elf[start : start + 40])], capture_output=True, text=True, check=False)
        for line in run.stdout.splitlines():
            words = line.split()
            if "=>" in words and len(words) >= 3 and words[2].startswith("/"):
                libraries[words[0]] = Path(words[2])
            elif words and words[0].startswith("/") and not words[0].endswith(":") and ".so" in words[0]:
                libraries[words[0]] = Path(words[0])
    return libraries


def _is_elf(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(4) == b"\x7fELF"


def _byte_code(entry: Entry) -> Entry | None:
    """The .pyc of a library module, checked against nothing at import (the root is read-only to commands).

    Without it every ``python`` in a sandbox would compile what it imports, since it may not write there.
    """
    if not entry.name.endswith(".py") or not entry.name.startswith("usr/local/lib/python") or entry.data is None:
        return None
    try:
        code = compile(entry.data, "/" + entry.name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None  # lib2to3 ships Python 2 samples
    path = Path(entry.name)
    name = path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc"
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(entry.data)
    return Entry(str(name), 0o644, header + marshal.dumps(code), mtime=1)


def _python_entries(elf: list[Path]) -> Iterator[Entry]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    stdlib = Path(
        sysconfig.get_paths(vars={"installed_base": sys.base_prefix, "base": sys.base_prefix})["stdlib"]
    ).resolve()
    executable = Path(sys.base_prefix) / "bin" / version
    if not executable.exists() or not stdlib.is_dir():
        raise SandboxUnavailable(
            f"no Python to copy: {executable} or {stdlib} is missing; set PROTEGE_BASE_IMAGE to a Docker image"
        )
    elf.append(executable.resolve())
    yield Entry(f"usr/local/bin/{version}", 0o755, executable.resolve().read_bytes())
    for alias in ("python3", "python"):
        yield Entry(f"usr/local/bin/{alias}", 0o777, target=version)
    for folder, folders, files in os.walk(stdlib):
        folders[:] = sorted(f for f in folders if f not in _STDLIB_SKIP and not f.startswith("config-"))
        relative = Path(folder).relative_to(stdlib)
        target = Path("usr/local/lib") / version / relative
        for file in sorted(files):
            source, name = Path(folder) / file, str(target / file)
            if (
                file.endswith((".pyc", ".a", ".exe", ".whl"))
                or file.startswith(("_tkinter", "_test", "xx"))
                or not source.is_file()
            ):
                continue
            data = source.read_bytes()
            if data[:4] == b"\x7fELF":
                elf.append(source)
            yield Entry(name, 0o644, data, mtime=1)
    yield Entry(f"usr/local/lib/{version}/site-packages", 0o755)


def _git_entries(elf: list[Path], git: Path) -> Iterator[Entry]:
    run = subprocess.run([str(git), "--exec-path"], capture_output=True, text=True, check=False)
    core = Path(run.stdout.strip() or "/usr/lib/git-core")
    builtin = git.stat()
    for path in sorted(core.iterdir()):
        if not path.is_file():
            continue
        if path.resolve() == git or os.path.samestat(path.stat(), builtin) or path.stat().st_size == builtin.st_size:
            yield Entry(f"usr/lib/git-core/{path.name}", 0o777, target="../../bin/git")
        elif not _is_elf(path):
            yield Entry(f"usr/lib/git-core/{path.name}", 0o755, path.read_bytes())
    templates = Path("/usr/share/git-core/templates")
    yield Entry("usr/share/git-core/templates", 0o755)
    for path in sorted(p for p in templates.rglob("*") if p.is_file() and p.suffix != ".sample"):
        yield Entry(f"usr/share/git-core/templates/{path.relative_to(templates)}", 0o644, path.read_bytes())


def _entries() -> Iterator[Entry]:
    missing = [name for name in _NEEDED if _which(name) is None]
    if missing or shutil.which("ldd") is None:
        raise SandboxUnavailable(
            f"this host lacks {', '.join(missing) or 'ldd'}: install them (apt-get install {' '.join(missing)})"
        )
    for link in ("bin", "sbin", "lib", "lib64"):
        yield Entry(link, 0o777, target=f"usr/{link}")
    for folder in "usr/bin usr/sbin usr/lib usr/lib64 usr/local/bin usr/local/lib etc opt/site dev proc sys run var root testbed .protege".split():
        yield Entry(folder, 0o755)
    yield Entry("tmp", 0o1777)
    yield Entry("var/tmp", 0o1777)
    yield Entry("home", 0o755)
    yield Entry(HOME.lstrip("/"), 0o755, uid=AGENT_UID)
    for name, text in sorted(_TEXT_FILES.items()):
        yield Entry(name, 0o644, text.encode())
    for name, text in sorted(_SCRIPTS.items()):
        yield Entry(name, 0o755, text.encode())
    for file in sorted(p for p in Path("/usr/lib/locale/C.utf8").rglob("*") if p.is_file()):
        yield Entry(str(file).lstrip("/"), 0o644, file.read_bytes())
    elf: list[Path] = []
    placed: dict[Path, str] = {}
    for name in sorted({*_NEEDED, *_WANTED}):
        path = _which(name)
        if path is None:
            continue
        if path in placed:
            yield Entry(f"usr/bin/{name}", 0o777, target=placed[path])
            continue
        placed[path] = name
        if _is_elf(path):
            elf.append(path)
        yield Entry(f"usr/bin/{name}", 0o755, path.read_bytes())
    git = _which("git")
    assert git is not None
    yield from _git_entries(elf, git)
    yield from _python_entries(elf)
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    for name, path in sorted(_libraries(elf).items()):
        data = path.resolve().read_bytes()
        if name.startswith("/"):
            yield Entry("usr/" + name.lstrip("/").removeprefix("usr/"), 0o755, data)
        else:
            yield Entry(f"usr/lib/{multiarch}/{name}", 0o644, data)


@functools.cache
def host_root() -> tuple[str, tuple[Entry, ...]]:
    """(SHA-256, members) of the root made from this host. About 70 MB; computed once a process.

    Raises:
        SandboxUnavailable: the host lacks a needed program; the message names it.
    """
    sha = hashlib.sha256(f"recipe {_RECIPE}\n".encode())
    members: dict[str, Entry] = {}
    for entry in _entries():
        members.setdefault(entry.name, entry)
    for entry in members.values():
        sha.update(f"{entry.name}\0{entry.mode:o}\0{entry.uid}\0{entry.target}\0".encode())
        sha.update(hashlib.sha256(entry.data or b"").digest())
    return sha.hexdigest(), tuple(members.values())


def write_tar(path: Path) -> None:
    """Write the root as an uncompressed tar; equal hosts give equal bytes."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        members = host_root()[1]
        for entry in (*members, *filter(None, map(_byte_code, members))):
            info = tarfile.TarInfo(entry.name)
            info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.uid, entry.mtime
            if entry.target is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.target
                tar.addfile(info)
            elif entry.data is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(entry.data)
                tar.addfile(info, io.BytesIO(entry.data))


def cache_folder() -> Path:
    """PROTEGE_CACHE, else ``.cache/protege`` in the working folder."""
    return Path(os.environ.get("PROTEGE_CACHE", ".cache/protege")).resolve()


def unpacked(cache: Path) -> Path:
    """The root as a folder under ``cache``, made at the first call (seconds) and found there afterwards."""
    target = cache / f"rootfs-{host_root()[0][:12]}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=cache, prefix=".rootfs-"))
    try:
        write_tar(work / "root.tar")
        with tarfile.open(work / "root.tar") as tar:
            tar.extractall(work / "root", filter="tar")
        os.chmod(work / "root", 0o755)
        try:
            Path(work / "root").rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster: its root is the same
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
