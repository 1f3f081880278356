"""What a person reads of a solve: a line for each turn, and the summary."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from protege.core.trajectory import Turn

if TYPE_CHECKING:
    from protege.cli.solve.run import Solution

_WIDTH = 72


def plain(text: str, width: int = _WIDTH) -> str:
    """``text`` on one line of at most ``width`` characters, without what a terminal would act on.

    >>> plain("ls\\x1b[2J\\n-l")
    'ls?[2J -l'
    """
    line = re.sub(r"\s+", " ", text[: 4 * width]).strip()
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= width else line[: width - 1] + "…"


def turn_line(turn: Turn, steps: int, has_expert: bool) -> str:
    """``step  3/40  bash    grep -rn slug .   0.1 s (model 2.0 s)``; expert calls carry a ``*``."""
    mark, tool, what = " ", "-", "no well-formed call"
    if turn.call is not None:
        tool, arguments = turn.call.name, turn.call.arguments
        if tool == "ask_expert":
            mark, tool = "*", "expert"
            what = arguments.get("query", "") + ("" if has_expert else " (there is no expert)")
        elif tool == "str_replace_editor":
            tool, what = "edit", f"{arguments.get('command', '')} {arguments.get('path', '')}"
        else:
            what = arguments.get("command", "")
    note = ", timed out" if turn.timed_out else f", exit {turn.exit_code}" if turn.exit_code else ""
    number = f"{turn.index + 1:>{len(str(steps))}}/{steps}"
    return f"step {number} {mark} {tool:<6} {plain(what):<40}  {turn.tool_seconds:.1f} s (model {turn.model_seconds:.1f} s){note}"


def summary(solution: Solution) -> str:
    """The end, for people."""
    s = solution
    asked = f", {s.expert_calls} expert calls" if s.expert else ""
    cost = f" (${s.cost_usd:.4f})" if s.cost_usd else ""
    lines = [
        f"{s.exit_status} after {s.steps} steps in {s.seconds:.0f} s: {s.tokens} tokens{asked}{cost}, {s.backend} sandbox"
    ]
    for when in ("before", "after"):
        if (run := getattr(s, f"tests_{when}")) is not None:
            lines.append(
                f"tests {when}: {'timed out' if run.timed_out else f'exit {run.exit_code}'}, {plain(run.last_line)}"
            )
    lines += [f"note: {line}" for line in s.notes]
    if s.patch_file:
        lines += [
            f"patch: {s.patch_file} ({s.files} files, +{s.added} -{s.removed})",
            f"read it, then: {shlex.join(s.apply_command)}",
        ]
    else:
        lines.append("patch: none")
    return "\n".join([*lines, f"trajectory: {s.trajectory_file}"])
