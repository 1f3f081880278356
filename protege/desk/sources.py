"""The desk suite's raw material: pinned, hash-checked PyPI sdists and the site folder their tests need.

Everything comes through ``pip`` with ``--require-hashes``, so nothing of a package is executed before its hash
has been checked, and whatever index the machine is configured for is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protege.errors import BadInput

DESK_FOLDER = Path("data/desk")
CACHE_FOLDER = Path(".cache/protege")

_KEPT_AT_TOP = re.compile(r"(?i)^(readme|licen[cs]e|pyproject\.toml$|setup\.(py|cfg)$|tox\.ini$)")
_NEVER = re.compile(r"(^|/)(__pycache__|build|dist|docs|\.git|[^/]*\.egg-info)(/|$)|\.(pyc|pyo|so|whl|orig|rej)$")


class Package(BaseModel):
    """One entry of data/desk/packages.yaml. Paths are POSIX and relative to the unpacked sdist."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    sdist: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    repo: str
    source: str
    tests: str
    also: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    python_path: str = "."
    requires: tuple[str, ...] = ()


def load_packages(path: Path | str = DESK_FOLDER / "packages.yaml") -> dict[str, Package]:
    """The pinned packages by name.

    Raises:
        BadInput: the file is missing, is not YAML, or an entry is wrong; the message names the entry and the field.
    """
    path = Path(path)
    try:
        entries = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: cannot be read as YAML: {error}") from error
    packages: dict[str, Package] = {}
    for number, entry in enumerate(entries or [], 1):
        try:
            package = Package.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadInput(f"{path}: entry {number}: field '{where}': {first['msg']}") from error
        if package.name in packages:
            raise BadInput(f"{path}: entry {number}: package '{package.name}' is there twice; keep one")
        packages[package.name] = package
    return packages


def sha256_of(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fetch_sdists(packages: Iterable[Package], cache: Path | str = CACHE_FOLDER) -> dict[str, Path]:
    """Download what is missing into ``<cache>/sdists`` and return each package's sdist by name.

    Raises:
        BadInput: a file's hash is not the pinned one (both are named), or pip could not fetch it.
    """
    wanted = list(packages)
    folder = Path(cache) / "sdists"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock"):
        missing = [package for package in wanted if not (folder / package.sdist).exists()]
        if missing:
            _download(missing, folder)
    for package in wanted:
        path = folder / package.sdist
        found = sha256_of(path)
        if found != package.sha256:
            raise BadInput(
                f"{path}: sha256 is {found}, but packages.yaml pins {package.sha256}; delete the file to fetch it "
                "again, and do not change the pin unless you have checked the release"
            )
    return {package.name: folder / package.sdist for package in wanted}


def _download(packages: list[Package], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        pins = Path(scratch) / "pins.txt"
        pins.write_text("".join(f"{p.name}=={p.version} --hash=sha256:{p.sha256}\n" for p in packages))
        done = _pip("download", "--no-deps", "--no-binary", ":all:", "--require-hashes", "-d", scratch, "-r", str(pins))
        if done.returncode:
            _explain(done, [f"{p.name}=={p.version}" for p in packages])
        for package in packages:
            fetched = Path(scratch) / package.sdist
            if not fetched.exists():
                names = sorted(p.name for p in Path(scratch).glob("*.tar.gz"))
                raise BadInput(f"packages.yaml: '{package.name}' names sdist {package.sdist}, but pip fetched {names}")
            os.replace(fetched, folder / package.sdist)


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _explain(done: subprocess.CompletedProcess[str], what: list[str]) -> None:
    """Turn a failed pip run into BadInput; a hash mismatch names the file and both hashes."""
    text = done.stdout + done.stderr
    hashes = re.search(r"Expected sha256 ([0-9a-f]{64})\s+Got\s+([0-9a-f]{64})", text)
    if hashes:
        named = re.search(r"^\s*(\S+==\S+) from .*?([^/\s]+\.(?:tar\.gz|zip|whl))", text, re.MULTILINE)
        file = named.group(2) if named else ", ".join(what)
        raise BadInput(
            f"{file}: the index served sha256 {hashes.group(2)}, but the pin is {hashes.group(1)}; "
            "do not change the pin unless you have checked the release"
        )
    tail = "\n".join(line for line in text.splitlines() if line.strip())[-600:]
    raise BadInput(
        f"pip could not fetch {', '.join(what)}; check the network and pip's index settings. pip said:\n{tail}"
    )


def unpack(package: Package, sdist: Path, target: Path) -> Path:
    """Write the package's repository to ``target``: source, tests and project files only.

    Documentation, build leftovers, lock files and instructions to other agents stay behind: they are not needed
    to run the tests, cost room in every image, and could hold a second copy of the code. Files are regular,
    mode 0644 (0755 where executable); links are not followed.
    """
    target.mkdir(parents=True, exist_ok=True)
    keep = (package.source, package.tests, *package.also)
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            name = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            text = str(name)
            if not member.isfile() or ".." in name.parts or _NEVER.search(text) or text in package.without:
                continue
            at_top = len(name.parts) == 1 and _KEPT_AT_TOP.match(text)
            if not at_top and not any(text == k or text.startswith(f"{k}/") for k in keep):
                continue
            data = archive.extractfile(member)
            assert data is not None
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.read())
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
    if not (target / package.tests).exists() or not (target / package.source).exists():
        raise BadInput(f"{sdist}: holds no '{package.source}' or no '{package.tests}', which packages.yaml names")
    return target


def ensure_site(
    requirements: Path | str = DESK_FOLDER / "requirements-desk.txt", cache: Path | str = CACHE_FOLDER
) -> Path:
    """``<cache>/desk-site``: pytest and what the packages import, installed once from hash-pinned wheels.

    Made in a temporary folder and renamed, so that it is there whole or not at all; made anew when the
    requirements file changes. Raises BadInput when pip fails.
    """
    requirements, target = Path(requirements), Path(cache).resolve() / "desk-site"
    pins = requirements.read_bytes()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / ".desk-site.lock"):
        stamp = target / "requirements-desk.txt"
        if stamp.exists() and stamp.read_bytes() == pins:
            return target
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".desk-site-"))
        try:
            done = _pip("install", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-compile",
                        "--target", str(scratch / "site"), "-r", str(requirements))  # fmt: skip
            if done.returncode:
                _explain(done, [str(requirements)])
            shutil.rmtree(scratch / "site" / "bin", ignore_errors=True)
            (scratch / "site" / stamp.name).write_bytes(pins)
            (scratch / "site").chmod(0o755)
            if target.exists():
                os.replace(target, scratch / "old")
            os.replace(scratch / "site", target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time: two stages may start on a fresh clone together."""
    with path.open("w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
