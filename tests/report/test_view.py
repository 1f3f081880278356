"""What is shown: whose failure it was, runs, the reward's terms, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from protege.config import RewardParams
from protege.errors import BadInput
from protege.report.inspect.model import View, result_of, view
from protege.report.inspect.pages import open_context
from protege.report.inspect.sources import Context, Record, read
from protege.report.inspect.text import file_name, shown, visible
from tests.helpers import make_verdict
from tests.report.samples import INSTANCE, folder, hostile, looping, lost, trajectory

ROOT = Path(__file__).parents[2]
CONTEXT = Context(rows={INSTANCE.instance_id: INSTANCE})


def seen(made, path: str = "data/evaluation/rl-oracle/trajectories/x.json", context: Context = CONTEXT) -> View:
    return view(Record(made, Path(path)), context)


def test_the_infrastructures_failure_and_the_agents_are_never_the_same() -> None:
    assert [result_of(t) for t in (lost(), looping(), trajectory("t"))] == [
        "infrastructure",
        "unresolved",
        "not graded",
    ]
    assert result_of(trajectory("t", verdict=make_verdict(True))) == "resolved"
    late = trajectory(
        "t", verdict=make_verdict(True), failure=lost().failure
    )  # grading failed after an earlier verdict
    assert result_of(late) == "infrastructure"
    assert seen(lost()).headline.startswith("Failed: the infrastructure's")
    assert seen(lost()).reason == "sandbox: SandboxOutOfMemory: killed at 1024 MB (3 attempts)"
    assert seen(looping()).headline.startswith("Unresolved: the agent's")


def test_runs_are_marked_at_their_turns() -> None:
    v = seen(looping())
    assert [(r.base, r.first, r.last, r.loops) for r in v.runs][:2] == [
        ("navigate", 0, 11, True),
        ("(malformed)", 12, 12, False),
    ]
    assert v.looped and v.longest_run == 12 and [s.run.length for s in v.steps] == [12] * 12 + [1] * 3
    assert not seen(looping(), context=Context(longer_than=12)).looped
    assert [s.expert.follow for s in v.steps if s.expert] == [0.2]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        looping,
        lambda: trajectory("t", verdict=make_verdict(True)),
        lambda: trajectory("t", verdict=make_verdict(False), patch=""),
    ],
)
def test_what_the_terms_add_is_the_total(make, stage) -> None:
    context = Context(rows=CONTEXT.rows, reward=RewardParams(k_first=3, lambda_loop=0.2))
    context.logged.values[Path("data/rl"), make().trajectory_id] = (stage, 0.25)
    r = seen(make(), "data/rl/trajectories/x.json", context).breakdown
    assert r is not None and r.stage == stage and r.logged == 0.25
    assert sum(item.adds for item in r.items if item.adds is not None) == pytest.approx(r.reward.total)
    assert sum(item.value for item in r.items if item.part) == pytest.approx(r.reward.expert)


def test_what_has_no_reward_says_why() -> None:
    assert "masked" in seen(lost()).no_breakdown and "verdict" in seen(trajectory("t")).no_breakdown
    without = seen(looping(), context=Context())
    assert without.gold_patch is None and without.breakdown is None and "--instances" in without.no_gold
    other = looping().model_copy(update={"instance_digest": "other"})
    assert "another content" in seen(other).no_gold and seen(other).gold_patch is None


def test_the_commands_that_are_shown_exist() -> None:
    from typer.testing import CliRunner

    from protege.cli.main import app

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    shown_ = [c.command for t in (looping(), lost()) for c in seen(t).commands]
    assert len(shown_) == 4
    for command in shown_:
        words = command.split()
        if words[0] == "dvc":
            assert words[1:4] == ["repro", "--force", "--single-item"] and words[4] in stages
        else:
            assert words[0] == "protege"
            answer = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"})
            assert answer.exit_code == 0 and all(word in answer.output for word in words[3:]), command


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "the file: "),
        ('{"a": 1}', "a: Extra"),
        ('{"trajectory_id": "x", "turns": 3}', "turns: "),
        ('{"trajectory_id": "x"}', "instance_id: Field required"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, text, said) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_material_comes_from_beside_the_trajectories(tmp_path, monkeypatch) -> None:
    data = folder(tmp_path)
    (tmp_path / "params.yaml").write_text("reward: {k_first: 4}\n")
    context = open_context(data / "evaluation" / "rl-oracle")
    assert context.reward.k_first == 4 and context.gold(looping())[0] == INSTANCE.patch
    (data / "instances" / "rl.jsonl").write_text("{\n")
    assert "rl.jsonl, row 1: not JSON" in open_context(data).problems[0]
    with pytest.raises(BadInput, match="none.jsonl does not exist"):
        open_context(data, instances=[tmp_path / "none.jsonl"])


def test_a_broken_log_of_rewards_does_not_hide_a_trajectory(tmp_path) -> None:
    path = looping().save(tmp_path / "rl" / "trajectories")
    (tmp_path / "rl" / "rewards.jsonl").write_text('{"trajectory_id": "loop.rl-oracle", "stage": 1, "total": 0.5}\n{\n')
    context = Context(rows=CONTEXT.rows)
    v = view(read(path), context)
    assert v.breakdown is not None and "rewards.jsonl, line 2" in v.notes[0]


def test_hidden_characters_are_shown_and_long_texts_cut() -> None:
    assert visible("a\x1b]0;t\x07\x00\x9b\u202e\u200b\tb\n") == "a␛]0;t␇␀‹U+009B›‹U+202E›‹U+200B›\tb\n"
    assert shown("x" * 50, 20) == "x" * 20 + "\n[30 further characters are in the file only]"
    for name in ("../../etc/passwd", ".hidden", "a/b", "", "-rf", "x" * 300, hostile().trajectory_id):
        made = file_name(name)
        assert made == Path(made).name and not made.startswith((".", "-")) and len(made) < 220 and made.isascii()
