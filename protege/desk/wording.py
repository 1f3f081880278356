"""What the scripted teacher needs to know of a change, and how it words a step."""

from __future__ import annotations

from protege.agent.tools import render_call
from protege.core.patches import Change
from protege.core.trajectory import ToolCall
from protege.expert import verbalise


def told(change: Change) -> str:
    return verbalise.fix(change.removed, change.added)


def start(change: Change) -> int:
    """The line to read from, in the file as it is: that of the change, or the one that it goes behind."""
    return change.line if change.removed else max(1, change.line - 1)


def added(change: Change) -> list[str]:
    """What is written: without comments, which no advice tells, and without empty lines around it."""
    lines = [line for line in change.added if not line.lstrip().startswith("#")]
    while lines and not lines[0].strip():
        lines.pop(0)
    while lines and not lines[-1].strip():
        lines.pop()
    return lines or change.added


def definition(name: str) -> str:
    return rf"\(def\|class\) {name}\b"


def say(thought: str, tool: str, **arguments: str) -> str:
    return f"{thought}\n\n{render_call(ToolCall(name=tool, arguments=arguments))}"
