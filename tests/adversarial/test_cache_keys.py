"""The same id with another patch, other params or another image is other work: nothing is served from a cache."""

from __future__ import annotations

import json

import pytest

from protege.config import SandboxParams
from protege.core.trajectory import patch_digest
from protege.files import Store
from protege.grading.grade import grade
from protege.identity import closure
from tasks.keys import grade_key
from tests.sandbox.tiny import GOLD, WRONG

BASE = {"patch": GOLD, "image_digest": "sha256:1", "sandbox": SandboxParams(), "backend": "docker"}


@pytest.mark.parametrize(
    "change",
    [
        {"patch": WRONG},
        {"patch": GOLD.rstrip("\n")},
        {"image_digest": "sha256:2"},
        {"sandbox": SandboxParams(grade_timeout_s=1)},
        {"sandbox": SandboxParams(memory_mb=128)},
        {"backend": "bubblewrap"},
    ],
    ids=str,
)
def test_whatever_decides_a_verdict_is_in_its_key(tiny, change):
    assert grade_key(tiny.instance, **{**BASE, **change}) != grade_key(tiny.instance, **BASE)


@pytest.mark.parametrize(
    "change",
    [
        {"eval_script": "true"},
        {"test_patch": ""},
        {"patch": WRONG},
        {"FAIL_TO_PASS": ()},
        {"log_parser": "parse_log_django"},
        {"hints_text": "x"},
    ],
    ids=str,
)
def test_the_same_id_with_another_row_is_other_work(tiny, change):
    other = tiny.instance.model_copy(update=change)
    assert other.instance_id == tiny.instance.instance_id
    assert grade_key(other, **BASE) != grade_key(tiny.instance, **BASE)


def test_how_many_sandboxes_are_kept_ready_decides_nothing(tiny):
    more = SandboxParams(warm=9, starts=9, images_gb=1, start_timeout_s=1)
    assert grade_key(tiny.instance, **{**BASE, "sandbox": more}) == grade_key(tiny.instance, **BASE)


def test_the_code_of_the_filter_and_of_the_evidence_decides_a_verdict():
    decided = {path.name for path in closure("protege.grading.grade").values()}
    assert {"grade.py", "filtering.py", "evidence.py", "recorder.py", "official.py", "docker.py"} <= decided


def test_the_store_does_not_confuse_them(tiny, tmp_path):
    store = Store(tmp_path)
    store.put("verdict", grade_key(tiny.instance, **BASE), {"resolved": True})
    assert store.get("verdict", grade_key(tiny.instance, **{**BASE, "patch": WRONG})) is None
    half = store.path("verdict", grade_key(tiny.instance, **{**BASE, "patch": WRONG}))
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_text('{"resolved": tr')  # torn by a crash of the disk
    assert store.get("verdict", grade_key(tiny.instance, **{**BASE, "patch": WRONG})) is None


def test_a_report_of_the_harness_made_beforehand_is_not_believed(provider, tiny, tmp_path):
    """The harness returns any report.json that it finds under the run's name, whatever the patch."""
    assert not grade(tiny.instance, WRONG, provider, log_dir=tmp_path).resolved
    lie = json.dumps({tiny.instance.instance_id: {"resolved": True, "patch_successfully_applied": True}})
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    for folder in (tmp_path, *folders):
        (folder / "report.json").write_text(lie)
    verdict = grade(tiny.instance, WRONG, provider, log_dir=tmp_path)
    assert not verdict.resolved and verdict.patch_digest == patch_digest(WRONG)
