"""A small synthetic package, unpacked as an sdist would be."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from protege.desk.sources import Package

CORE = '''"""Bits of arithmetic."""


def total(values, start=0):
    result = start
    for value in values:
        if value is None:
            continue
        result = result + value * 2
    if result > 100 or result < -100:
        result = result - 1
    return result


def label(name, width=8):
    text = name.strip()
    if len(text) > width:
        text = text[: width - 1] + "~"
    return text.ljust(width) + "|"
'''
TESTS = """import pytest

from pkg.core import label, total


@pytest.mark.parametrize("values, expected", [([1, 2], 6), ([None, 3], 6)])
def test_total(values, expected):
    assert total(values) == expected


# the next one is about names
def test_label():
    assert label(" ab ", 4) == "ab  |"


class TestLong:
    def test_cut(self):
        assert label("abcdefgh", 4) == "abc~|"


def test_other():
    assert total([]) == 0
"""
FILES = {
    "pkg/__init__.py": "",
    "pkg/core.py": CORE,
    "tests/test_core.py": TESTS,
    "README.md": "# pkg\\n",
    "docs/index.md": "def total\\n",
    "pkg.egg-info/PKG-INFO": "Name: pkg\\n",
    "build/lib/pkg/core.py": CORE,
    "pkg/__pycache__/core.cpython-311.pyc": "x",
}


def write_sdist(path: Path, files: dict[str, str]) -> str:
    """A .tar.gz with one top folder; returns its sha256."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"pkg-1.0/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def sdist(tmp_path: Path) -> tuple[Package, Path]:
    folder = tmp_path / "cache" / "sdists"
    folder.mkdir(parents=True)
    path = folder / "pkg-1.0.tar.gz"
    sha = write_sdist(path, FILES)
    package = Package(
        name="pkg", version="1.0", sdist=path.name, sha256=sha, repo="some/pkg", source="pkg", tests="tests"
    )
    return package, path
