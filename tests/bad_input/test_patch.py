"""A gold patch that does not apply: its instance is quarantined with the reason, never an evaluation of it."""

from __future__ import annotations

from pathlib import Path

from protege.grading.preflight import preflight
from protege.sandbox.bubblewrap import BubblewrapProvider
from tests.sandbox.fixtures import cache, make_provider, tiny  # noqa: F401
from tests.sandbox.tiny import GOLD, Tiny


def test_a_gold_patch_that_does_not_apply_quarantines_its_instance(make_provider, tiny: Tiny, tmp_path: Path) -> None:  # noqa: F811
    provider: BubblewrapProvider = make_provider("bubblewrap")
    row = tiny.instance.model_copy(update={"patch": GOLD.replace("return a - b", "return a // b")})
    found = preflight([row], provider, repeats=1, log_dir=tmp_path)
    assert found.ok == () and not found.failed
    (one,) = found.quarantined
    assert one.instance_id == row.instance_id and one.reason == "gold_fails"
    assert one.detail == "the patch does not apply"
    assert "1 quarantined (gold fails 1)" in found.denominator
