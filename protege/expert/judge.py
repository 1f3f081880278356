"""The hidden judge: per expert call, was it warranted, and was it followed (paper, phase II).

Scores are in [0, 1], logged with the call, and never shown to the agent. ``HeuristicJudge`` is the
offline one: deterministic, it looks only at what the agent did; expert/model_judge.py is the model's. Terminal
calls (nothing after them) have no follow score.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

from protege.core.loops import base_commands
from protege.core.patches import changes, enclosing_function
from protege.core.trajectory import ExpertCall, Identity, Message, Trajectory, Turn
from protege.identity import code_of

STALL_RUN = 3
STALL_WINDOW = 5
NEW_WORDS = 0.2
"""Share of its distinct words that a question must add to each earlier one, or it is the same, padded: RL learns to pad."""
_NAMED = re.compile(r"`([^`\n]{2,80})`|\b([\w./-]+\.py)\b")
_REFUSALS = (
    *("No replacement", "No permission", "Invalid `", "The path", "Unrecognized command", "Cannot write"),
    *("Parameter `", "File already exists", "There is nothing to undo", "No edit"),
)
_EDITS = frozenset({"str_replace", "insert", "create"})


class Judge(Protocol):
    """Scores one expert call of a finished trajectory. Raises ExpertError."""

    identity: Identity

    def warrant(self, trajectory: Trajectory, call: ExpertCall) -> float: ...

    def follow(self, trajectory: Trajectory, call: ExpertCall) -> float | None: ...


def judged(trajectory: Trajectory, judge: Judge) -> Trajectory:
    """A copy of ``trajectory`` with warrant and follow filled in for every answered call."""
    calls = [
        call.model_copy(update={"warrant": judge.warrant(trajectory, call), "follow": judge.follow(trajectory, call)})
        if call.answered
        else call
        for call in trajectory.expert_calls
    ]
    return trajectory.model_copy(update={"expert_calls": calls})


def steps_before(trajectory: Trajectory, call: ExpertCall) -> list[Turn]:
    """The agent's own turns between the previous expert call (or the start) and ``call``."""
    previous = max((c.turn for c in trajectory.expert_calls if c.turn < call.turn), default=-1)
    return trajectory.turns[previous + 1 : call.turn]


def steps_after(trajectory: Trajectory, call: ExpertCall) -> list[Turn]:
    """The agent's own turns from ``call`` until its next expert call or the end."""
    following = min((c.turn for c in trajectory.expert_calls if c.turn > call.turn), default=len(trajectory.turns))
    return trajectory.turns[call.turn + 1 : following]


def opening_of(trajectory: Trajectory) -> list[Message]:
    """System prompt and issue: the messages before the agent's first."""
    roles = [m.role for m in trajectory.messages]
    return trajectory.messages[: roles.index("assistant")] if "assistant" in roles else trajectory.messages


def named_things(text: str) -> set[str]:
    """File names and quoted identifiers in ``text``, with the last part of dotted and slashed ones added.

    Python's keywords and bare numbers name nothing: "the `return`" is in every function.
    """
    found = {(a or b).removesuffix("()") for a, b in _NAMED.findall(text)}
    parts = {part for thing in found for part in (thing, re.split(r"[./]", thing.removesuffix(".py"))[-1])}
    return {part for part in parts if len(part) > 1 and not keyword.iskeyword(part) and re.search(r"[A-Za-z]", part)}


def went_wrong(turn: Turn) -> bool:
    """True when the step failed visibly: a non-zero exit, a time-out, a malformed call, an editor error."""
    refused = turn.observation.startswith(_REFUSALS)
    return turn.malformed or turn.timed_out or bool(turn.exit_code) or refused


class HeuristicJudge:
    """Deterministic scores from what the agent really did."""

    def __init__(self) -> None:
        self.identity = Identity(name="heuristic-judge", digest=code_of("protege.expert.judge"), kind="judge")

    def warrant(self, trajectory: Trajectory, call: ExpertCall) -> float:
        """0 when nothing was tried since the last call; else 0.3 for trying twice or more, 0.4 for being stalled or
        failing just before, 0.3 for a query that names something that was seen. Half of it for a question that was
        asked before, or says hardly a word that an earlier one did not. Messages without a call try nothing."""
        own = [turn for turn in steps_before(trajectory, call) if turn.call]
        if not own:
            return 0.0
        value = 0.3 * (len(own) >= 2) + 0.4 * stuck(own) + 0.3 * _specific(call.query, trajectory, own)
        words = _words(call.query)
        earlier = [_words(c.query) for c in trajectory.expert_calls if c.answered and c.turn < call.turn]
        again = any(len(words - asked) <= NEW_WORDS * len(words) for asked in earlier)
        return round(value / 2 if again else value, 3)

    def follow(self, trajectory: Trajectory, call: ExpertCall) -> float | None:
        """0.4 for working on what the advice named (half where every such step failed), 0.3 for what came of it (a
        change there that stands, or the matter brought up in the next query), 0.3 for taking it up or reporting in
        words; None for a terminal call. A change elsewhere counts for nothing."""
        after = steps_after(trajectory, call)
        if not after:
            return None
        named = named_things(call.reply) or _long_words(call.reply)
        there = [t for t in after if t.call and _mentions(" ".join(t.call.arguments.values()), named)]
        acted = 0.0 if not there else 0.2 if all(went_wrong(t) for t in there) else 0.4
        following = next((c for c in trajectory.expert_calls if c.turn > call.turn), None)
        if following:
            came = _mentions(following.query, named) or _edits_standing(after, named)
        else:
            came = bool(acted) and _mentions(_touched(trajectory.patch), named)
        thoughts = [t.message.split("<function=")[0] for t in after]
        return round(acted + 0.3 * came + 0.3 * any(_mentions(thought, named) for thought in thoughts), 3)


def stuck(own: Sequence[Turn]) -> bool:
    """Whether the last steps went in circles or failed: one of the last three failed or took a change back, or of the
    last five three in a row had the same base command, or one was done twice with no edit between. An edit with a
    clean run after it ends the trouble."""
    for index, turn in enumerate(own):
        rest = own[index + 1 :]
        ran = any(t.call and t.call.name == "bash" and t.exit_code == 0 and not t.timed_out for t in rest)
        if _is_edit(turn) and ran and not any(went_wrong(t) or _is_undo(t) for t in rest):
            own = rest
            break
    recent = own[-STALL_WINDOW:]
    longest = max((sum(1 for _ in group) for _, group in groupby(base_commands(recent))), default=0)
    edits = [index for index, turn in enumerate(recent) if _is_edit(turn)]
    since = recent[edits[-1] + 1 :] if edits else recent
    done = [(t.call.name, tuple(sorted(t.call.arguments.items()))) for t in since if t.call]
    failed = any(went_wrong(t) or _is_undo(t) for t in own[-3:])
    return failed or longest >= STALL_RUN or len(set(done)) < len(done)


def _is_undo(turn: Turn) -> bool:
    return bool(turn.call and turn.call.arguments.get("command") == "undo_edit")


def _is_edit(turn: Turn) -> bool:
    return bool(turn.call and turn.call.arguments.get("command") in _EDITS and not went_wrong(turn))


def _edits_standing(turns: Sequence[Turn], named: set[str]) -> bool:
    """Whether an edit of something ``named`` was made and not undone."""
    standing: dict[str, list[bool]] = {}
    for turn in turns:
        arguments = turn.call.arguments if turn.call else {}
        stack = standing.setdefault(arguments.get("path", ""), [])
        if _is_edit(turn):
            stack.append(_mentions(" ".join(arguments.values()), named))
        elif _is_undo(turn) and stack:
            stack.pop()
    return any(any(stack) for stack in standing.values())


def _touched(patch: str) -> str:
    """Paths, functions and changed lines of a diff, as one text."""
    found = changes(patch)
    return "\n".join(
        "\n".join([change.path, enclosing_function(change), *change.removed, *change.added]) for change in found
    )


def _mentions(text: str, named: set[str]) -> bool:
    """Whole names only: advice about `re` is not taken up by `grep`."""
    return any(re.search(rf"(?<![\w]){re.escape(thing)}(?![\w])", text) for thing in named)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _long_words(text: str) -> set[str]:
    """What advice that names nothing is recognised by."""
    return set(re.findall(r"[a-z]{7,}", text))


def _specific(query: str, trajectory: Trajectory, own: Sequence[Turn]) -> bool:
    opening = opening_of(trajectory)
    seen = (opening[-1].content if opening else "") + " ".join(t.observation for t in own)
    words = {w for w in re.findall(r"[A-Za-z_][\w./]{3,}", query) if re.search(r"[_./]|[a-z][A-Z]", w)}
    words |= {thing for thing in named_things(query) if len(thing) > 2}
    return any(word.strip(".") in seen for word in words)
