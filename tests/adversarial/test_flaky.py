"""A pre-flight finds the instances whose gold patch does not decide, and says the denominator."""

from __future__ import annotations

import pytest

from protege.errors import BadParams
from protege.files import Store
from protege.grading.preflight import Checked, Preflight, preflight
from tests.adversarial.attack import diff_of
from tests.sandbox.tiny import BUGGY, WRONG

FIXED = BUGGY.replace("a - b", "a + b")
FLAKY = "import time\n\n" + FIXED.replace("return a + b", "return a + b + int(time.time() * 1000) % 2")
"""Right on every other millisecond: four runs in a row agree once in eight times."""


def renamed(tiny, name: str, **changes: object):
    return tiny.instance.model_copy(update={"instance_id": name, **changes})


@pytest.fixture
def beds(tiny):
    """Archives under other names, for bubblewrap."""
    made = []

    def add(name: str) -> None:
        target = tiny.testbeds / f"{name}.tar.gz"
        target.write_bytes((tiny.testbeds / f"{tiny.instance.instance_id}.tar.gz").read_bytes())
        made.append(target)

    yield add
    for path in made:
        path.unlink()


def test_what_does_not_decide_is_quarantined(make_provider, tiny, tmp_path, beds):
    provider = make_provider("bubblewrap")
    cases = [
        renamed(tiny, "good-1"),
        renamed(tiny, "wrong-gold-1", patch=WRONG),
        renamed(tiny, "needless-1", FAIL_TO_PASS=tiny.instance.PASS_TO_PASS),
    ]
    for item in cases:
        beds(item.instance_id)
    seen: list[Checked] = []
    found = preflight(cases, provider, 2, tmp_path / "logs", on_result=seen.append)
    assert found.ok == ("good-1",) and found.failed == {}
    assert [(q.instance_id, q.reason) for q in found.quarantined] == [
        ("wrong-gold-1", "gold_fails"),
        ("needless-1", "resolved_without_a_patch"),
    ]
    assert "tests/test_calc.py::test_add" in found.quarantined[0].detail
    assert sorted(item.instance_id for item in seen) == sorted(item.instance_id for item in cases)
    assert found.denominator == (
        "1 of 3 instances; 2 quarantined (gold fails 1, resolved without a patch 1); the gold patch was graded 2 times"
    )


def test_a_flaky_gold_patch_is_found_by_repeating(make_provider, tiny, tmp_path):
    provider = make_provider("bubblewrap")
    flaky = renamed(tiny, tiny.instance.instance_id, patch=diff_of(tiny, {"calc.py": FLAKY}))
    for _ in range(3):  # wrong in one of 4 * 128 * 3 at most
        found = preflight([flaky], provider, 8, tmp_path / "logs")
        if found.quarantined and found.quarantined[0].reason == "gold_flaky":
            break
    assert found.ok == () and found.quarantined[0].reason == "gold_flaky"
    assert 0 < found.quarantined[0].gold_resolved < found.quarantined[0].gold_runs == 8


def test_a_sandbox_with_the_fix_in_it_is_quarantined(make_provider, tiny, tmp_path, monkeypatch):
    provider = make_provider("bubblewrap")
    plain = provider.open

    def planted(instance):
        box = plain(instance)
        box.write("/tmp/site-packages/calc.py", FIXED.encode())
        return box

    monkeypatch.setattr(provider, "open", planted)
    found = preflight([tiny.instance], provider, 1, tmp_path / "logs")
    assert found.quarantined[0].reason == "fixed_copy" and "/tmp/site-packages/calc.py" in found.quarantined[0].detail


def test_a_check_is_kept_by_content(make_provider, tiny, tmp_path):
    provider, store, logs = make_provider("bubblewrap"), Store(tmp_path / "store"), tmp_path / "logs"

    def gradings() -> int:
        return len(list(logs.rglob("verdict.json")))

    first = preflight([tiny.instance], provider, 1, logs, store=store)
    done = gradings()
    assert done == 2 and preflight([tiny.instance], provider, 1, logs, store=store) == first and gradings() == done
    preflight([tiny.instance.model_copy(update={"patch": WRONG})], provider, 1, logs, store=store)
    assert gradings() == done + 1
    preflight([tiny.instance], provider, 2, logs, store=store)
    assert gradings() == done + 4


def test_without_repeats_nothing_is_proved(make_provider, tiny, tmp_path):
    with pytest.raises(BadParams, match="repeats"):
        preflight([tiny.instance], make_provider("bubblewrap"), 0, tmp_path)


def test_the_denominator_names_what_could_not_be_checked():
    found = Preflight(ok=("a",), failed={"b": "the engine is gone"}, repeats=3)
    assert found.denominator.startswith("1 of 2 instances; 1 could not be checked")
