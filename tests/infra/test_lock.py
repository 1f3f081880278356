"""The compiled constraints are those of pyproject.toml; no network is needed to say so."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from infra import lock

FLAVOURS = sorted(lock.EXTRAS)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_constraints_are_not_stale(flavour: str) -> None:
    assert not lock.stale(flavour)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_direct_dependency_is_pinned_and_none_that_breaks_imports(flavour: str) -> None:
    project = tomllib.loads((lock.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for extra in lock.EXTRAS[flavour] for one in extras[extra])]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", text, maxsplit=1)[0]).lower() for text in asked}
    pinned = {name.split("==")[0] for name in lock.pins(lock.path(flavour).read_text(encoding="utf-8"))}
    assert names <= pinned and not pinned & set(lock.EXCLUDED[flavour])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "infra").mkdir()
    for name in ("pyproject.toml", "infra/constraints-cpu.txt"):
        shutil.copy(lock.ROOT / name, tmp_path / name)
    assert not lock.stale("cpu", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("pyproject.toml", '"swebench==5.0.2"', '"swebench==5.0.3"', "older than what pyproject.toml asks for"),
        ("pyproject.toml", '"dvc-s3==3.3.0",', "", "older than what pyproject.toml asks for"),
        ("infra/constraints-cpu.txt", "accelerate==", "--index-url https://example.org/\naccelerate==", "an address"),
        ("infra/constraints-cpu.txt", "# Compiled", "abc==1.0\n# Compiled", "older than"),
        ("infra/constraints-cpu.txt", "accelerate==", "abc==1.0\naccelerate==", "no hash for abc==1.0"),
    ],
)
def test_what_is_stale_is_said(project: Path, name: str, old: str, new: str, said: str) -> None:
    text = (project / name).read_text(encoding="utf-8")
    (project / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert said in lock.stale("cpu", project) and "make lock" in lock.stale("cpu", project)


def test_a_version_of_ours_alone_changes_nothing(project: Path) -> None:
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    (project / "pyproject.toml").write_text(text.replace('version = "0.1.0"', 'version = "0.2.0"'), encoding="utf-8")
    assert not lock.stale("cpu", project)
