import itertools
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protege.core.loops import base_command, longest_run, loop_share, run_lengths, runs, survival
from tests.helpers import make_trajectory, make_turn


@pytest.mark.parametrize(
    ("command", "base"),
    [
        ("ls -la", "navigate"),
        ("PYTHONPATH=. LANG=C python -m pytest", "python"),
        ("cd /testbed && python x.py", "python"),
        ("cd /testbed; git -C . diff --stat", "git diff"),
        ("git --no-pager log", "git log"),
        ("git", "git"),
        ("pip install x", "pip install"),
        ("cat a.py | python -", "navigate"),
        ("python a.py | tail -n 3", "python"),
        ("python a.py || true", "true"),
        ("sed -n 1,5p a.py", "navigate"),
        ("sed -i s/a/b/ a.py", "sed"),
        ("/usr/bin/grep -rn x .", "navigate"),
        ("echo 'a && b'", "echo"),
        ("echo 'unbalanced", "echo"),
        ("python - <<'EOF'\nimport os; os.getcwd()\nprint(1)\nEOF", "python"),
        ("python - <<'EOF'\nx\nEOF\nls", "navigate"),
        ("A=1", "(empty)"),
        ("", "(empty)"),
        ("make test &", "make test"),
        ("/", "/"),
        ("''", "(empty)"),
    ],
)
def test_base_command_of_bash(command, base):
    assert base_command("bash", {"command": command}) == base


def test_base_command_of_other_tools():
    assert base_command("str_replace_editor", {"command": "view"}) == "navigate"
    assert base_command("str_replace_editor", {"command": "insert"}) == "str_replace_editor insert"
    assert base_command("ask_expert", {"query": "x"}) == "ask_expert"
    assert base_command(None, {}) == "(malformed)"


words = st.sampled_from(["ls", "python a.py", "git status", "grep x y", "make"])


@given(st.lists(words, max_size=40))
def test_runs_partition_the_steps_into_maximal_pieces(commands):
    trajectory = make_trajectory([make_turn(i, "bash", command=c) for i, c in enumerate(commands)])
    found = runs(trajectory)
    assert sum(length for _, length in found) == len(commands)
    assert all(a[0] != b[0] for a, b in itertools.pairwise(found))
    assert longest_run(trajectory) == max(run_lengths(trajectory), default=0)


@given(words, st.lists(st.from_regex(r"[A-Z]{1,4}=[a-z0-9]{0,5}", fullmatch=True), max_size=3))
def test_assignments_and_earlier_subcommands_do_not_change_the_base(command, assignments):
    base = base_command("bash", {"command": command})
    assert base_command("bash", {"command": " ".join([*assignments, command])}) == base
    assert base_command("bash", {"command": f"true && {command}"}) == base


@given(st.text(max_size=200))
def test_any_text_has_a_base_command(text):
    assert base_command("bash", {"command": text})
    assert base_command("bash", {"command": f"echo {shlex.quote(text)}"}) == "echo"


def test_loop_share_counts_runs_longer_than_the_limit_only():
    def looping(n):
        return make_trajectory([make_turn(i, "bash", command="ls") for i in range(n)])

    assert loop_share([looping(10), looping(11)], 10) == 0.5
    assert loop_share([]) == 0.0
    curve = survival([looping(2), looping(4)], up_to=5)
    assert curve == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("command", "base"),
    [
        ("git status 2>&1", "git status"),
        ("pytest -q &> out", "pytest"),
        ("pytest -q >out 2>&1 && git diff >> log", "git diff"),
        ("2>/dev/null python x.py", "python"),
        ("python x.py < in.txt | tail 2>&1", "python"),
        ("python - <<'EOF'\nprint(1 > 2)\nEOF", "python"),
        ("make test 2>&1; echo done >&2", "echo"),
        ("sleep 5 & python x.py", "python"),
    ],
)
def test_a_redirection_separates_nothing(command, base):
    assert base_command("bash", {"command": command}) == base
