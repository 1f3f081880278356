"""The flattened table: one row a trajectory, one column for everything that is checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from protege.agent.tools import OBSERVATION_PREFIX
from protege.core.instance import Instance
from protege.core.trajectory import Message, Trajectory, patch_digest
from protege.expert.audit import leaked_lines, longest_overlap
from protege.files import digest

if TYPE_CHECKING:
    import pandas as pd

    from protege.desk.conversation import ExerciseRow

CountTokens = Callable[[list[dict[str, str]]], int]
"""Length in tokens of a conversation (list of ``{"role", "content"}``) as the SFT stage will see it."""

COLUMNS: dict[str, str] = {
    "trajectory_id": "str",
    "instance_id": "str",
    "repo": "str",
    "package": "str",
    "policy": "str",
    "expert": "str",
    "exit_status": "str",
    "content_hash": "str",
    "kept": "bool",
    "resolved": "bool",
    "verdict_matches": "bool",
    "known_instance": "bool",
    "held_out_instance": "bool",
    "held_out_package": "bool",
    "failure_attributed": "bool",
    "linear": "bool",
    "roles_alternate": "bool",
    "n_turns": "int64",
    "n_calls": "int64",
    "n_malformed": "int64",
    "n_turns_unaccounted": "int64",
    "n_turns_with_several_calls": "int64",
    "n_unanswered": "int64",
    "n_expert_calls": "int64",
    "n_expert_unanswered": "int64",
    "n_leaked_lines": "int64",
    "max_overlap_chars": "int64",
    "n_messages": "int64",
    "n_tokens": "int64",
    "policy_tokens": "int64",
    "expert_tokens": "int64",
}
"""Every column with its type (``str``: pandas text)."""

EXERCISE_COLUMNS: dict[str, str] = {
    "trajectory_id": "str",
    "content_hash": "str",
    "held_out_package": "bool",
    "roles_alternate": "bool",
    "n_turns_without_call": "int64",
    "n_leaked_lines": "int64",
    "max_overlap_chars": "int64",
    "n_tokens": "int64",
}
"""The same of the table of edit exercises, one row a conversation; ``trajectory_id`` is its row id."""

_PARAMETER = re.compile(r"<parameter=[^>]*>.*?</parameter>", re.DOTALL)
_FUNCTION = re.compile(r"<function=[^>\s]+>")


def is_kept(trajectory: Trajectory) -> bool:
    """The one rule of rejection sampling: submitted, graded and resolved."""
    return trajectory.verdict is not None and trajectory.resolved and trajectory.exit_status == "submitted"


def conversation(trajectory: Trajectory) -> list[dict[str, str]]:
    """The full linear chat: opening messages, then assistant and observation for each turn, ending with the assistant.

    Observations stand as the agent loop shows them to the policy, with their prefix. The last turn's observation is left out: nothing was said after it, so nothing is learned from it.
    """
    chat = [{"role": message.role, "content": message.content} for message in _opening(trajectory)]
    for turn in trajectory.turns:
        chat.append({"role": "assistant", "content": turn.message})
        chat.append({"role": "user", "content": OBSERVATION_PREFIX + turn.observation})
    return chat[:-1] if trajectory.turns else chat


def package_of(instance: Instance) -> str:
    """The row's own ``package`` where it has one (the desk suite), else its repository."""
    extras: dict[str, Any] = instance.model_extra or {}
    return str(extras.get("package") or instance.repo)


def flatten(
    trajectories: Iterable[Trajectory],
    instances_by_id: Mapping[str, Instance],
    count_tokens: CountTokens,
    held_out: Sequence[Instance] = (),
) -> pd.DataFrame:
    """One row a trajectory, with exactly the columns and types of :data:`COLUMNS`.

    Args:
        trajectories: what was rolled out, kept or not.
        instances_by_id: the rows that may be trained on; gold patches for the leak audit come from here.
        count_tokens: length of a conversation in the model's tokens.
        held_out: rows of the eval split; none of them, and nothing of their packages, may appear.
    """
    import pandas as pd

    held_ids = {instance.instance_id for instance in held_out}
    held_packages = {package_of(instance) for instance in held_out} | {instance.repo for instance in held_out}
    gold = {instance.instance_id: instance for instance in held_out} | dict(instances_by_id)
    rows = [_row(t, instances_by_id, gold, count_tokens, held_ids, held_packages) for t in trajectories]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(COLUMNS)


def exercise_table(
    rows: Sequence[ExerciseRow], held_out: Sequence[Instance], count_tokens: CountTokens
) -> pd.DataFrame:
    """One row an exercise conversation, with exactly the columns and types of :data:`EXERCISE_COLUMNS`.

    Advice is audited as the expert gave it, before names were changed.
    """
    import pandas as pd

    held = {package_of(instance) for instance in held_out}
    found = [
        {
            "trajectory_id": row.row_id,
            "content_hash": digest(row.messages),
            "held_out_package": bool(held & {source.package for source in row.sources}),
            "roles_alternate": _roles_alternate(row.messages) and row.messages[-1]["role"] == "assistant",
            "n_turns_without_call": sum(_calls_in(m["content"]) != 1 for m in row.messages if m["role"] == "assistant"),
            "n_leaked_lines": sum(len(leaked_lines(source.advice, source.patch)) for source in row.sources),
            "max_overlap_chars": max((longest_overlap(s.advice, s.patch) for s in row.sources), default=0),
            "n_tokens": count_tokens(row.messages),
        }
        for row in rows
    ]
    return pd.DataFrame(found, columns=list(EXERCISE_COLUMNS)).astype(EXERCISE_COLUMNS)


def _row(
    trajectory: Trajectory,
    known: Mapping[str, Instance],
    gold: Mapping[str, Instance],
    count_tokens: CountTokens,
    held_ids: set[str],
    held_packages: set[str],
) -> dict[str, Any]:
    instance = gold.get(trajectory.instance_id)
    package = package_of(instance) if instance else trajectory.repo
    listed = known.get(trajectory.instance_id)
    turns = trajectory.turns
    chat = conversation(trajectory)
    answered = [call for call in trajectory.expert_calls if call.answered]
    patch = instance.patch if instance else ""
    overlaps = [longest_overlap(call.reply, patch) if instance else call.overlap_chars for call in answered]
    return {
        "trajectory_id": trajectory.trajectory_id,
        "instance_id": trajectory.instance_id,
        "repo": trajectory.repo,
        "package": package,
        "policy": trajectory.policy.name,
        "expert": trajectory.expert.name if trajectory.expert else "none",
        "exit_status": trajectory.exit_status,
        "content_hash": digest(chat),
        "kept": is_kept(trajectory),
        "resolved": trajectory.resolved,
        "verdict_matches": _verdict_matches(trajectory),
        "known_instance": listed is not None and listed.digest == trajectory.instance_digest,
        "held_out_instance": trajectory.instance_id in held_ids,
        "held_out_package": bool({package, trajectory.repo} & held_packages),
        "failure_attributed": (trajectory.exit_status == "infrastructure") == (trajectory.failure is not None),
        "linear": _linear(trajectory),
        "roles_alternate": _roles_alternate(chat),
        "n_turns": len(turns),
        "n_calls": sum(turn.call is not None for turn in turns),
        "n_malformed": sum(turn.malformed for turn in turns),
        "n_turns_unaccounted": sum((turn.call is None) != turn.malformed for turn in turns),
        "n_turns_with_several_calls": sum(_calls_in(turn.message) > 1 for turn in turns),
        "n_unanswered": sum(not turn.observation.strip() for turn in turns[:-1]),
        "n_expert_calls": len(answered),
        "n_expert_unanswered": _expert_unanswered(trajectory),
        "n_leaked_lines": sum(len(leaked_lines(call.reply, patch)) for call in answered),
        "max_overlap_chars": max(overlaps, default=0),
        "n_messages": len(chat),
        "n_tokens": count_tokens(chat) if chat else 0,
        "policy_tokens": trajectory.completion_tokens,
        "expert_tokens": trajectory.expert_tokens,
    }


def _opening(trajectory: Trajectory) -> list[Message]:
    roles = [message.role for message in trajectory.messages]
    return trajectory.messages[: roles.index("assistant")] if "assistant" in roles else trajectory.messages


def _linear(trajectory: Trajectory) -> bool:
    """Turns numbered without a gap, and messages (opening only, or everything said) a prefix-true record of them."""
    opening = _opening(trajectory)
    said: list[tuple[str, str]] = [(message.role, message.content) for message in opening]
    for turn in trajectory.turns:
        said += [("assistant", turn.message), ("user", OBSERVATION_PREFIX + turn.observation)]
    recorded = [(message.role, message.content) for message in trajectory.messages]
    complete = len(recorded) == len(opening) or len(recorded) >= len(said) - 1
    return [t.index for t in trajectory.turns] == list(range(len(trajectory.turns))) and (
        complete and recorded == said[: len(recorded)]
    )


def _roles_alternate(chat: list[dict[str, str]]) -> bool:
    """True of an empty chat too: what infrastructure stopped before its first message."""
    roles = [message["role"] for message in chat]
    body = roles[1:] if roles[:1] == ["system"] else roles
    return all(role == ("user", "assistant")[i % 2] for i, role in enumerate(body))


def _verdict_matches(trajectory: Trajectory) -> bool:
    """Whether the verdict is about this very patch of this very instance, and its counts bear ``resolved`` out."""
    verdict = trajectory.verdict
    if verdict is None:
        return True
    about = (verdict.instance_id, verdict.instance_digest, verdict.patch_digest)
    if about != (trajectory.instance_id, trajectory.instance_digest, patch_digest(trajectory.patch)):
        return False
    proven = verdict.applied and not verdict.empty_patch and verdict.fail_to_pass[0] == verdict.fail_to_pass[1] > 0
    return bool(proven) or not verdict.resolved


def _calls_in(message: str) -> int:
    """Calls in the XML function form; a ``<function=`` inside a parameter's text is file content, not a call."""
    return len(_FUNCTION.findall(_PARAMETER.sub("", message)))


def _expert_unanswered(trajectory: Trajectory) -> int:
    """Expert exchanges that no ``ask_expert`` turn with an observation stands for."""
    asked = {
        turn.index
        for turn in trajectory.turns
        if turn.call is not None and turn.call.name == "ask_expert" and turn.observation.strip()
    }
    return sum(call.turn not in asked or (call.answered and not call.reply.strip()) for call in trajectory.expert_calls)
