"""Read a unified diff: which files, which lines."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@ ?(.*)$")


@dataclass
class Change:
    """One run of changed lines: ``removed`` become ``added`` at line ``line`` (1-based, old file) of ``path``.

    ``before`` and ``after`` are the hunk's context lines directly around the change; ``header`` is the text
    behind the hunk's second ``@@`` (git puts the enclosing function there).
    """

    path: str
    line: int
    header: str = ""
    removed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


def changes(patch: str) -> list[Change]:
    """The changes of a unified diff, in order; paths are without the ``a/`` and ``b/`` prefixes.

    A hunk with several runs of changed lines gives one Change for each run. Lines are counted by the hunk
    headers, so a removed ``-- comment`` is not mistaken for a file header.
    """
    result: list[Change] = []
    path, header = "", ""
    line = old = new = 0
    context: list[str] = []
    current: Change | None = None
    for text in patch.split("\n"):
        if old > 0 or new > 0:
            sign = text[:1]
            if sign in {"-", "+"}:
                if current is None or current.after:
                    current = Change(path, line, header, before=context[-6:])
                    context = []
                    result.append(current)
                (current.removed if sign == "-" else current.added).append(text[1:])
                old, new, line = old - (sign == "-"), new - (sign == "+"), line + (sign == "-")
            elif sign != "\\":
                context.append(text[1:])
                if current is not None:
                    current.after.append(text[1:])
                old, new, line = old - 1, new - 1, line + 1
        elif match := _HUNK.match(text):
            line, header, context, current = int(match.group(1)), match.group(4), [], None
            old, new = (1 if count is None else int(count) for count in match.group(2, 3))
        elif text.startswith("+++ "):
            name = text[4:].split("\t")[0].strip()
            path = name[2:] if name[:2] in {"a/", "b/"} else name
    return result


def enclosing_function(change: Change) -> str:
    """Best guess at the function a change is in, from the diff alone; "" where it does not tell."""
    for text in reversed(change.before):
        if match := re.match(r"\s*(?:async\s+)?(?:def|class)\s+(\w+)", text):
            return match.group(1)
    match = re.search(r"(?:def|class)\s+(\w+)", change.header)
    return match.group(1) if match else ""
