"""Replay a trajectory: its recorded turns through the agent loop in a fresh sandbox, then the tests on the patch.

No model and no expert is asked: the policy repeats its messages, the expert's replies are those of the file. What differs
then is the sandbox's doing, or the program's under repair.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from protege.agent.loop import roll_out
from protege.config import AgentParams
from protege.core.instance import Instance
from protege.core.trajectory import Message, Tokens, Trajectory, Verdict
from protege.errors import BadInput, ContextLimitReached, SandboxUnavailable
from protege.expert.base import ExpertReply
from protege.policy.base import Completion
from protege.report.inspect.sources import Context, Record
from protege.report.inspect.text import visible

CACHE = Path(".cache/protege")
TESTBEDS = Path("data/instances/testbeds")
_FLEETING = re.compile(r"\b\d+(?:\.\d+)?\s?(?:s|ms|seconds)\b|0x[0-9a-f]+|/tmp/[\w./-]+")


class _RecordedPolicy:
    """Repeats the recorded turns (policy/base.py); good for one rollout, as is the expert below."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.identity = trajectory.policy
        self._turns = iter(trajectory.turns)
        self._refused = {call.turn: call.reply for call in trajectory.expert_calls if not call.answered}

    def start(self, instance: Instance, seed: int) -> _RecordedPolicy:
        return self

    def step(self, new_messages: Sequence[Message]) -> Completion:
        turn = next(self._turns, None)
        if turn is None:
            raise ContextLimitReached("the record ends here")
        refusal = self._refused.get(turn.index, "")
        return Completion(turn.message, turn.finish_reason, turn.prompt_tokens, turn.completion_tokens, refusal)

    def tokens(self) -> Tokens | None:
        return None


class _RecordedExpert:
    def __init__(self, trajectory: Trajectory) -> None:
        assert trajectory.expert is not None
        self.identity = trajectory.expert
        self._replies = [call.reply for call in trajectory.expert_calls if call.answered]

    def reply(self, instance: Instance, query: str, recent: Sequence[Message], call_index: int) -> ExpertReply:
        return ExpertReply(self._replies[call_index])


def replay(found: Record, context: Context, params: Path | None, say: Callable[[str], None] = print) -> int:
    """Replay and grade, saying turn by turn what differs from the record. Returns 0: it ran to its end.

    Raises:
        BadInput: the instance's row, image or params are not at hand.
        SandboxError: the sandbox failed; this is then what the record may hold too.
    """
    from protege.config import load
    from protege.grading.grade import grade

    t = found.trajectory
    instance = context.rows.get(t.instance_id)
    gold, why = context.gold(t)
    if instance is None or gold is None:
        raise BadInput(f"{t.trajectory_id} cannot be replayed: {why}")
    settings = load(params or "params.yaml")
    provider = _provider(settings.sandbox)
    provider.check([instance])
    say(f"{visible(t.trajectory_id)}: {len(t.turns)} turns in a fresh {provider.backend} sandbox, no model, no expert")
    image = provider.image_digest(instance)
    if t.image_digest and image != t.image_digest:
        say(f"other image than recorded: {image}")
    if t.turns:
        again = rerun(t, instance, provider, settings.agent, settings.sandbox.command_timeout_s)
        for line in differences(t, again):
            say(visible(line))
        patch, what = again.patch, "now:      "
    else:
        say("no turn was recorded; the gold patch is graded, to see whether the instance's sandbox works")
        patch, what = gold, "gold:     "
    verdict = grade(instance, patch, provider, log_dir=CACHE / "logs" / "grading")
    say(f"{what}{outcome(verdict)}")
    say(f"recorded: {outcome(t.verdict) if t.verdict else 'no verdict'}{_failure(t)}")
    return 0


def rerun(t: Trajectory, instance: Instance, provider: Any, agent: AgentParams, command_timeout_s: float) -> Trajectory:
    """The rollout of the recorded turns; limits that would end it before its record does are lifted."""
    answered = sum(call.answered for call in t.expert_calls)
    limits = {
        "step_limit": max(1, len(t.turns)),
        "malformed_limit": len(t.turns) + 1,
        "expert_quota": max(agent.expert_quota, answered),
    }
    return roll_out(
        instance,
        _RecordedPolicy(t),
        _RecordedExpert(t) if t.expert else None,
        provider,
        agent.model_copy(update=limits),
        t.seed,
        trajectory_id=f"{t.trajectory_id}.replay",
        command_timeout_s=command_timeout_s,
    )


def differences(recorded: Trajectory, again: Trajectory) -> list[str]:
    """What differs between the record and its replay, a line each; times, addresses and temporary names do not count."""
    found = []
    for old, new in zip(recorded.turns, again.turns, strict=False):
        if _plain(old.observation) != _plain(new.observation):
            found.append(f"turn {old.index + 1}: recorded {_brief(old.observation)}")
            found.append(f"{' ' * len(f'turn {old.index + 1}')}  now      {_brief(new.observation)}")
    if len(again.turns) < len(recorded.turns):
        found.append(f"ended after {len(again.turns)} of {len(recorded.turns)} turns: {again.exit_status}")
    same = recorded.patch.strip() == again.patch.strip()
    observed = "every observation as recorded" if not found else f"{len(again.turns)} turns replayed"
    return [*found, f"{observed}; patch {'as recorded' if same else 'differs from the recorded one'}"]


def _plain(text: str) -> str:
    return _FLEETING.sub("…", text).strip()


def _brief(text: str) -> str:
    line = " ⏎ ".join(text.strip().split("\n"))
    return line if len(line) <= 200 else line[:200] + " …"


def outcome(verdict: Verdict) -> str:
    """A verdict in a line."""
    f2p, p2p = verdict.fail_to_pass, verdict.pass_to_pass
    reason = f" ({verdict.reason})" if verdict.reason else ""
    counts = f"FAIL_TO_PASS {f2p[0]} of {f2p[1]}, PASS_TO_PASS {p2p[0]} of {p2p[1]}"
    return visible(f"{'resolved' if verdict.resolved else 'unresolved'}, {counts}{reason}")


def _failure(t: Trajectory) -> str:
    return (
        f"; infrastructure failure: {visible(t.failure.error)} at the {t.failure.boundary} boundary"
        if t.failure
        else ""
    )


def _provider(params: Any) -> Any:
    """A provider as the stages open it: a desk instance's missing image is built from its testbed."""
    from protege.desk.desk_images import make_builder
    from protege.desk.sources import ensure_site
    from protege.sandbox.images import docker_client
    from protege.sandbox.open import open_provider

    builder = site = None
    if params.backend != "bubblewrap":
        try:
            builder = make_builder(docker_client(), TESTBEDS, cache=CACHE)
        except SandboxUnavailable:
            pass  # open_provider says so, or falls back
    if builder is None:
        site = ensure_site(cache=CACHE)
    return open_provider(params, testbeds=TESTBEDS, site=site, builder=builder)
