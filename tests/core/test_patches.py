from protege.core.patches import changes, enclosing_function
from tests.helpers import GOLD


def test_one_change():
    (change,) = changes(GOLD)
    assert change.path == "calc/core.py" and change.line == 3
    assert change.removed == ["    result = first + second"]
    assert change.added == ["    result = first - second"]
    assert enclosing_function(change) == "difference"


def test_runs_within_a_hunk_are_told_apart():
    patch = "--- a/x.py\n+++ b/x.py\n@@ -10,5 +10,6 @@ def outer():\n a\n-b\n+B\n c\n+new\n d\n e\n"
    first, second = changes(patch)
    assert (first.line, first.removed, first.added, first.after) == (11, ["b"], ["B"], ["c"])
    assert (second.line, second.removed, second.added, second.before) == (13, [], ["new"], ["c"])
    assert enclosing_function(second) == "outer"


def test_files_are_told_apart_and_dashes_in_code_are_lines():
    patch = "--- a/x\n+++ b/x\n@@ -1,2 +1,1 @@\n-gone\n k\n--- a/y\n+++ b/y\n@@ -1 +1 @@\n-1\n+2\n"
    assert [(c.path, c.removed, c.added) for c in changes(patch)] == [("x", ["gone"], []), ("y", ["1"], ["2"])]


def test_a_removed_sql_comment_and_an_added_plus_plus_are_lines():
    patch = "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n--- note\n+++ note\n k\n"
    (change,) = changes(patch)
    assert (change.path, change.removed, change.added, change.after) == ("x.py", ["-- note"], ["++ note"], ["k"])
