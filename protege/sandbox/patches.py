"""Which patches grading takes: text that stays inside the repository and makes no links; and what each touches."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

MAX_PATCH_BYTES = 1024 * 1024
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_LINK_MODES = {"120000": "a symbolic link", "160000": "a submodule"}
_FILE_MODES = {"100644", "100755"}
_FOREIGN = re.compile(r"\*\*\* |Prereq:|\d+(,\d+)?[acd](\d+(,\d+)?)?$|[<>] ")
"""How context diffs, ed scripts and normal diffs begin: ``patch`` takes them, git does not."""
_ESCAPES = {"n": 10, "t": 9, "r": 13, "a": 7, "b": 8, "f": 12, "v": 11, '"': 34, "\\": 92}


def patch_problem(patch: str) -> str:
    """Why ``patch`` must not be applied, or "" when it may. Pure; looks at the text only.

    Rejected: over 1 MiB, text that UTF-8 cannot hold, absolute paths, ``..``, anything in a ``.git``, binary
    hunks, diffs that are not unified, file modes other than 100644 and 100755, and links (modes 120000 and
    160000) that are made or changed. Removing a link is allowed.

    >>> patch_problem("--- a/x.py\\n+++ b/x.py\\n@@ -1 +1 @@\\n-a\\n+b\\n")
    ''
    >>> patch_problem("--- a/x.py\\n+++ b/../x.py\\n@@ -1 +1 @@\\n-a\\n+b\\n")
    "the path 'b/../x.py' leaves the repository"
    """
    try:
        size = len(patch.encode())
    except UnicodeEncodeError:
        return "it holds characters that are not Unicode text"
    if size > MAX_PATCH_BYTES:
        return f"it is larger than {MAX_PATCH_BYTES} bytes"
    if "\0" in patch:
        return "it holds a NUL character"
    removed = added = 0
    for line in patch.split("\n"):
        if removed > 0 or added > 0:
            if line.startswith("\\"):
                continue
            if line[:1] in (" ", "-", "+", ""):
                removed -= line[:1] in (" ", "-", "")
                added -= line[:1] in (" ", "+", "")
                continue
            removed = added = 0  # shorter than announced: what follows is read as headers again
        if match := _HUNK.match(line):
            removed, added = (1 if count is None else int(count) for count in match.groups())
            continue
        problem = _header_problem(line.rstrip("\r"))
        if problem:
            return problem
    return ""


def _header_problem(line: str) -> str:
    for prefix in ("new file mode ", "new mode "):
        if line.startswith(prefix) and (mode := line.removeprefix(prefix).strip()) not in _FILE_MODES:
            return f"it makes {_LINK_MODES.get(mode, f'a file of mode {mode}')}"
    if line.startswith("GIT binary patch"):
        return "it holds a binary file"
    if _FOREIGN.match(line):
        return f"it is no unified diff (line {line[:40]!r})"
    if match := re.match(r"index [0-9a-fA-F]+\.\.[0-9a-fA-F]+ (\d{6})", line):
        if kind := _LINK_MODES.get(match.group(1)):
            return f"it changes {kind}"
    if line.startswith("diff --git "):
        return _path_problem(line.removeprefix("diff --git "), separators=r"[/\s\"]+")
    for prefix in ("--- ", "+++ ", "*** ", "Index: ", "rename from ", "rename to ", "copy from ", "copy to "):
        if line.startswith(prefix):
            name = _unquote(line.removeprefix(prefix))
            return _path_problem(name, bare=not prefix.startswith(("-", "+", "*")))
    return ""


def _unquote(name: str) -> str:
    """A file name as git wrote it: quoted and escaped like a C string, or plain up to a tab."""
    if not name.startswith('"'):
        return name.split("\t")[0]
    body = name[1 : name.rfind('"')] if name.rfind('"') > 0 else name[1:]
    raw = bytearray()
    for escape, octal, letter, plain in re.findall(r"(\\)(?:([0-7]{3})|(.))|([^\\])", body):
        if escape:
            raw += bytes([int(octal, 8) & 255]) if octal else bytes([_ESCAPES.get(letter, ord(letter) & 255)])
        else:
            raw += plain.encode()
    return raw.decode("utf-8", "replace")


def _path_problem(name: str, separators: str = "/", bare: bool = False) -> str:
    if name == "/dev/null":
        return ""
    parts = re.split(separators, name)
    if separators == "/" and (name.startswith("/") or (not bare and len(parts) > 1 and parts[1] == "")):
        return f"the path {name!r} is absolute"
    if ".." in parts:
        return f"the path {name!r} leaves the repository"
    if any(part.lower() == ".git" for part in parts):
        return f"the path {name!r} is git's own"
    return ""


@dataclass(frozen=True)
class Section:
    """One file's part of a unified diff: its text, every path that a header of it names, and what it does."""

    text: str
    paths: frozenset[str]
    creates: bool = False


def sections(patch: str) -> list[Section]:
    """The parts of a unified diff; their texts, joined, are ``patch``. What stands before the first has no paths.

    ``paths`` are normalised, without and with their first component (``a/``, ``b/``), for ``patch`` may use
    either; a rename has both names.

    >>> [sorted(part.paths) for part in sections("--- a/x.py\\n+++ b/x.py\\n@@ -1 +1 @@\\n-a\\n+b\\n")]
    [['a/x.py', 'b/x.py', 'x.py']]
    """
    found: list[Section] = []
    lines: list[str] = []
    names: set[str] = set()
    creates = after_hunk = False
    removed = added = 0

    def close() -> None:
        nonlocal names, creates, after_hunk
        if lines:
            found.append(Section("".join(lines), frozenset(names), creates))
            lines.clear()
        names, creates, after_hunk = set(), False, False

    for line in re.findall(r"[^\n]*\n|[^\n]+", patch):
        text = line.rstrip("\r\n")
        if removed > 0 or added > 0:
            if text.startswith("\\"):
                lines.append(line)
                continue
            if text[:1] in (" ", "-", "+", ""):
                removed -= text[:1] in (" ", "-", "")
                added -= text[:1] in (" ", "+", "")
                lines.append(line)
                continue
            removed = added = 0
        if match := _HUNK.match(text):
            removed, added = (1 if count is None else int(count) for count in match.groups())
            after_hunk = True
        elif text.startswith("diff --git ") or (after_hunk and text.startswith("--- ")):
            close()
        for name in _names(text):
            names |= _spellings(name)
        creates |= text.startswith(("new file mode ", "--- /dev/null", "rename to ", "copy to "))
        lines.append(line)
    close()
    return found


def _names(line: str) -> list[str]:
    for prefix in ("--- ", "+++ ", "Index: ", "rename from ", "rename to ", "copy from ", "copy to "):
        if line.startswith(prefix):
            return [_unquote(line.removeprefix(prefix))]
    if not line.startswith("diff --git "):
        return []
    rest = line.removeprefix("diff --git ")
    quoted = re.findall(r'"(?:[^"\\]|\\.)*"', rest)
    cuts = [match.start() for match in re.finditer(" ", rest)]
    # where the first name ends cannot be told when names hold spaces: all readings count
    return [_unquote(name) for name in quoted] + [part for cut in cuts for part in (rest[:cut], rest[cut + 1 :])]


def _spellings(name: str) -> set[str]:
    if name == "/dev/null":
        return set()
    plain = posixpath.normpath(name)
    return {plain, plain.partition("/")[2]} - {""}
