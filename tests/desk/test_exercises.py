"""Edit exercises: the teacher's edit gives the original back, and what the rows hold can be trained on."""

from __future__ import annotations

import json

import pytest

from protege.agent.tools import OBSERVATION_PREFIX, parse_call
from protege.config import ExercisesParams
from protege.desk.conversation import load_rows, rows, save_rows
from protege.desk.modifiers import Candidate
from protege.desk.rehearse import bugs, rehearse
from protege.errors import BadInput
from protege.train.sft import with_renamed

ORIGINAL = '''"""Clocks."""


def add(hours, minutes):
    total = hours * 60
    total = total + minutes
    if total > 1440:
        total = total % 1440
    return total


def twice(minutes):
    total = minutes
    total = total + minutes
    return total
'''


def candidate(old: str, new: str, number: int = 0, **changes: object) -> Candidate:
    assert ORIGINAL.count(old) >= 1
    values = {
        "candidate_id": f"clocks__1.bug__{number}",
        "package": "clocks",
        "version": "1",
        "modifier": "bug",
        "path": "clocks/core.py",
        "entity": "add",
        "original": ORIGINAL,
        "buggy": ORIGINAL.replace(old, new, 1),
        "changed_lines": 2,
    } | changes
    return Candidate(**values)


@pytest.mark.parametrize(
    ("old", "new", "command"),
    [
        ("hours * 60", "hours + 60", "str_replace"),
        ("    total = total + minutes\n", "", "insert"),
        ("    total = total + minutes\n", "    total = total - minutes\n", "str_replace"),
        ("    if total > 1440:\n        total = total % 1440\n", "", "insert"),
        ("        total = total % 1440\n", "        pass\n", "str_replace"),
    ],
)
def test_the_edit_gives_the_original_back(old, new, command):
    exercise = rehearse(candidate(old, new), max_overlap_chars=20, observation_chars=1200, seed=1)
    calls = [parse_call(text) for text, _ in exercise.said]
    assert [call.arguments["command"] for call in calls] == ["view", command]
    assert "clocks/core.py" in exercise.advice and "/testbed/clocks/core.py" in calls[-1].arguments["path"]
    assert "has been edited" in exercise.said[-1][1]


def test_a_line_that_stands_twice_is_told_apart_by_its_neighbours():
    exercise = rehearse(candidate("    total = minutes\n", "    total = total + minutes\n"), 20, 1200, seed=1)
    assert "Multiple occurrences" in exercise.said[-2][1] and "has been edited" in exercise.said[-1][1]


def test_what_words_cannot_say_is_no_exercise():
    long = ORIGINAL.replace("return total", "return 'a constant of more than twenty characters'", 1)
    one = candidate("return total", "return None", original=long)
    assert rehearse(one, 20, 1200, seed=1) is None
    said = candidate("return total", "return None")
    assert rehearse(said, 20, 1200, seed=1) is not None
    assert rehearse(candidate("hours * 60", "hours + 60", entity="hours * 60"), 8, 1200, seed=1) is None, "a quotation"


def test_bugs_take_turns_and_keep_away():
    found = {
        "a": [candidate("* 60", "+ 60", n, package="a") for n in range(3)],
        "b": [candidate("* 60", "+ 60", n, package="b", entity="held") for n in range(3)]
        + [candidate("* 60", "+ 60", 9, package="b")],
    }
    away = {("b", "clocks/core.py", "held")}
    picked = list(bugs(found, away, 10))
    assert [(c.package, c.candidate_id[-1]) for c in picked] == [("a", "0"), ("b", "9"), ("a", "1"), ("a", "2")]
    assert len(list(bugs(found, away, 2))) == 2


def exercises(count: int):
    return [rehearse(candidate("* 60", f"* {n}", n), 20, 1200, seed=n) for n in range(count)]


def test_rows_are_conversations_that_end_with_an_edit(tmp_path):
    made = rows(exercises(10), ExercisesParams(count=10, per_row=4, renamed=0.5), "Be careful.")
    assert [len(row.sources) for row in made] == [4, 4, 2]
    for row in made:
        roles = [message["role"] for message in row.messages]
        assert roles == ["system", *(["user", "assistant"] * (len(roles) // 2))]
        assert parse_call(row.messages[-1]["content"]).arguments["command"] == "str_replace"
        assert all(OBSERVATION_PREFIX in m["content"] for m in row.messages if m["role"] == "user")
    again = rows(exercises(10), ExercisesParams(count=10, per_row=4, renamed=0.5), "Be careful.")
    assert made == again and load_rows(save_rows(tmp_path / "e.jsonl", made)) == made
    text = json.dumps([row.messages for row in made])
    assert "clocks" in text
    renamed = json.dumps([r.messages for r in rows(exercises(10), ExercisesParams(count=10, renamed=1), "")])
    assert "clocks" not in renamed


def test_a_broken_row_is_named(tmp_path):
    path = save_rows(tmp_path / "e.jsonl", rows(exercises(1), ExercisesParams(), ""))
    path.write_text(path.read_text() + '{"row_id": "x"}\n')
    with pytest.raises(BadInput, match=r"e\.jsonl, line 2: .*run the stage 'trajectories' again"):
        load_rows(path)
    assert load_rows(tmp_path / "none.jsonl") == []


def test_exercises_are_not_copied_under_other_names():
    chat = rows(exercises(1), ExercisesParams(renamed=0), "")[0].messages
    table = [
        {"instance_id": "i", "trajectory_id": "t", "messages": chat},
        {"instance_id": "", "trajectory_id": "exercises-0000", "messages": chat},
    ]
    assert [row["trajectory_id"] for row in with_renamed(table, 2, 1)] == ["t", "exercises-0000", "t~1", "t~2"]
