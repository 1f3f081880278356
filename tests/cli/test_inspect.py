"""``protege inspect``: files, folders and ids; page, terminal and JSON; one clear line for bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from protege.cli.main import app
from protege.config import SandboxParams
from protege.report.inspect.replay import differences, rerun
from protege.sandbox.bubblewrap import BubblewrapProvider
from tests.helpers import make_testbed
from tests.report.samples import INSTANCE, folder, looping

LOOP = "data/evaluation/rl-oracle/trajectories/loop.rl-oracle.json"


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, **options):
    return CliRunner().invoke(app, ["inspect", *arguments], catch_exceptions=False, **options)


def test_a_file_becomes_one_page_and_its_path_is_printed(here) -> None:
    answer = call(LOOP)
    assert answer.exit_code == 0 and answer.output == "data/inspect/loop.rl-oracle.html\n"
    text = (here / answer.output.strip()).read_text()
    assert "The expert “oracle” has seen the gold patch." in text and text.count("has seen the gold patch") == 3
    assert "look at the sign" in text and "result = first - second" in text
    assert call(LOOP, "--out", "mine.html").output == "mine.html\n" and (here / "mine.html").is_file()


def test_a_folder_becomes_an_index_with_failures_first(here) -> None:
    answer = call("data/evaluation", "--out", "pages")
    assert answer.output == "pages/index.html\n"
    text = (here / "pages/index.html").read_text()
    positions = [
        text.index(f'data-result="{name}"') for name in ("infrastructure", "not graded", "unresolved", "resolved")
    ]
    assert positions == sorted(positions) and text.count("<tr data-result") == 5
    assert len(list((here / "pages").rglob("*.html"))) == 6


def test_a_file_of_the_folder_that_cannot_be_read_is_named(here) -> None:
    (here / "data/evaluation/rl-none/trajectories/bad.json").write_text(
        '{"trajectory_id": "bad", "instance_id": "i", "turns": 3}'
    )
    answer = call("data/evaluation", "--out", "pages")
    assert answer.exit_code == 0 and "bad.json is not a trajectory: turns" in answer.stderr
    assert "Not shown: data/evaluation/rl-none/trajectories/bad.json" in (here / "pages/index.html").read_text()


def test_an_id_is_looked_up(here) -> None:
    assert call("loop.rl-oracle").output == "data/inspect/loop.rl-oracle.html\n"
    several = call(INSTANCE.instance_id)
    assert several.exit_code == 1 and several.stdout == ""
    assert "5 trajectories" in several.stderr and f"{LOOP}  unresolved, rl + oracle, 15 steps" in several.stderr
    assert "infrastructure (sandbox: SandboxOutOfMemory" in several.stderr
    every = call(INSTANCE.instance_id, "--all")
    assert every.exit_code == 0 and every.output.strip().endswith("/index.html")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no trajectory or instance of that id"),
        (["loop.rl-orcale"], "do you mean loop.rl-oracle?"),
        (["nowhere/x.json"], "does not exist"),
        (["data/instances"], "no trajectory in data/instances"),
        (["data/instances/eval.jsonl"], "is not a trajectory"),
        ([LOOP, "--params", "none.yaml"], "no none.yaml"),
        ([LOOP, "--instances", "none.jsonl"], "none.jsonl does not exist"),
        (["data", "--out", "x.html"], "should be a folder"),
        (["data", "--replay"], "is for one trajectory"),
        ([""], "give a trajectory file"),
        (["x" * 300], "no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_1(here, arguments, said) -> None:
    answer = call(*arguments)
    assert answer.exit_code == 1 and answer.stdout == ""
    assert said in answer.stderr and answer.stderr.count("\n") == 1


def test_a_page_that_cannot_be_written_is_an_infrastructure_failure(here) -> None:
    answer = call(LOOP, "--out", f"{LOOP}/x.html")
    assert answer.exit_code == 3 and "cannot be written: a file stands where a folder belongs" in answer.stderr


def test_two_forms_at_once_are_a_usage_error(here) -> None:
    assert call(LOOP, "--json", "-t").exit_code == 2


def test_json_holds_what_is_shown(here) -> None:
    value = json.loads(call(LOOP, "--json").output)
    assert value["result"] == "unresolved" and value["looped"] and value["breakdown"]["stage"] == 2
    assert value["steps"][13]["expert"]["warrant"] == 0.9 and value["runs"][0]["length"] == 12
    rows = json.loads(call("data/evaluation", "--json").output)
    assert {row["result"] for row in rows} == {"infrastructure", "not graded", "unresolved", "resolved"}


def test_the_terminal_view_obeys_no_text_and_no_color(here, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = call("data/evaluation/rl-none/trajectories/hostile.json", "-t", "--full").output
    assert (
        "\x1b[31m\x00" not in text
        and "\x00" not in text
        and "\x07" not in text
        and "\u202e" not in text
        and "␛[31m" in text
    )
    assert "\x1b[" in text  # our own colours
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in call(LOOP, "-t").output
    monkeypatch.delenv("FORCE_COLOR")
    text = call(LOOP, "-t").output
    assert "\x1b" not in text and "a loop" in text and "look at the sign" in text and "FAIL_TO_PASS" in text
    text = call("data/evaluation", "-t").output
    assert "\x1b" not in text and "\x00" not in text and "␛[31m" in text
    lines = text.splitlines()
    assert len(lines) == 6
    assert lines[0].split("\t")[0] == "result" and [line.split("\t")[0] for line in lines[1:3]] == [
        "infrastructure",
        "not graded",
    ]


def test_replaying_says_what_differs(tmp_path) -> None:
    provider = BubblewrapProvider(SandboxParams(), make_testbed(tmp_path, INSTANCE.instance_id))
    from protege.config import AgentParams
    from tests.agent.test_agent import say

    recorded = looping().model_copy(update={"turns": []})
    messages = [
        say("bash", command="wc -l < calc/core.py"),
        say("ask_expert", query="q"),
        say("ask_expert", query=""),
        say("submit"),
    ]
    turns = [
        looping().turns[0].model_copy(update={"index": i, "message": m, "observation": ""})
        for i, m in enumerate(messages)
    ]
    calls = [looping().expert_calls[0].model_copy(update={"turn": 1, "reply": "look"})]
    calls += [calls[0].model_copy(update={"turn": 2, "answered": False, "query": "", "reply": "No query."})]
    draft = recorded.model_copy(update={"turns": turns, "expert_calls": calls, "patch": ""})
    first = rerun(draft, INSTANCE, provider, AgentParams(expert_quota=0), 30)
    assert next(t.observation for t in first.turns) == "4" and "look" in first.turns[1].observation
    assert first.turns[2].observation == "No query." and first.exit_status == "submitted"
    assert differences(first, rerun(first, INSTANCE, provider, AgentParams(), 30)) == [
        "every observation as recorded; patch as recorded"
    ]
    changed = first.model_copy(
        update={"turns": [first.turns[0].model_copy(update={"observation": "5"}), *first.turns[1:]]}
    )
    said = differences(changed, rerun(first, INSTANCE, provider, AgentParams(), 30))
    assert (
        said[0] == "turn 1: recorded 5" and said[1].split() == ["now", "4"] and said[-1].startswith("4 turns replayed")
    )


def test_the_command_starts_without_heavy_imports() -> None:
    code = "import sys, protege.cli.commands.inspect, protege.report.inspect.show; print({'torch', 'docker', 'swebench', 'rich.table'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
