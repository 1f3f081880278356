"""An expert that gives the patch away: audited in the trajectory, stopped before training, counted in the report."""

from __future__ import annotations

import pytest

from protege.agent.loop import roll_out
from protege.config import AgentParams, ValidateParams
from protege.core.trajectory import Identity
from protege.errors import ValidationFailed
from protege.expert.base import ExpertReply
from protege.grading.grade import grade
from protege.report.leaks import leaks
from protege.report.metrics import System
from protege.validation import validate
from tests.agent.test_agent import Parrot, say


class Talker:
    identity = Identity(name="talker", digest="t", kind="api")

    def __init__(self, text: str) -> None:
        self.text = text

    def reply(self, instance, query, recent, call_index):
        return ExpertReply(self.text)


def rolled(provider, tiny, tmp_path, text: str):
    policy = Parrot(
        say("ask_expert", query="add(2, 3) gives -1. I looked at calc.py. What now?"),
        say("bash", command="sed -i 's/a - b/a + b/' calc.py"),
        say("submit"),
    )
    t = roll_out(tiny.instance, policy, Talker(text), provider, AgentParams(time_limit_s=300), 0, trajectory_id="t-1")
    return t.model_copy(update={"verdict": grade(tiny.instance, t.patch, provider, log_dir=tmp_path / "logs")})


def validated(trajectory, tiny, tmp_path):
    import json

    trajectory.save(tmp_path / "trajectories")
    (tmp_path / "instances").mkdir()
    (tmp_path / "instances" / "sft.jsonl").write_text(json.dumps(tiny.instance.to_row()) + "\n")
    (tmp_path / "instances" / "eval.jsonl").write_text("")
    return validate(
        tmp_path / "trajectories",
        tmp_path / "instances",
        tmp_path / "out",
        tmp_path / "train.parquet",
        ValidateParams(min_kept=1),
        count_tokens=lambda messages: 100,
        max_length=1000,
    )


@pytest.mark.parametrize("wording", ["Write  `return a\n + b` there.", "    return a + b"])
def test_a_reply_with_the_gold_line_is_audited_counted_and_not_trained_on(make_provider, tiny, tmp_path, wording):
    t = rolled(make_provider("bubblewrap"), tiny, tmp_path, wording)
    assert t.resolved and t.expert_calls[0].overlap_chars == len("return a + b")
    with pytest.raises(ValidationFailed, match="no expert reply holds a whole added gold line.*t-1"):
        validated(t, tiny, tmp_path)
    assert not (tmp_path / "train.parquet").exists()
    (found,) = leaks([System("base-talker", "base", "talker", [t])], tmp_path / "none", limit=10)
    assert (found.above, found.longest, found.worst) == (1, len("return a + b"), "t-1")


def test_advice_that_gives_nothing_away_passes(make_provider, tiny, tmp_path):
    t = rolled(make_provider("bubblewrap"), tiny, tmp_path, "Look at the operator in the first function.")
    assert t.resolved and validated(t, tiny, tmp_path).success
