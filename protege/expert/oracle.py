"""The offline expert: it has seen the gold patch, and says so in its identity (docs/architecture.md, rule 7).

It answers like a senior colleague: first the neighbourhood, then function, line and kind of mistake, then how
the code should behave; never a whole line of the patch. The paper's phase-I expert sees the gold patch
too. A number that rests on this expert is labelled "oracle (has seen the gold patch)" wherever it stands.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from protege.config import OracleParams
from protege.core.instance import Instance
from protege.core.patches import Change, changes, enclosing_function
from protege.core.trajectory import Identity, Message
from protege.expert import verbalise
from protege.expert.audit import leaks_line, longest_overlap
from protege.expert.base import ExpertReply
from protege.files import digest
from protege.identity import code_of

CHARS_PER_TOKEN = 4


class OracleExpert:
    """Advice from the gold patch, graded from vague (level 0) to specific (level 2) on repeated calls."""

    def __init__(self, params: OracleParams | None = None) -> None:
        self.params = params or OracleParams()
        self.identity = Identity(
            name="oracle",
            digest=digest(
                self.params.deciding(),
                code_of("protege.expert.oracle"),
            ),
            kind="oracle",
            sees_gold=True,
        )

    def reply(self, instance: Instance, query: str, recent: Sequence[Message], call_index: int) -> ExpertReply:
        """Advice at level ``first_level + call_index`` (at most ``last_level``), lowered until nothing of the patch is quoted verbatim."""
        clock = time.monotonic()
        rng = random.Random(f"{instance.instance_id}:{call_index}")
        level = min(self.params.last_level, self.params.first_level + call_index)
        text = advice(instance, level, rng)
        while level > 0 and self._leaks(text, instance.patch):
            level -= 1
            text = advice(instance, level, rng)
        seen = sum(len(m.content) for m in recent) + len(query)
        return ExpertReply(
            text=text,
            prompt_tokens=-(-seen // CHARS_PER_TOKEN),
            completion_tokens=-(-len(text) // CHARS_PER_TOKEN),
            seconds=time.monotonic() - clock,
        )

    def _leaks(self, text: str, patch: str) -> bool:
        return leaks_line(text, patch) or longest_overlap(text, patch) > self.params.max_overlap_chars


def advice(instance: Instance, level: int, rng: random.Random) -> str:
    """What a colleague who knows the fix would say at ``level`` 0, 1 or 2."""
    all_changes = changes(instance.patch)
    if not all_changes:
        return "I cannot see what is wrong from here. Reproduce the issue and read the code that it exercises."
    first = all_changes[0]
    if level == 0:
        return _vague(first, rng)
    parts = [_kind(instance, c) if level == 1 else _specific(instance, c) for c in all_changes[:4]]
    check = rng.choice(
        [
            "Then run the example from the issue again.",
            "Run the package's tests when you have changed it, then submit.",
            "Check it with the call from the issue.",
        ]
    )
    return " ".join([*dict.fromkeys(parts), check])


def _vague(change: Change, rng: random.Random) -> str:
    return rng.choice(
        [
            f"Start in `{change.path}`. The code that the issue exercises lives there; read the function it calls and "
            "compare what it does with what the issue expects. Ask me again with what you found if it stays unclear.",
            f"I would read `{change.path}` first. Find the function from the issue there and follow one example by "
            "hand. Come back with the function's name if you are still stuck.",
            f"This smells like a small slip in `{change.path}`. Look at the function that the issue is about, and "
            "tell me what you see if it is not obvious.",
        ]
    )


def _where(instance: Instance, change: Change) -> str:
    entity = str((instance.model_extra or {}).get("entity") or "") or enclosing_function(change)
    line = f"line {change.line}" if change.removed else f"after line {change.line - 1}"
    return f"In `{change.path}`, look at {f'`{entity}`, ' if entity else ''}{line}"


def _kind(instance: Instance, change: Change) -> str:
    what = verbalise.kind(change.removed, change.added)
    return f"{_where(instance, change)}: {what}, around {verbalise.anchor(change.removed or change.added)}."


def _specific(instance: Instance, change: Change) -> str:
    return f"{_where(instance, change)}: {verbalise.fix(change.removed, change.added)}."
