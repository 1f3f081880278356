"""The leak audit: what counts as a verbatim piece of the gold patch."""

import time
from difflib import SequenceMatcher

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protege.expert.audit import changed_lines, leaked_lines, leaks_line, longest_overlap

PATCH = """diff --git a/pkg/mod.py b/pkg/mod.py
--- a/pkg/mod.py
+++ b/pkg/mod.py
@@ -10,5 +10,6 @@ def clamp(value, low, high):
     if low > high:
         raise ValueError("low > high")
-    return min(value, low)
--- old banner
+    floor = max(value, low)
+    return min(floor, high)
+++ counter
 # end
"""


def patch_of(*added: str) -> str:
    body = "".join(f"+{line}\n" for line in added)
    return f"--- a/x.py\n+++ b/x.py\n@@ -0,0 +1,{len(added)} @@\n{body}"


def test_changed_lines_are_counted_by_hunks_not_guessed_from_prefixes():
    added, removed = changed_lines(PATCH)
    assert added == ["floor = max(value, low)", "return min(floor, high)", "++ counter"]
    assert removed == ["return min(value, low)", "-- old banner"]


def test_headers_and_context_are_not_changed_lines():
    assert longest_overlap("pkg/mod.py", PATCH) < len("pkg/mod.py")
    assert longest_overlap('raise ValueError("low > high")', PATCH) < 15


def test_missing_counts_in_a_hunk_header_mean_one_line():
    assert changed_lines("@@ -1 +1 @@\n-a = 1\n+a = 2\n+not part of the hunk") == (["a = 2"], ["a = 1"])


def test_overlap_is_of_one_line_and_survives_reindenting():
    assert longest_overlap("Use\n  `return   min(floor,\n high)` there", PATCH) == len("return min(floor, high)")
    # two neighbouring gold lines together are still measured one line at a time
    both = "floor = max(value, low) return min(floor, high)"
    assert longest_overlap(both, PATCH) == len("floor = max(value, low)")


def test_overlap_counts_removed_lines_and_is_case_sensitive():
    assert longest_overlap("it says return min(value, low)", PATCH) == len("return min(value, low)")
    assert longest_overlap("RETURN MIN(VALUE, LOW)", PATCH) < 5


@pytest.mark.parametrize("reply", ["", "   ", "\n"])
def test_nothing_said_overlaps_nothing(reply):
    assert longest_overlap(reply, PATCH) == 0
    assert not leaks_line(reply, PATCH)


def test_no_patch_overlaps_nothing():
    assert longest_overlap("anything", "") == 0
    assert leaked_lines("anything", "") == []


def test_leak_needs_a_whole_added_line_of_eight_characters():
    assert leaked_lines("write `floor = max(value,  low)` first", PATCH) == ["floor = max(value, low)"]
    assert not leaks_line("write floor = max(value, lo", PATCH)
    assert not leaks_line("return min(value, low) is wrong", PATCH), "a removed line is in the agent's own tree"
    assert not leaks_line("x = 10", patch_of("x = 10"))
    assert leaks_line("xx = 100", patch_of("xx = 100"))


def test_a_bare_keyword_is_english():
    assert not leaks_line("you may continue with the tests", patch_of("    continue"))
    assert leaks_line("you should return None there", patch_of("    return None"))


plain = st.text(alphabet="abc (=", max_size=40)


@settings(deadline=None)
@given(reply=plain, line=plain)
def test_overlap_equals_difflib(reply, line):
    a, b = " ".join(reply.split()), " ".join(line.split())
    expected = SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
    assert longest_overlap(reply, patch_of(line)) == expected


def test_a_large_reply_and_patch_take_well_under_a_second():
    patch = patch_of(*(f"    value_{i} = compute(argument_{i}, other_{i * 7})" for i in range(500)))
    start = time.process_time()
    assert longest_overlap("the value_ " * 2000, patch) == len("value_")
    assert time.process_time() - start < 2.0
