"""A problem statement as a user would write it: what was called, what came out, what was expected.

Every fact in it was measured: the snippet is run in the sandbox on the buggy and on the correct code, and is used
only if the two differ.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from protege.desk.snippet import Snippet
from protege.files import digest

MAX_CHARS = 1200
_MAX_VALUE = 160

_CALLED = (
    "Running this", "I ran the following", "Here is what I do", "To reproduce", "Minimal example", "With this code",
)  # fmt: skip
_WRONG_VALUE = (
    "gives `{actual}`, but I expected `{expected}`.",
    "I get `{actual}`. It should be `{expected}`.",
    "The result is `{actual}` where `{expected}` would be right.",
    "Expected: `{expected}`\nActual: `{actual}`",
)
_RAISES = (
    "This fails with `{error}`. I expected `{expected}`.",
    "It raises `{error}` instead of giving `{expected}`.",
    "Expected: `{expected}`\nActual: `{error}`",
)
_RAISES_PLAIN = (
    "This fails with `{error}`. It should run without an error.",
    "It raises `{error}`; I expected no error at all.",
)
_NOT_RAISED = (
    "No error is raised, I get `{actual}`. I expected `{expected}`.",
    "This should raise `{expected}`, but it gives `{actual}`.",
)
_OTHER_ERROR = (
    "It raises `{error}`. I expected `{expected}` here.",
    "The error should be `{expected}`, but what I get is `{error}`.",
)
_TITLES_VALUE = (
    "{subject} gives a wrong result",
    "Wrong result from {subject}",
    "{subject} returns an unexpected value",
)
_TITLES_RAISES = ("{subject} fails with {kind}", "{kind} with {subject}", "Unexpected {kind} from {subject}")
_TITLES_NOT_RAISED = ("{subject} does not raise {kind}", "{subject}: missing {kind}")


@dataclass(frozen=True)
class Observed:
    """A snippet with its outcome on the buggy and on the correct code (as the probe reports them)."""

    snippet: Snippet
    buggy: dict[str, Any]
    correct: dict[str, Any]

    @property
    def telling(self) -> bool:
        """The two outcomes differ, in something that does not change from run to run."""
        for outcome in (self.buggy, self.correct):
            shown = f"{outcome.get('value', '')}{outcome.get('message', '')}"
            if outcome.get("setup") is False or "0x" in shown or outcome.get("message") == "too long":
                return False
        if "exception" in self.correct and self.correct["exception"] in {
            "NameError",
            "ImportError",
            "ModuleNotFoundError",
        }:
            return False
        return _shown(self.buggy) != _shown(self.correct)


def write(observed: Observed, seed: int | str) -> str:
    """The statement: a title line, the snippet, what came out, what was expected. At most MAX_CHARS characters."""
    rng = random.Random(digest("statement", seed))
    buggy, correct, snippet = observed.buggy, observed.correct, observed.snippet
    actual, expected = _around_difference(_shown(buggy), _shown(correct))
    kind = buggy.get("exception") or correct.get("exception") or ""
    if "exception" in buggy and "exception" in correct:
        title, body = rng.choice(_TITLES_VALUE), rng.choice(_OTHER_ERROR)
    elif "exception" in buggy:
        plain = correct.get("value") == "None"
        title, body = rng.choice(_TITLES_RAISES), rng.choice(_RAISES_PLAIN if plain else _RAISES)
    elif "exception" in correct:
        title, body = rng.choice(_TITLES_NOT_RAISED), rng.choice(_NOT_RAISED)
    else:
        title, body = rng.choice(_TITLES_VALUE), rng.choice(_WRONG_VALUE)
    code = "\n".join([*snippet.imports, *([""] if snippet.imports else []), *snippet.setup, snippet.final])
    text = body.format(actual=actual, expected=expected, error=actual)
    text = text[0].upper() + text[1:] if not text.startswith("gives") else f"It {text}"
    head = title.format(subject=f"`{snippet.subject}`", kind=kind)
    return f"{head}\n\n{rng.choice(_CALLED)}:\n\n```python\n{code}\n```\n\n{text}\n"


def _shown(outcome: dict[str, Any]) -> str:
    if "exception" not in outcome:
        return str(outcome["value"])
    message = str(outcome["message"]).strip().splitlines()
    return f"{outcome['exception']}: {message[0]}" if message else str(outcome["exception"])


def _around_difference(actual: str, expected: str) -> tuple[str, str]:
    """Both shortened to the neighbourhood of their first difference where they are long."""
    if max(len(actual), len(expected)) <= _MAX_VALUE:
        return actual, expected
    at = next(
        (i for i, (a, b) in enumerate(zip(actual, expected, strict=False)) if a != b), min(len(actual), len(expected))
    )
    start = max(0, at - _MAX_VALUE // 3)

    def cut(text: str) -> str:
        piece = text[start : start + _MAX_VALUE]
        return ("…" if start else "") + piece + ("…" if start + _MAX_VALUE < len(text) else "")

    return cut(actual), cut(expected)


def leaks(statement: str, *, patch: str, tests: list[str], path: str) -> str | None:
    """Why this statement says too much (or None): a changed line, a hidden test's name or file, the file at fault."""
    if len(statement) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    squeezed = re.sub(r"\s+", "", statement)
    for line in patch.splitlines():
        if line[:1] in {"+", "-"} and not line.startswith(("+++", "---")):
            changed = re.sub(r"\s+", "", line[1:])
            if len(changed) >= 6 and changed in squeezed:
                return "holds a changed line"
    for test in tests:
        file, *scopes = test.split("[", 1)[0].split("::")
        name = file.rsplit("/", 1)[-1]
        if any(scope in statement for scope in scopes) or name in statement or name.removesuffix(".py") in statement:
            return "names a hidden test"
    if path in statement or re.search(r"\bline \d+", statement):
        return "names a file or line"
    return None
