"""Building, choosing and writing, without a sandbox; test_desk_docker.py proves the rest in one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from protege.config import InstancesParams
from protege.datasets.load import load_instances
from protege.desk import desk
from protege.desk.modifiers import candidates
from protege.desk.testrun import Prepared
from protege.desk.verify import Dropped, Verified
from protege.errors import BadInput

from .conftest import CORE, TESTS

F2P = ("tests/test_core.py::test_total[values0-6]", "tests/test_core.py::test_total[values1-6]")


@pytest.fixture
def prepared(sdist, tmp_path: Path) -> Prepared:
    return desk.prepare(sdist[0], tmp_path / "cache", sdist[1])


def verified(number: int, package: str = "pkg", entity: str = "total", **changes: object) -> Verified:
    fields: dict = {
        "candidate_id": f"{package}__1.0.func_pm_op_change__{number:08x}",
        "package": package,
        "version": "1.0",
        "modifier": "func_pm_op_change",
        "path": "pkg/core.py",
        "entity": entity,
        "original": CORE,
        "buggy": CORE.replace("value * 2", f"value * {number + 3}"),
        "changed_lines": 2,
        "fail_to_pass": F2P,
        "pass_to_pass": ("tests/test_core.py::test_label", "tests/test_core.py::test_other"),
        "removed": ("tests/test_core.py::test_total",),
        "problem_statement": "`total` gives a wrong result\n",
    }
    return Verified(**{**fields, **changes})


def params(**splits: tuple[tuple[str, ...], int]) -> InstancesParams:
    return InstancesParams(splits={k: {"packages": v[0], "count": v[1]} for k, v in splits.items()})


def checkout(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "testbed"


def test_the_row_is_complete_and_its_testbed_hides_the_tests(prepared: Prepared, tmp_path: Path):
    row = desk.build(verified(0), prepared, tmp_path / "beds", "sft")
    repo = checkout(tmp_path / "beds" / f"{row.instance_id}.tar.gz", tmp_path / "out")
    assert (repo / "pkg/core.py").read_text() == CORE.replace("value * 2", "value * 3")
    assert "test_total" not in (repo / "tests/test_core.py").read_text()
    # nowhere in the repository, git's objects included, is the correct line
    blobs = subprocess.run(
        "git -c safe.directory='*' cat-file --batch-all-objects --batch",
        shell=True,
        cwd=repo,
        capture_output=True,
        check=True,
    )
    assert b"value * 3" in blobs.stdout and b"value * 2" not in blobs.stdout and b"test_total" not in blobs.stdout
    assert row.image.startswith("protege-desk-pkg:") and row.to_row()["split"] == "sft"
    assert row.to_row()["modifier"] == "func_pm_op_change" and row.to_row()["source"] == "1.0"
    assert "def total" in row.patch.splitlines()[4]  # the hunk names the function


def test_patches_give_back_the_published_files(prepared: Prepared, tmp_path: Path):
    row = desk.build(verified(0), prepared, tmp_path / "beds", "sft")
    repo = checkout(tmp_path / "beds" / f"{row.instance_id}.tar.gz", tmp_path / "out")
    for patch in (row.test_patch, row.patch):
        subprocess.run(["git", "apply", "-v", "-"], input=patch, text=True, cwd=repo, check=True)
    assert (repo / "pkg/core.py").read_text() == CORE
    assert (repo / "tests/test_core.py").read_text() == TESTS


def test_building_is_deterministic(prepared: Prepared, tmp_path: Path):
    first = desk.build(verified(0), prepared, tmp_path / "a", "sft")
    second = desk.build(verified(0), prepared, tmp_path / "b", "sft")
    name = f"{first.instance_id}.tar.gz"
    assert first == second and (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert desk.build(verified(1), prepared, tmp_path / "a", "sft").image != first.image


def test_the_eval_script_has_the_official_shape(prepared: Prepared, tmp_path: Path):
    row = desk.build(verified(0), prepared, tmp_path, "eval")
    lines = row.eval_script.splitlines()
    assert lines[:2] == ["#!/bin/bash", "set -uxo pipefail"]
    start, end = lines.index(": '>>>>> Start Test Output'"), lines.index(": '>>>>> End Test Output'")
    assert end == start + 2 and "pytest -rA" in lines[start + 1]
    restore = f"git checkout {row.base_commit} tests/test_core.py"
    assert lines[end + 1] == restore and restore in lines[:start]
    assert row.test_patch.rstrip("\n") in row.eval_script
    assert subprocess.run(["bash", "-n"], input=row.eval_script, text=True, check=False).returncode == 0


def test_splits_share_no_function_and_eval_no_package():
    pool = [verified(i, entity=f"f{i % 5}") for i in range(10)]
    pool += [verified(i, package="other", entity=f"g{i}") for i in range(3)]
    chosen = desk.select(pool, params(sft=(("pkg",), 4), rl=(("pkg",), 2), eval=(("other",), 3)))
    assert {name: len(items) for name, items in chosen.items()} == {"sft": 4, "rl": 2, "eval": 3}
    sft, rl = ({(v.package, v.entity) for v in chosen[name]} for name in ("sft", "rl"))
    assert not sft & rl
    assert desk.select(reversed(pool), params(sft=(("pkg",), 4), rl=(("pkg",), 2), eval=(("other",), 3))) == chosen


def test_what_earlier_nights_chose_stays_and_as_many_are_added():
    wanted = params(sft=(("pkg",), 2), rl=(("pkg",), 1), eval=(("other",), 1))
    nights = wanted.model_copy(update={"earlier": (3, 5)}).of_each_seed()
    assert [night.seed for night in nights] == [3, 5, 7] and all(night.earlier == () for night in nights)
    assert [sorted(night.splits) for night in nights] == [["rl", "sft"], ["rl", "sft"], ["eval", "rl", "sft"]]
    pool = [verified(i, entity=f"f{i}") for i in range(12)] + [verified(i, package="other") for i in range(3)]
    chosen: dict = {}
    sizes = []
    for night in nights:
        before, chosen = chosen, desk.select(pool, night, chosen)
        assert all({v.candidate_id for v in before[name]} <= {v.candidate_id for v in chosen[name]} for name in before)
        assert desk.next_batch({}, pool, night, before) == []
        sizes.append({name: len(items) for name, items in chosen.items()})
    assert sizes == [{"sft": 2, "rl": 1}, {"sft": 4, "rl": 2}, {"sft": 6, "rl": 3, "eval": 1}]
    everything = [v.candidate_id for items in chosen.values() for v in items]
    assert len(everything) == len(set(everything))
    sft, rl = ({v.entity for v in chosen[name]} for name in ("sft", "rl"))
    assert not sft & rl


@pytest.mark.parametrize("earlier", [(3, 3), (7,)])
def test_a_seed_counts_once(earlier):
    with pytest.raises(ValidationError, match="a seed twice, or seed = 7 itself"):
        InstancesParams(splits={"sft": {"packages": ["pkg"], "count": 1}}, earlier=earlier)


def test_too_few_proved_is_said_with_what_to_do():
    with pytest.raises(BadInput, match=r"splits\.sft: wants 3 .* only 1 were proved; raise"):
        desk.select([verified(1), Dropped(candidate_id="x", package="pkg", reason="flaky")], params(sft=(("pkg",), 3)))


def test_a_split_may_not_share_packages_with_eval():
    with pytest.raises(ValidationError, match="eval must use packages of its own"):
        params(sft=(("a", "b"), 1), eval=(("b",), 1))


def test_only_packages_of_a_split_that_lacks_instances_go_on(prepared: Prepared, sdist):
    """A package of eval that has no more bugs to give must not set those of sft to work."""
    wanted = params(sft=(("pkg",), 1), eval=(("poor", "rich"), 2))
    some = candidates(sdist[0], prepared.tree, wanted)[:8]
    named = {name: [dataclasses.replace(c, candidate_id=f"{name}{n}", package=name) for n, c in enumerate(some)]
             for name in ("pkg", "poor", "rich")}  # fmt: skip
    proved = [verified(0), verified(1, package="rich")]
    assert desk.next_batch(named | {"poor": []}, proved, wanted) == named["rich"][:4]
    assert desk.next_batch({"pkg": named["pkg"], "poor": [], "rich": []}, proved, wanted) == []


def test_batches_go_on_until_the_splits_can_be_filled(prepared: Prepared, sdist):
    wanted = params(sft=(("pkg",), 2))
    found = {"pkg": candidates(sdist[0], prepared.tree, wanted)}
    first = desk.next_batch(found, [], wanted)
    assert first == found["pkg"][:4]
    dropped = [Dropped(candidate_id=c.candidate_id, package="pkg", reason="no_fail_to_pass") for c in first]
    second = desk.next_batch(found, dropped, wanted)
    assert second == found["pkg"][4:8]
    proved = [verified(i).model_copy(update={"candidate_id": c.candidate_id}) for i, c in enumerate(second[:2])]
    assert desk.next_batch(found, [*dropped, *proved], wanted) == []


def test_the_suite_is_written_as_rows_and_counts(prepared: Prepared, tmp_path: Path):
    results = [verified(0), verified(1, entity="label"), Dropped(candidate_id="x", package="pkg", reason="timeout")]
    wanted = params(sft=(("pkg",), 1), rl=(("pkg",), 1))
    (tmp_path / "out/testbeds").mkdir(parents=True)
    (tmp_path / "out/testbeds/stale.tar.gz").write_bytes(b"")
    rows = desk.write_suite(desk.select(results, wanted), results, {"pkg": prepared}, tmp_path / "out")
    assert load_instances(tmp_path / "out/sft.jsonl", "sft") == rows["sft"]
    beds = {p.name for p in (tmp_path / "out/testbeds").iterdir()}
    assert beds == {f"{r.instance_id}.tar.gz" for items in rows.values() for r in items}
    suite = json.loads((tmp_path / "out/suite.json").read_text())
    assert (suite["candidates"], suite["kept"], suite["dropped"]) == (3, 2, {"timeout": 1})
    assert suite["packages"]["pkg"]["kept"] == 2 and suite["mean_changed_lines"] == 2.0
