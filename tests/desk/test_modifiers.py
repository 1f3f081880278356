from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from protege.config import InstancesParams
from protege.desk.modifiers import _size, candidates, unified
from protege.desk.sources import unpack

from .conftest import CORE

PARAMS = InstancesParams(splits={})


@pytest.fixture
def tree(sdist, tmp_path: Path) -> Path:
    return unpack(*sdist, tmp_path / "tree")


def test_bugs_are_small_parse_and_differ(sdist, tree: Path):
    found = candidates(sdist[0], tree, PARAMS)
    assert len(found) >= 4
    assert len({c.candidate_id for c in found}) == len(found)
    for candidate in found:
        assert candidate.original == CORE and candidate.path == "pkg/core.py"
        assert ast.dump(ast.parse(candidate.buggy)) != ast.dump(ast.parse(CORE))
        assert 1 <= candidate.changed_lines <= PARAMS.max_changed_lines
        assert candidate.entity in {"total", "label"}
        assert candidate.candidate_id == candidate.candidate_id.lower()


def test_the_same_seed_gives_the_same_bugs_and_a_limit_gives_a_prefix(sdist, tree: Path):
    everything = candidates(sdist[0], tree, PARAMS)
    assert candidates(sdist[0], tree, PARAMS) == everything
    assert candidates(sdist[0], tree, PARAMS, limit=3) == everything[:3]
    other = candidates(sdist[0], tree, PARAMS, seed=99)
    assert [c.candidate_id for c in other] != [c.candidate_id for c in everything]


def test_functions_take_turns(sdist, tree: Path):
    first = candidates(sdist[0], tree, PARAMS, limit=2)
    assert {c.entity for c in first} == {"total", "label"}


def test_the_patch_gives_back_the_original(sdist, tree: Path, tmp_path: Path):
    import subprocess

    candidate = candidates(sdist[0], tree, PARAMS, limit=1)[0]
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "core.py").write_text(candidate.buggy)
    subprocess.run(["git", "apply", "-"], input=candidate.patch, text=True, cwd=tmp_path, check=True)
    assert (tmp_path / "pkg" / "core.py").read_text() == CORE


def test_large_files_and_tests_are_left_alone(sdist, tree: Path):
    assert candidates(sdist[0], tree, PARAMS.model_copy(update={"max_file_kb": 0.1})) == []
    whole = sdist[0].model_copy(update={"source": "."})
    assert {c.path for c in candidates(whole, tree, PARAMS)} == {"pkg/core.py"}


def test_a_dotenv_file_is_not_read(sdist, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".env").write_text("PROTEGE_LEAK=1\n")
    monkeypatch.chdir(tmp_path)
    candidates(sdist[0], tree, PARAMS, limit=1)
    assert "PROTEGE_LEAK" not in os.environ and "PYTHON_DOTENV_DISABLED" not in os.environ


def test_two_separate_changes_are_not_one_bug():
    assert _size("a\nb\nc\n", "a\nx\nc\n") == 2
    assert _size("a\nb\nc\n", "x\nb\ny\n") == float("inf")


def test_a_missing_final_newline_is_kept_in_the_diff():
    assert "\\ No newline at end of file" in unified("f", "a", "b\n")
