from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from protege.desk.sources import fetch_sdists, load_packages, unpack
from protege.errors import BadInput

ROOT = Path(__file__).parents[2]


def test_the_pinned_packages_are_complete_and_hashed():
    packages = load_packages(ROOT / "data/desk/packages.yaml")
    assert set(packages) == {
        "boltons",
        "cachetools",
        "inflection",
        "isodate",
        "python-slugify",
        "semver",
        "sqlparse",
        "toolz",
    }
    pins = (ROOT / "data/desk/requirements-desk.txt").read_text()
    for package in packages.values():
        assert all(f"{name}==" in pins for name in package.requires)


def test_a_wrong_entry_is_named(tmp_path: Path):
    path = tmp_path / "packages.yaml"
    path.write_text(yaml.safe_dump([{"name": "x", "version": "1", "sdist": "x.tar.gz", "sha256": "short"}]))
    with pytest.raises(BadInput, match=r"entry 1: field 'sha256'"):
        load_packages(path)


def test_a_bad_hash_names_the_file_and_both_hashes(sdist, tmp_path: Path):
    package, path = sdist
    path.write_bytes(path.read_bytes() + b"more")
    import hashlib

    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(BadInput) as caught:
        fetch_sdists([package], tmp_path / "cache")
    assert all(part in str(caught.value) for part in (package.sdist, package.sha256, found))


def test_a_good_file_is_taken_from_the_cache(sdist, tmp_path: Path):
    package, path = sdist
    assert fetch_sdists([package], tmp_path / "cache") == {"pkg": path}


def test_only_source_tests_and_project_files_are_unpacked(sdist, tmp_path: Path):
    package, path = sdist
    tree = unpack(package, path, tmp_path / "tree")
    files = {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()}
    assert files == {"pkg/__init__.py", "pkg/core.py", "tests/test_core.py", "README.md"}


def test_an_sdist_without_the_named_folders_is_refused(sdist, tmp_path: Path):
    package, path = sdist
    with pytest.raises(BadInput, match="holds no"):
        unpack(package.model_copy(update={"source": "elsewhere"}), path, tmp_path / "tree")
