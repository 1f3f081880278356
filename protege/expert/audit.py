"""How much of the gold patch an expert's reply gives away, verbatim.

Used by the agent loop (``ExpertCall.overlap_chars``), by the oracle to check itself, and by validation.
All comparisons are case-sensitive and made after whitespace normalisation: every run of whitespace is one
space and the ends are stripped, so that re-indenting or re-wrapping a gold line does not hide it.
"""

from __future__ import annotations

import keyword

from protege.core.patches import changes

MIN_LEAK_CHARS = 8
"""A whole added line shorter than this (``pass``, ``else:``) says too little to be a leak."""


def changed_lines(patch: str) -> tuple[list[str], list[str]]:
    """Added and removed lines of a unified diff, without their sign, whitespace-normalised, blank ones left out."""
    found = changes(patch)
    added = [_normalise(line) for change in found for line in change.added]
    removed = [_normalise(line) for change in found for line in change.removed]
    return [line for line in added if line], [line for line in removed if line]


def longest_overlap(reply: str, patch: str) -> int:
    """Length in characters of the longest run that ``reply`` shares with any single changed line of ``patch``.

    Both added and removed lines count. 0 for an empty reply or a patch without hunks.
    """
    added, removed = changed_lines(patch)
    lines = set(added + removed)
    text = _normalise(reply)

    def shares(length: int) -> bool:
        runs = {text[i : i + length] for i in range(len(text) - length + 1)}
        return any(line[i : i + length] in runs for line in lines for i in range(len(line) - length + 1))

    # A shared run of n characters holds one of n - 1, so the largest n can be found by bisection.
    low, high = 0, min(len(text), max(map(len, lines), default=0))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if shares(middle) else (low, middle - 1)
    return low


def leaked_lines(reply: str, patch: str, min_chars: int = MIN_LEAK_CHARS) -> list[str]:
    """The added lines of ``patch`` (normalised, at least ``min_chars`` long) that stand whole inside ``reply``.

    A line that is one bare Python keyword (``continue``, ``finally:``) is an English word too, and no leak.
    """
    text = _normalise(reply)
    added, _ = changed_lines(patch)
    return [
        line
        for line in dict.fromkeys(added)
        if len(line) >= min_chars and not keyword.iskeyword(line.rstrip(" :")) and line in text
    ]


def leaks_line(reply: str, patch: str) -> bool:
    """Whether ``reply`` holds a whole added line of ``patch``; see :func:`leaked_lines`."""
    return bool(leaked_lines(reply, patch))


def _normalise(text: str) -> str:
    return " ".join(text.split())
