from __future__ import annotations

import pytest

from protege.desk.probe import evaluate
from protege.desk.snippet import Snippet, snippets
from protege.desk.statement import MAX_CHARS, Observed, leaks, write

SNIPPET = Snippet(("from pkg import f",), (), "f(1)", "f")
PATCH = "--- a/pkg/core.py\n+++ b/pkg/core.py\n@@ -1 +1 @@\n-    return value - 1\n+    return value + 1\n"


def observed(buggy: dict, correct: dict, snippet: Snippet = SNIPPET) -> Observed:
    return Observed(snippet, buggy, correct)


def record(function: str, line: int, locals_: dict | None = None, **more: object) -> dict:
    names = {name: {"literal": repr(value)} for name, value in (locals_ or {}).items()}
    return {
        "function": function,
        "line": line,
        "locals": sorted(locals_ or {}),
        "names": names,
        "attributes": {},
        **more,
    }


def test_a_parametrised_test_becomes_a_call_with_its_values():
    source = "from pkg.core import total\n\ndef test_total(values, expected):\n    assert total(values) == expected\n"
    found = snippets(record("test_total", 4, {"values": [1, 2], "expected": 6}), source, ("pkg",))[0]
    assert (found.imports, found.setup, found.final) == (("from pkg.core import total",), (), "total([1, 2])")
    assert found.subject == "total"


def test_earlier_statements_come_along_and_checks_do_not():
    source = (
        "from pkg import Box\n\ndef test_box():\n    box = Box(2)\n    box.put(1)\n    assert box.size == 1\n"
        "    other = 5\n    assert box.pop() == 1\n"
    )
    found = snippets(record("test_box", 8, {"box": None, "other": 5}), source, ("pkg",))[0]
    assert found.setup == ("box = Box(2)", "box.put(1)")
    assert found.final == "box.pop()" and found.subject == "box.pop"


def test_self_attributes_become_public_names():
    source = "class T:\n    def test_a(self):\n        self.assertEqual(self.make(3), 4)\n"
    noted = record("test_a", 3, {"self": None}, attributes={"make": {"module": "pkg.core", "name": "make"}})
    assert snippets(noted, source, ("pkg",))[0].as_input() == {
        "setup": ["from pkg.core import make"],
        "final": "make(3)",
    }


def test_what_only_the_tests_define_makes_no_snippet():
    source = "from tests.helpers import build\n\ndef test_a():\n    assert build(3) == 4\n"
    assert snippets(record("test_a", 4), source, ("pkg",)) == []


def test_the_body_of_raises_is_the_call():
    source = "import pytest\nfrom pkg import f\n\ndef test_a():\n    with pytest.raises(ValueError):\n        f(-1)\n"
    assert snippets(record("test_a", 5), source, ("pkg",))[0].final == "f(-1)"


@pytest.mark.parametrize("seed", range(6))
def test_a_wrong_value_is_told_with_what_was_expected(seed: int):
    text = write(observed({"value": "3"}, {"value": "4"}), seed)
    assert "f(1)" in text and "`3`" in text and "`4`" in text and "from pkg import f" in text
    assert len(text) <= MAX_CHARS


@pytest.mark.parametrize("seed", range(6))
def test_errors_are_told_by_kind_and_message(seed: int):
    text = write(observed({"exception": "KeyError", "message": "'a'"}, {"value": "4"}), seed)
    assert "KeyError" in text.splitlines()[0] and "KeyError: 'a'" in text
    text = write(observed({"value": "4"}, {"exception": "ValueError", "message": "no"}), seed)
    assert "ValueError: no" in text and "`4`" in text


def test_wording_varies_with_the_seed():
    assert len({write(observed({"value": "3"}, {"value": "4"}), seed) for seed in range(20)}) > 5


def test_equal_or_unsteady_outcomes_tell_nothing():
    assert not observed({"value": "4"}, {"value": "4"}).telling
    assert not observed({"value": "<f at 0x7f>"}, {"value": "<f at 0x8f>"}).telling
    assert not observed({"setup": False, "exception": "E", "message": ""}, {"value": "4"}).telling
    assert observed({"value": "3"}, {"value": "4"}).telling


def test_long_values_are_cut_around_the_difference():
    text = write(observed({"value": "a" * 500 + "X" + "b" * 500}, {"value": "a" * 500 + "Y" + "b" * 500}), 1)
    assert len(text) < 700 and "X" in text and "Y" in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I think return   value + 1 is right", "changed line"),
        ("it was return value - 1", "changed line"),
        ("see test_total", "hidden test"),
        ("see test_core.py", "hidden test"),
        ("in pkg/core.py", "file or line"),
        ("at line 12", "file or line"),
        ("x" * (MAX_CHARS + 1), "longer"),
    ],
)
def test_leaks_are_found(text: str, why: str):
    assert why in leaks(text, patch=PATCH, tests=["tests/test_core.py::test_total[1]"], path="pkg/core.py")


def test_an_honest_statement_passes():
    text = write(observed({"value": "3"}, {"value": "4"}), 1)
    assert leaks(text, patch=PATCH, tests=["tests/test_core.py::test_total"], path="pkg/core.py") is None


def test_the_probe_tells_values_errors_and_broken_set_ups_apart():
    assert evaluate({"setup": ["x = 2"], "final": "x + 1"})["value"] == "3"
    assert evaluate({"setup": [], "final": "{}['a']"}) == {"exception": "KeyError", "message": "'a'"}
    assert evaluate({"setup": ["1 / 0"], "final": "1"})["setup"] is False
