"""An edit that the editor refuses, and how to get over it.

The scripted teacher copies without a mistake, so what it teaches has no refused edit; a small model makes them, and does
not know what to do then: of 24 held-out rollouts with one, one was resolved (docs/log.md, 2026-11-27). A slip puts a
mistaken edit before the right one, the editor's own answer, and a second look at the line. The mistake is context: SFT
does not learn it (``sft.learn_refused: false``).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from protege.policy.wording import say
from protege.tools import EDIT_REFUSED
from protege.trajectory import ToolCall

LINES = 2
"""Read again below the first line of the edit."""


def mistakes(old: str, new: str, rng: random.Random) -> list[tuple[str, str]]:
    """(old_str, new_str) as a small model gets them wrong, in a drawn order; each of them seen in rollouts."""
    deeper = "\n".join(f"    {line}" for line in old.split("\n"))
    words = [match.span() for match in re.finditer(r"[A-Za-z_]{3,}", old)]
    made = [(old, old), (new, new), (new, old), (deeper, new)]
    if words:
        start, end = rng.choice(words)
        made.append((old[:start] + old[end:], new))
    rng.shuffle(made)
    return made


def slip(
    call: ToolCall, line: int, thought: str, run: Callable[[str], str], rng: random.Random
) -> list[tuple[str, str]]:
    """(message, observation) of a refused edit in place of ``call``, and of the look at ``line`` after it; [] if ``run``,
    which carries a message out and returns what the editor says, refuses none. It must leave the file as it was then."""
    arguments = call.arguments
    for old, new in mistakes(arguments["old_str"], arguments["new_str"], rng):
        wrong = say(thought, call.name, **{**arguments, "old_str": old, "new_str": new})
        said = run(wrong)
        if said.startswith(EDIT_REFUSED):
            again = rng.choice(
                ("The edit was refused; I look at the line again.", "That changed nothing. I read the line once more.")
            )
            view = {"command": "view", "path": arguments["path"], "view_range": f"[{line}, {line + LINES}]"}
            look = say(again, call.name, **view)
            return [(wrong, said), (look, run(look))]
    return []
