"""Is a fixed copy of what the gold patch changes lying about in an instance's sandbox?

An image can hold the released package next to the broken checkout: installed in site-packages, as a wheel in pip's
cache, in ``build/lib``, as compiled byte code. The search runs inside a sandbox of the instance's own image that no
agent is given; it takes digests of the gold patch's lines in and brings file names out.
"""

from __future__ import annotations

import hashlib
import json
import shlex

from protege.core.instance import Instance
from protege.core.patches import changes
from protege.errors import SandboxError
from protege.expert.audit import MIN_LEAK_CHARS
from protege.sandbox.base import Sandbox

_SEARCH = r'''
import hashlib, importlib.util, io, json, os, stat, sys, tarfile, zipfile

job = json.loads(sys.stdin.read())
wanted = {name: set(lines) for name, lines in job["files"].items()}
broken = {name: set(lines) for name, lines in job["broken"].items()}
bases = {}
for name in wanted:
    bases.setdefault(os.path.basename(name), []).append(name)
work = job["workdir"]
found = []
LIMIT = 64 << 20

def lines(data):
    return {hashlib.sha256(b" ".join(line.split())).hexdigest() for line in data.split(b"\n")}

def look(where, base, data):
    for name in bases.get(base, ()):
        here = lines(data)
        if wanted[name] and wanted[name] <= here and not (broken[name] and broken[name] <= here):
            found.append([where, name])

def archive(where, data, depth=0):
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as z:
                for info in z.infolist():
                    base = os.path.basename(info.filename)
                    if info.file_size <= LIMIT and (base in bases or depth < 1 and packed(base)):
                        member(where, info.filename, z.read(info), depth)
            return
        with tarfile.open(fileobj=io.BytesIO(data)) as t:
            for info in t:
                base = os.path.basename(info.name)
                if info.isfile() and info.size <= LIMIT and (base in bases or depth < 1 and packed(base)):
                    member(where, info.name, t.extractfile(info).read(), depth)
    except Exception:
        pass

def member(where, name, data, depth):
    base = os.path.basename(name)
    look(where + "!" + name, base, data)
    if packed(base):
        archive(where + "!" + name, data, depth + 1)

def other_version(folder, stem, data):
    """Byte code of a file of interest that was not compiled from the source beside it."""
    source = os.path.join(os.path.dirname(folder) if os.path.basename(folder) == "__pycache__" else folder, stem)
    if not any(source.endswith("/" + "/".join(name.split("/")[-2:])) for name in bases[stem]):
        return False
    try:
        with open(source, "rb") as handle:
            text = handle.read()
    except OSError:
        return True
    if data[4] & 1:
        return data[8:16] != importlib.util.source_hash(text)
    size = int.from_bytes(data[12:16], "little")
    return size != len(text) or int.from_bytes(data[8:12], "little") != int(os.stat(source).st_mtime) & 0xFFFFFFFF

def packed(base):
    return base.endswith((".whl", ".egg", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".conda", ".pyz"))

def cached(path):
    parts = path.lower().split(os.sep)
    return any(part in ("pip", "wheels", "uv", "pkgs", "pypoetry", "pdm", "hatch", ".cache") for part in parts)

skip = {"/proc", "/sys", "/dev"}
for folder, names, files in os.walk("/", followlinks=False):
    names[:] = [n for n in names if os.path.join(folder, n) not in skip and not (n == ".git" and folder == work)]
    for base in files:
        path = os.path.join(folder, base)
        stem = base.split(".")[0] + ".py" if base.endswith(".pyc") else base
        if base not in bases and not packed(base) and not cached(folder) and not (base.endswith(".pyc") and stem in bases):
            continue
        if path.startswith(work + "/") and path[len(work) + 1 :] in wanted:
            continue  # the file that is to be fixed
        try:
            info = os.lstat(path)
            if not stat.S_ISREG(info.st_mode) or info.st_size > LIMIT:
                continue
            with open(path, "rb") as handle:
                data = handle.read()
        except OSError:
            continue
        look(path, base, data)
        if base.endswith(".pyc") and stem in bases and other_version(folder, stem, data):
            found.append([path, stem])
        if packed(base) or cached(folder):
            archive(path, data)
            at = data.find(b"PK\x03\x04")  # pip keeps a wheel inside a cached HTTP reply
            if at > 0:
                archive(path, data[at:])
print("\n" + json.dumps(found))
'''


def fixed_copies(sandbox: Sandbox, instance: Instance) -> list[str]:
    """Files (``archive!member`` inside archives) that hold every line which the gold patch adds to a file of that name.

    A copy that also has all the lines which the patch removes is another version of the file and not counted. Files to
    which the patch adds no line of 8 characters or more cannot be distinguished from others and are not looked for. Byte code is
    reported where it was not compiled from the source beside it. Looks at files of up to 64 MiB that the agent's user can read.

    Raises:
        SandboxError: the search could not be run (the sandbox has no Python 3).
    """
    wanted: dict[str, list[str]] = {}
    broken: dict[str, list[str]] = {}
    for change in changes(instance.patch):
        wanted.setdefault(change.path, []).extend(_digests(change.added))
        broken.setdefault(change.path, []).extend(_digests(change.removed))
    wanted = {name: lines for name, lines in wanted.items() if lines and name != "/dev/null"}
    if not wanted:
        return []
    job = {"files": wanted, "broken": {name: broken.get(name, []) for name in wanted}, "workdir": sandbox.workdir}
    command = f"exec python3 -I -c {shlex.quote(_SEARCH)}"
    result = sandbox.exec(command, stdin=json.dumps(job).encode(), timeout=300)
    last = result.output.strip().splitlines()[-1:] or [""]
    if result.exit_code != 0 or not last[0].startswith("["):
        raise SandboxError(f"{instance.instance_id}: the search for fixed copies failed: {result.output[-500:]}")
    return sorted({where for where, _ in json.loads(last[0])})


def _digests(lines: list[str]) -> list[str]:
    plain = [" ".join(line.split()) for line in lines]
    return [hashlib.sha256(line.encode()).hexdigest() for line in plain if len(line) >= MIN_LEAK_CHARS]
