"""Patches that would leave the repository, by whichever of the harness's four ways of applying them."""

from __future__ import annotations

import shutil
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protege.grading.grade import grade
from protege.sandbox.patches import MAX_PATCH_BYTES, patch_problem, sections
from tests.adversarial.attack import diff_of, git
from tests.sandbox.tiny import GOLD

HUNK = "@@ -0,0 +1 @@\n+owned\n"
LINK = "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/\n\\ No newline at end of file\n"
ESCAPES = {
    "dots": f"--- /dev/null\n+++ b/../owned\n{HUNK}",
    "dots in git's line only": "diff --git a/../owned b/../owned\nnew file mode 100644\n",
    "absolute": f"--- /dev/null\n+++ /owned\n{HUNK}",
    "through a new link": f"{LINK}diff --git a/l/owned b/l/owned\nnew file mode 100644\n--- /dev/null\n+++ b/l/owned\n{HUNK}",
    "rename out": "diff --git a/calc.py b/../calc.py\nsimilarity index 100%\nrename from calc.py\nrename to ../calc.py\n",
    "submodule": "diff --git a/s b/s\nnew file mode 160000\n--- /dev/null\n+++ b/s\n@@ -0,0 +1 @@\n+Subproject commit "
    + "1" * 40 + "\n",
    "git hook": f"diff --git a/.git/hooks/post-checkout b/.git/hooks/post-checkout\nnew file mode 100755\n--- /dev/null\n+++ b/.git/hooks/post-checkout\n{HUNK}",
    "set-uid": f"diff --git a/owned b/owned\nnew file mode 104755\n--- /dev/null\n+++ b/owned\n{HUNK}",
    "device": "diff --git a/owned b/owned\nnew file mode 020666\n",
    "binary": "diff --git a/x.so b/x.so\nnew file mode 100644\nindex 0000000..1111111\nGIT binary patch\nliteral 3\nKcmZQzfB*ml\n\nliteral 0\nHcmV?d00001\n",
    "ed script": "Index: calc.py\n1,2c\nimport os\n.\nw\nq\n",
    "context diff": "*** a/calc.py\n--- b/calc.py\n***************\n*** 1,1 ****\n! a\n--- 1,1 ----\n! b\n",
    "normal diff": "Index: calc.py\n1c1\n< def add(a, b):\n---\n> def add(a, c):\n",
    "over 1 MB": "--- /dev/null\n+++ b/big.txt\n@@ -0,0 +1 @@\n+" + "x" * MAX_PATCH_BYTES + "\n",
    "carriage return": f"--- /dev/null\r\n+++ b/../owned\r\n{HUNK}",
    "quoted": '--- /dev/null\n+++ "b/\\056\\056/owned"\n' + HUNK,
}  # fmt: skip


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES.keys())
@pytest.mark.parametrize("order", [0, 1])
def test_no_part_of_an_escaping_patch_is_applied(make_provider, tiny, tmp_path, escape, order):
    """Whether it comes before or after the honest part: the whole patch counts as unresolved, and nothing is run."""
    patch = (escape + GOLD, GOLD + escape)[order]
    assert patch_problem(patch)
    verdict = grade(tiny.instance, patch, make_provider("bubblewrap"), log_dir=tmp_path)
    assert not verdict.resolved and not verdict.applied and "rejected" in verdict.reason and verdict.backend == "none"


def test_an_existing_link_is_not_followed_out(make_provider, tiny, tmp_path):
    """The repository itself may hold a link; a patch for a file behind it must not be written through it."""
    plain = make_provider("bubblewrap")
    shutil.copytree(tiny.testbeds.parent / "testbed", tmp_path / "testbed")
    (tmp_path / "testbed" / "out").symlink_to("/tmp")
    git(tmp_path / "testbed", "add", "out")
    git(tmp_path / "testbed", "commit", "-qm", "a link")
    commit, row = git(tmp_path / "testbed", "rev-parse", "HEAD"), tiny.instance
    script = row.eval_script.replace(row.base_commit, commit)
    script = script.replace(": '>>>>> Start", "ls -l /testbed; cat /tmp/owned\n: '>>>>> Start")
    row = row.model_copy(update={"eval_script": script, "base_commit": commit})
    (tmp_path / "beds").mkdir()
    with tarfile.open(tmp_path / "beds" / f"{row.instance_id}.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "testbed", "testbed")
    provider = type(plain)(plain.params, tmp_path / "beds", tiny.site)
    behind = f"diff --git a/out/owned b/out/owned\nnew file mode 100644\n--- /dev/null\n+++ b/out/owned\n{HUNK}"
    assert not grade(row, behind + GOLD, provider, log_dir=tmp_path / "logs").applied
    # applied in part by `patch`, after git has refused: a fuzzy context that only `patch` takes
    fuzzy = GOLD.replace(" def add(a, b):\n", " def add(a,  b):\n")
    verdict = grade(row, fuzzy, provider, log_dir=tmp_path / "logs")
    assert verdict.applied and "out -> /tmp" in "".join(p.read_text() for p in tmp_path.rglob("test_output.txt"))
    grade(row, fuzzy + behind, provider, log_dir=tmp_path / "logs")
    assert not any("owned" in p.read_text().splitlines() for p in tmp_path.rglob("test_output.txt"))


def test_text_that_hides_a_header_in_a_hunk_is_read_as_git_reads_it(tiny):
    hidden = diff_of(tiny, {"notes.txt": "--- a/conftest.py\n+++ b/conftest.py\n@@ -1 +1 @@\n"})
    assert [sorted(p for p in part.paths if "/" not in p) for part in sections(hidden)] == [["notes.txt"]]


def test_sections_name_both_ends_of_a_rename():
    rename = "diff --git a/x.py b/conftest.py\nsimilarity index 100%\nrename from x.py\nrename to conftest.py\n"
    (part,) = sections(rename)
    assert {"x.py", "conftest.py"} <= part.paths and part.creates


def test_sections_of_a_diff_without_gits_lines():
    two = "--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\n--- a/conftest.py\n+++ b/conftest.py\n@@ -1 +1 @@\n-a\n+b\n"
    first, second = sections(two)
    assert "x.py" in first.paths and "conftest.py" not in first.paths and "conftest.py" in second.paths


@given(st.text(alphabet=st.sampled_from('+-@ \n\r\\"/.abdifg0123,'), max_size=300))
def test_sections_lose_nothing(text):
    assert "".join(part.text for part in sections(text)) == text
    assert isinstance(patch_problem(text), str)
