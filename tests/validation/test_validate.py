"""Every expectation with a trajectory that violates it, and what is on disk afterwards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from protege.agent.tools import OBSERVATION_PREFIX
from protege.config import ValidateParams
from protege.core.instance import Instance
from protege.core.trajectory import (
    ExpertCall,
    Failure,
    Identity,
    Message,
    ToolCall,
    Trajectory,
    Turn,
    Verdict,
    patch_digest,
)
from protege.desk.conversation import ExerciseRow, Source, save_rows
from protege.errors import BadInput, ValidationFailed
from protege.files import digest_tree
from protege.validation import flatten, token_counter, validate
from protege.validation.expectations import run_suites, suites
from protege.validation.table import COLUMNS

GOLD = """--- a/pkg/mod.py
+++ b/pkg/mod.py
@@ -1,2 +1,2 @@
 def clamp(value, low, high):
-    return min(value, low)
+    return max(low, min(value, high))
"""


def make_instance(instance_id: str = "pkg__1", package: str = "pkg", split: str = "sft") -> Instance:
    return Instance.from_row(
        {
            "instance_id": instance_id,
            "repo": f"desk/{package}",
            "base_commit": "c0ffee",
            "problem_statement": "clamp(5, 0, 3) gives 0 where 3 is expected.",
            "patch": GOLD,
            "test_patch": "",
            "FAIL_TO_PASS": ["tests/test_mod.py::test_clamp"],
            "PASS_TO_PASS": [],
            "image": "none",
            "eval_script": "true",
            "log_parser": "pytest",
            "package": package,
            "split": split,
        }
    )


def make_trajectory(name: str = "t1", instance: Instance | None = None, thought: str = "", **changes) -> Trajectory:
    instance = instance or make_instance()
    calls = [
        ToolCall(name="bash", arguments={"command": "ls"}),
        ToolCall(name="ask_expert", arguments={"query": "where is it?"}),
        ToolCall(name="submit"),
    ]
    observations = ["pkg tests", "<expert_llm_guidance>look at clamp</expert_llm_guidance>", "submitted"]
    turns = [
        Turn(
            index=i, message=f"{thought or name} {i}\n<function={call.name}>\n</function>", call=call, observation=seen
        )
        for i, (call, seen) in enumerate(zip(calls, observations, strict=True))
    ]
    verdict = Verdict(
        instance_id=instance.instance_id,
        instance_digest=instance.digest,
        patch_digest=patch_digest(GOLD),
        resolved=True,
        applied=True,
        fail_to_pass=(1, 1),
    )
    trajectory = Trajectory(
        trajectory_id=name,
        instance_id=instance.instance_id,
        instance_digest=instance.digest,
        repo=instance.repo,
        policy=Identity(name="scripted", digest="d", kind="teacher"),
        expert=Identity(name="oracle", digest="d", kind="oracle", sees_gold=True),
        seed=1,
        messages=[Message(role="system", content="You fix bugs."), Message(role="user", content="Fix clamp.")],
        turns=turns,
        expert_calls=[ExpertCall(turn=1, query="where is it?", reply="look at clamp", completion_tokens=4)],
        exit_status="submitted",
        patch=GOLD,
        verdict=verdict,
    )
    return trajectory.model_copy(update=changes)


class Workspace:
    """Folders as the pipeline lays them out, under a temporary root."""

    def __init__(self, root: Path) -> None:
        self.trajectories = root / "trajectories" / "sft"
        self.instances = root / "instances"
        self.out = root / "validation"
        self.train = root / "sft" / "train.parquet"
        self.trajectories.mkdir(parents=True)
        self.instances.mkdir()
        self.write_rows("sft", make_instance(), make_instance("pkg__2"))
        self.write_rows("eval", make_instance("held__1", "held", "eval"))

    def write_rows(self, split: str, *instances: Instance) -> None:
        (self.instances / f"{split}.jsonl").write_text("".join(json.dumps(i.to_row()) + "\n" for i in instances))

    def add(self, *trajectories: Trajectory) -> None:
        for trajectory in trajectories:
            trajectory.save(self.trajectories)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def words(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def run(workspace: Workspace, max_length: int = 1000, **params):
    values = {"max_overlap_chars": 20, "min_kept": 1} | params
    return validate(
        workspace.trajectories,
        workspace.instances,
        workspace.out,
        workspace.train,
        ValidateParams(**values),
        words,
        max_length,
    )


def with_turn(trajectory, position, /, **changes):
    turns = list(trajectory.turns)
    turns[position] = turns[position].model_copy(update=changes)
    return trajectory.model_copy(update={"turns": turns})


def with_reply(trajectory, reply):
    return trajectory.model_copy(update={"expert_calls": [ExpertCall(turn=1, query="?", reply=reply)]})


def unresolved(trajectory, **changes):
    verdict = trajectory.verdict.model_copy(update={"resolved": False, "fail_to_pass": (0, 1)})
    return trajectory.model_copy(update={"verdict": verdict} | changes)


def test_kept_trajectories_become_the_dataset_with_the_whole_conversation(workspace):
    failed = make_trajectory(
        "t3", exit_status="infrastructure", verdict=None, patch="", messages=[], turns=[], expert_calls=[]
    )
    failed = failed.model_copy(update={"failure": Failure(boundary="sandbox", error="SandboxDied", message="gone")})
    workspace.add(make_trajectory("t1"), unresolved(make_trajectory("t2")), failed)
    result = run(workspace)
    assert result.success and not result.failed
    [row] = pq.read_table(workspace.train).to_pylist()
    assert (row["instance_id"], row["trajectory_id"]) == ("pkg__1", "t1")
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    assert row["messages"][3] == {"role": "user", "content": OBSERVATION_PREFIX + "pkg tests"}
    assert row["messages"][-1]["content"].endswith("<function=submit>\n</function>")
    assert result.metrics["n"] == 3 and result.metrics["kept"] == 1
    assert result.metrics["exit_submitted"] == 2 and result.metrics["exit_infrastructure"] == 1
    assert result.metrics["kept_expert_calls_mean"] == 1 and result.metrics["kept_tokens_max"] == words(row["messages"])


def bad(name: str = "bad"):
    return make_trajectory(name)


VIOLATIONS = {
    "context": lambda: with_turn(bad(), 0, message="word " * 1000 + "<function=bash>\n</function>"),
    "several calls": lambda: with_turn(bad(), 0, message="<function=bash></function><function=submit></function>"),
    "malformed kept": lambda: with_turn(bad(), 0, call=None, malformed=True),
    "turn unaccounted": lambda: with_turn(bad(), 0, call=None),
    "unanswered call": lambda: with_turn(bad(), 0, observation=" \n"),
    "expert call without its turn": lambda: with_turn(bad(), 1, call=bad().turns[0].call),
    "empty expert reply": lambda: with_reply(bad(), "  "),
    "whole gold line": lambda: with_reply(bad(), "write `return max(low,  min(value, high))` there"),
    "part of a gold line": lambda: with_reply(bad(), "use max(low, min(value, hi...)"),
    "eval instance": lambda: make_trajectory("bad", make_instance("held__1", "held")),
    "eval package": lambda: make_trajectory("bad", repo="desk/held"),
    "changed row": lambda: make_trajectory("bad", instance_digest="another"),
    "verdict of another patch": lambda: make_trajectory("bad", patch=GOLD + " "),
    "verdict without passing tests": lambda: make_trajectory(
        "bad", verdict=bad().verdict.model_copy(update={"fail_to_pass": (0, 1)})
    ),
    "kept without a turn": lambda: make_trajectory("bad", turns=[], expert_calls=[]),
    "gap in the turns": lambda: with_turn(bad(), 2, index=5),
    "two users in a row": lambda: make_trajectory("bad", messages=[Message(role="user", content="a")] * 2),
    "history rewritten": lambda: make_trajectory(
        "bad", messages=[*bad().messages, Message(role="assistant", content="something else")]
    ),
    "failure without a boundary": lambda: make_trajectory("bad", exit_status="infrastructure"),
    "same conversation": lambda: make_trajectory("bad", thought="t1"),
}
COLUMN_OF = {
    "context": "n_tokens",
    "several calls": "n_turns_with_several_calls",
    "malformed kept": "n_malformed",
    "turn unaccounted": "n_turns_unaccounted",
    "unanswered call": "n_unanswered",
    "expert call without its turn": "n_expert_unanswered",
    "empty expert reply": "n_expert_unanswered",
    "whole gold line": "n_leaked_lines",
    "part of a gold line": "max_overlap_chars",
    "eval instance": "held_out_instance",
    "eval package": "held_out_package",
    "changed row": "known_instance",
    "verdict of another patch": "verdict_matches",
    "verdict without passing tests": "verdict_matches",
    "kept without a turn": "n_turns",
    "gap in the turns": "linear",
    "two users in a row": "roles_alternate",
    "history rewritten": "linear",
    "failure without a boundary": "failure_attributed",
    "same conversation": "content_hash",
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_violation_stops_and_names_the_row_after_writing_everything(workspace, case):
    workspace.add(make_trajectory("t1"), VIOLATIONS[case]())
    workspace.train.parent.mkdir()
    workspace.train.write_text("stale")
    with pytest.raises(ValidationFailed, match=rf"\({COLUMN_OF[case]}\): [^;]*\bbad\b"):
        run(workspace)
    result = json.loads((workspace.out / "result.json").read_text())
    failed = {check["column"]: check["rows"] for check in result["checks"] if not check["success"]}
    assert "bad" in failed[COLUMN_OF[case]]
    assert all("t1" not in rows for column, rows in failed.items() if column != "content_hash")
    assert "bad" in (workspace.out / "validation.md").read_text()
    assert (workspace.out / "docs" / "index.html").exists()
    assert not workspace.train.exists()


def test_a_few_that_are_too_long_do_not_stop_the_night(workspace):
    workspace.add(make_trajectory("t1"), VIOLATIONS["context"]())
    result = run(workspace, fits_share=0.5)
    (check,) = [check for check in result.checks if check.column == "n_tokens" and "fits in" in check.title]
    assert check.success and "50% of them" in check.title and workspace.train.exists()


def test_too_few_kept(workspace):
    workspace.add(make_trajectory("t1"))
    with pytest.raises(ValidationFailed, match=r"at least 2 trajectories kept' \(table\): observed 1"):
        run(workspace, min_kept=2)


def test_no_trajectory_at_all_fails_by_its_count_only(workspace):
    with pytest.raises(ValidationFailed, match=r"^1 of \d+ expectations violated: 'at least 1"):
        run(workspace)


def test_same_trajectory_id_twice(workspace):
    trajectory = make_trajectory("t1")
    workspace.add(trajectory)
    (workspace.trajectories / "copy.json").write_text(trajectory.model_dump_json())
    with pytest.raises(ValidationFailed, match=r"\(trajectory_id\): t1"):
        run(workspace)


def test_limits_are_parameters(workspace):
    workspace.add(with_reply(make_trajectory("t1"), "use max(low, min(value, hi...)"))
    assert run(workspace, max_overlap_chars=40).success
    workspace.add(with_turn(make_trajectory("t2"), 0, call=None, malformed=True))
    assert run(workspace, max_overlap_chars=40, max_malformed=1).success


def test_unresolved_ones_may_be_long_or_malformed(workspace):
    long = with_turn(make_trajectory("t2"), 0, message="word " * 2000, call=None, malformed=True)
    workspace.add(make_trajectory("t1"), unresolved(long, exit_status="step_limit"))
    assert run(workspace).metrics["malformed_turns"] == 1


def test_a_call_quoted_inside_a_parameter_is_not_a_second_call(workspace):
    message = "<function=bash>\n<parameter=command>echo '<function=submit>'</parameter>\n</function>"
    workspace.add(with_turn(make_trajectory("t1"), 0, message=message))
    assert run(workspace).success


def test_the_same_conversations_give_the_same_files_however_long_they_took(tmp_path):
    """DVC follows what validate writes by content: a clone, or a night done again, must not differ by a clock."""
    digests = []
    for name, seconds in (("one", 1.0), ("two", 2.0)):
        (tmp_path / name).mkdir()
        place = Workspace(tmp_path / name)
        slow = with_turn(make_trajectory("t1"), 0, tool_seconds=seconds, model_seconds=seconds)
        failed = unresolved(make_trajectory("t2", make_instance("pkg__2")), exit_status="step_limit")
        for trajectory in (slow, failed):
            place.add(trajectory.model_copy(update={"seconds": seconds, "started_at": f"2026-12-0{seconds:.0f}"}))
        metrics = run(place).metrics
        digests.append((digest_tree(place.out), place.train.read_bytes(), metrics))
        assert list(place.out.rglob("*.html"))
    assert digests[0] == digests[1]


def test_data_docs_load_nothing_from_the_network(workspace):
    workspace.add(make_trajectory("t1"))
    run(workspace)
    pages = list((workspace.out / "docs").rglob("*.html"))
    assert len(pages) >= 5
    for path in [*pages, *(workspace.out / "docs").rglob("*.css")]:
        text = path.read_text()
        assert not re.search(r"""(src|<link[^>]*href)\s*=\s*["'](https?:)?//|url\(\s*["']?(https?:)?//""", text), path
    assert "every kept one is resolved" in "".join(page.read_text() for page in pages)


def test_table_has_its_columns_and_types_even_when_empty():
    table = flatten([], {}, words)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == COLUMNS


def test_broken_inputs_are_named(workspace):
    (workspace.trajectories / "half.json").write_text('{"trajectory_id": ')
    with pytest.raises(BadInput, match=r"half\.json is no trajectory"):
        run(workspace)
    (workspace.trajectories / "half.json").unlink()
    (workspace.instances / "eval.jsonl").write_text("{}\nnope\n")
    with pytest.raises(BadInput, match=r"eval\.jsonl, line 1"):
        run(workspace)
    (workspace.instances / "eval.jsonl").unlink()
    with pytest.raises(BadInput, match=r"no instances at .*eval\.jsonl"):
        run(workspace)


def test_a_table_of_another_shape_fails_its_schema(tmp_path):
    table = flatten([make_trajectory("t1")], {"pkg__1": make_instance()}, words)
    table = table.astype({"n_tokens": "float64"}).drop(columns="policy_tokens").assign(surprise=1)
    limits = {"max_length": 1000, "max_overlap_chars": 20, "max_malformed": 0, "min_kept": 1}
    failed = {
        check.title
        for check in run_suites({"all_trajectories": table}, suites(**limits), tmp_path / "docs")
        if not check.success
    }
    assert failed == {"the table has its columns", "policy_tokens is int64", "n_tokens is int64"}


def test_tokens_are_counted_as_the_models_own_template_writes_them(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")
    tokenizer.chat_template = "{% for m in messages %}start {{ m.role }} {{ m.content }} end {% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    chat = [{"role": "user", "content": "one two three"}, {"role": "assistant", "content": "four"}]
    assert token_counter(tmp_path)(chat) == 2 * 3 + 4


def practice(tmp_path, **changes) -> Path:
    source = {
        "exercise_id": "e1",
        "package": "pkg",
        "patch": GOLD,
        "advice": "use the other bound in `clamp`",
    } | changes
    call = "I do.\n\n<function=bash>\n<parameter=command>ls</parameter>\n</function>"
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": call},
    ]
    row = ExerciseRow(row_id="exercises-0000", sources=[Source(**source)], messages=chat)
    return save_rows(tmp_path / "exercises.jsonl", [row])


def run_with(workspace: Workspace, exercises: Path, max_length: int = 1000):
    params = ValidateParams(max_overlap_chars=20, min_kept=1)
    folders = workspace.trajectories, workspace.instances, workspace.out, workspace.train
    return validate(*folders, params, words, max_length, exercises_path=exercises)


def test_exercises_are_checked_and_become_rows_of_no_instance(workspace, tmp_path):
    workspace.add(make_trajectory())
    result = run_with(workspace, practice(tmp_path))
    assert result.metrics["exercises"] == 1 and any(check.suite == "exercises" for check in result.checks)
    rows = pq.read_table(workspace.train).to_pylist()
    assert [(row["instance_id"], row["trajectory_id"]) for row in rows] == [("pkg__1", "t1"), ("", "exercises-0000")]
    assert run(workspace).metrics["exercises"] == 0


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"package": "held"}, "no exercise from a package of the eval split"),
        ({"advice": "write return max(low, min(value, high))"}, "exercises: no advice holds a whole added gold line"),
        ({"advice": "return max(low, min(value"}, "exercises: no expert reply shares more than 20 characters"),
    ],
)
def test_an_exercise_that_gives_away_or_holds_out_stops(workspace, tmp_path, changes, title):
    workspace.add(make_trajectory())
    with pytest.raises(ValidationFailed, match=re.escape(title)) as stopped:
        run_with(workspace, practice(tmp_path, **changes))
    assert "exercises-0000" in str(stopped.value) and not workspace.train.exists()
