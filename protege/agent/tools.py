"""The agent's tools: parse a call in the XML function form, run it in a sandbox, word the observation.

The form is the one SWE-agent-LM was trained on, so that SWE-smith's published trajectories load as they are::

    <function=bash>
    <parameter=command>python -m pytest -q</parameter>
    </function>

``str_replace_editor`` has SWE-agent's meanings and errors. ``submit`` and ``ask_expert`` are carried out
by the agent loop (agent.py); here they are only parsed and checked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from protege.agent.normalise import normalised
from protege.core.loops import only_looks
from protege.core.markers import EXPERT_CLOSE as EXPERT_CLOSE
from protege.core.markers import EXPERT_OPEN as EXPERT_OPEN
from protege.core.markers import defuse as defuse
from protege.core.trajectory import ToolCall
from protege.sandbox.base import Sandbox

_FUNCTION = re.compile(r"<function=([^>\n]*)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]*)>(.*?)</parameter>", re.DOTALL)

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")

OBSERVATION_PREFIX = "OBSERVATION:\n"

TOOLS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "bash": (frozenset({"command"}), frozenset()),
    "str_replace_editor": (
        frozenset({"command", "path"}),
        frozenset({"file_text", "old_str", "new_str", "insert_line", "view_range"}),
    ),
    "submit": (frozenset(), frozenset()),
    "ask_expert": (frozenset({"query"}), frozenset()),
}
"""Tool name -> (required, optional) parameters."""

EDITOR_COMMANDS = ("view", "create", "str_replace", "insert", "undo_edit")
SNIPPET_LINES = 4


class Malformed(ValueError):
    """The message holds no well-formed call; the text is the observation that says what was wrong."""


@dataclass
class Outcome:
    """What a tool call came to. ``exit_code`` is None for the editor."""

    observation: str
    exit_code: int | None = None
    timed_out: bool = False
    dropped_bytes: int = 0


def render_call(call: ToolCall) -> str:
    """The XML text of ``call``; ``parse_call`` reads it back."""
    # parse_call takes one newline off either end, so a value that has its own is given one more.
    values = {k: f"\n{v}\n" if v[:1] == "\n" or v[-1:] == "\n" else v for k, v in call.arguments.items()}
    parameters = "".join(f"<parameter={k}>{v}</parameter>\n" for k, v in values.items())
    return f"<function={call.name}>\n{parameters}</function>"


def parse_call(message: str) -> ToolCall:
    """The one call in an assistant message.

    Raises:
        Malformed: none, several, an unknown tool, or missing, unknown or repeated parameters.
    """
    found = _FUNCTION.findall(message)
    if not found:
        hint = " The call was opened but never closed with </function>." if "<function=" in message else ""
        raise Malformed(
            f"Your message has no tool call.{hint} Every message must hold exactly one call of the form:\n"
            "<function=NAME>\n<parameter=KEY>VALUE</parameter>\n</function>"
        )
    if len(found) > 1:
        raise Malformed(f"Your message has {len(found)} tool calls; make exactly one call a message.")
    name, body = found[0][0].strip(), found[0][1]
    if name not in TOOLS:
        raise Malformed(f"There is no tool named {name!r}. The tools are: {', '.join(TOOLS)}.")
    arguments: dict[str, str] = {}
    for key, value in _PARAMETER.findall(body):
        key = key.strip()
        if key in arguments:
            raise Malformed(f"Parameter {key!r} of {name} is given twice.")
        arguments[key] = value.removeprefix("\n").removesuffix("\n")
    required, optional = TOOLS[name]
    if missing := sorted(required - arguments.keys()):
        raise Malformed(f"The call of {name} lacks the parameter(s): {', '.join(missing)}.")
    if unknown := sorted(arguments.keys() - required - optional):
        raise Malformed(f"{name} has no parameter(s) named: {', '.join(unknown)}.")
    return ToolCall(name=name, arguments=arguments)


def truncate(text: str, limit: int) -> tuple[str, int]:
    """Cut the middle out of ``text`` so that about ``limit`` characters stay; returns (text, characters cut)."""
    if len(text) <= limit:
        return text, 0
    head = limit * 2 // 3
    tail = limit - head
    cut = len(text) - head - tail
    return f"{text[:head]}\n[... {cut} characters left out of the middle ...]\n{text[-tail:]}", cut


def without_escapes(text: str) -> str:
    """``text`` without a terminal's escape sequences: a repository's own settings may colour its test output.

    >>> without_escapes("\\x1b[31m\\x1b[1m1 failed\\x1b[0m, \\x1b]8;;file:///a\\x1b\\\\\\x1b[32m121 passed\\x1b[0m")
    '1 failed, 121 passed'
    """
    return _ESCAPE.sub("", text)


@dataclass
class Toolbox:
    """The tools of one rollout; holds the editor's undo history and what the agent has written in its calls."""

    sandbox: Sandbox
    command_timeout: float
    _history: dict[str, list[bytes | None]] = field(default_factory=dict)
    _said: str = ""

    def run(self, call: ToolCall, time_left: float) -> Outcome:
        """Carry out a bash or editor call. Sandbox failures propagate as SandboxError."""
        self._said += "\n".join([*call.arguments.values(), ""])
        if call.name == "bash":
            return self._bash(call.arguments["command"], min(self.command_timeout, max(1.0, time_left)))
        try:
            return Outcome(self._edit(call.arguments))
        except _EditorError as error:
            return Outcome(str(error))

    def _bash(self, command: str, timeout: float) -> Outcome:
        if not command.strip():
            return Outcome("The command is empty.", exit_code=0)
        result = self.sandbox.exec(command, timeout=timeout)
        text = without_escapes(result.output).rstrip("\n")
        if not only_looks(command):  # what it shows of files is to be edited literally
            text = normalised(text, self._said)
        if result.dropped_bytes:
            text += f"\n[{result.dropped_bytes} further bytes of output were dropped]"
        if result.timed_out:
            text += f"\nThe command timed out after {timeout:g} seconds and was killed with all its children."
        elif result.exit_code:
            text += f"\n(exit code {result.exit_code})"
        elif not text:
            text = "Your command ran successfully and did not produce any output."
        return Outcome(text.lstrip("\n"), result.exit_code, result.timed_out, result.dropped_bytes)

    def _edit(self, arguments: dict[str, str]) -> str:
        command, path = arguments["command"].strip(), arguments["path"].strip()
        if command not in EDITOR_COMMANDS:
            raise _EditorError(
                f"Unrecognized command {command}. The allowed commands for the str_replace_editor tool are: "
                f"{', '.join(EDITOR_COMMANDS)}"
            )
        if not path.startswith("/"):
            raise _EditorError(
                f"The path {path} is not an absolute path, it should start with `/`. "
                f"Maybe you meant {self.sandbox.workdir}/{path}?"
            )
        if "\0" in path:
            raise _EditorError("The path holds a NUL character.")
        handler = {
            "view": self._view,
            "create": self._create,
            "str_replace": self._str_replace,
            "insert": self._insert,
            "undo_edit": self._undo,
        }[command]
        return handler(path, arguments)

    def _read(self, path: str) -> str:
        try:
            data = self.sandbox.read(path)
        except FileNotFoundError:
            raise _EditorError(f"The path {path} does not exist. Please provide a valid path.") from None
        except IsADirectoryError:
            raise _EditorError(
                f"The path {path} is a directory and only the `view` command can be used on directories"
            ) from None
        except PermissionError:
            raise _EditorError(f"No permission to read {path}.") from None
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise _EditorError(f"{path} is not a UTF-8 text file.") from None

    def _write(self, path: str, text: str, before: str | None) -> None:
        try:
            self.sandbox.write(path, text.encode("utf-8", "surrogateescape"))
        except (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise _EditorError(f"Cannot write {path}: {error.strerror or error}") from None
        self._history.setdefault(path, []).append(None if before is None else before.encode())

    def _view(self, path: str, arguments: dict[str, str]) -> str:
        try:
            text = self._read(path)
        except _EditorError as error:
            if "is a directory" not in str(error):
                raise
            if "view_range" in arguments:
                raise _EditorError(
                    "The `view_range` parameter is not allowed when `path` points to a directory."
                ) from None
            quoted = "'" + path.replace("'", "'\\''") + "'"
            listing = self.sandbox.exec(f"find {quoted} -maxdepth 2 -not -path '*/.*' | sort", timeout=30)
            return (
                f"Here's the files and directories up to 2 levels deep in {path}, excluding hidden items:\n"
                f"{listing.output.rstrip()}"
            )
        lines = text.split("\n")
        if "view_range" not in arguments:
            return _numbered(lines, 1, path)
        numbers = re.findall(r"-?\d+", arguments["view_range"])
        if len(numbers) != 2:
            raise _EditorError("Invalid `view_range`. It should be a list of two integers.")
        first, last = int(numbers[0]), int(numbers[1])
        count = len(lines)
        if not 1 <= first <= count:
            raise _EditorError(
                f"Invalid `view_range`: {[first, last]}. Its first element `{first}` should be within the range of "
                f"lines of the file: {[1, count]}"
            )
        if last != -1 and last < first:
            raise _EditorError(
                f"Invalid `view_range`: {[first, last]}. Its second element `{last}` should be larger or equal than "
                f"its first `{first}`"
            )
        last = count if last == -1 else min(last, count)
        return _numbered(lines[first - 1 : last], first, path)

    def _create(self, path: str, arguments: dict[str, str]) -> str:
        if "file_text" not in arguments:
            raise _EditorError("Parameter `file_text` is required for command: create")
        try:
            self.sandbox.read(path)
        except FileNotFoundError:
            self._write(path, arguments["file_text"], None)
            return f"File created successfully at: {path}"
        except (IsADirectoryError, PermissionError):
            pass
        raise _EditorError(f"File already exists at: {path}. Cannot overwrite files using command `create`.")

    def _str_replace(self, path: str, arguments: dict[str, str]) -> str:
        if not arguments.get("old_str"):
            raise _EditorError("Parameter `old_str` is required for command: str_replace")
        text = self._read(path)
        old, new = arguments["old_str"], arguments.get("new_str", "")
        count = text.count(old)
        if count == 0:
            raise _EditorError(f"No replacement was performed, old_str `{old}` did not appear verbatim in {path}.")
        if count > 1:
            numbers = [i + 1 for i, line in enumerate(text.split("\n")) if old.split("\n")[0] in line]
            raise _EditorError(
                f"No replacement was performed. Multiple occurrences of old_str `{old}` in lines {numbers}. "
                "Please ensure it is unique"
            )
        if old == new:
            raise _EditorError(f"No replacement was performed, old_str `{old}` is the same as new_str `{new}`.")
        edited = text.replace(old, new)
        self._write(path, edited, text)
        at = text[: text.index(old)].count("\n")
        first = max(0, at - SNIPPET_LINES)
        snippet = edited.split("\n")[first : at + SNIPPET_LINES + new.count("\n") + 1]
        return _edited(path, snippet, first + 1)

    def _insert(self, path: str, arguments: dict[str, str]) -> str:
        if "insert_line" not in arguments:
            raise _EditorError("Parameter `insert_line` is required for command: insert")
        if "new_str" not in arguments:
            raise _EditorError("Parameter `new_str` is required for command: insert")
        lines = self._read(path).split("\n")
        try:
            line = int(arguments["insert_line"])
        except ValueError:
            line = -1
        if not 0 <= line <= len(lines):
            raise _EditorError(
                f"Invalid `insert_line` parameter: {arguments['insert_line']}. It should be within the range of lines "
                f"of the file: {[0, len(lines)]}"
            )
        new = arguments["new_str"].split("\n")
        edited = lines[:line] + new + lines[line:]
        self._write(path, "\n".join(edited), "\n".join(lines))
        first = max(0, line - SNIPPET_LINES)
        return _edited(path, edited[first : line + len(new) + SNIPPET_LINES], first + 1)

    def _undo(self, path: str, arguments: dict[str, str]) -> str:
        if not self._history.get(path):
            raise _EditorError(f"No edit history found for {path}.")
        before = self._history[path].pop()
        if before is None:
            quoted = "'" + path.replace("'", "'\\''") + "'"
            self.sandbox.exec(f"rm -f -- {quoted}", timeout=30)
            return f"Last edit to {path} undone successfully. The file was created by that edit and is gone."
        self.sandbox.write(path, before)
        return f"Last edit to {path} undone successfully. {_numbered(before.decode().split(chr(10)), 1, path)}"


class _EditorError(Exception):
    pass


def _numbered(lines: list[str], first: int, path: str) -> str:
    body = "\n".join(f"{number:6}\t{line}" for number, line in enumerate(lines, first))
    return f"Here's the result of running `cat -n` on {path}:\n{body}\n"


def _edited(path: str, snippet: list[str], first: int) -> str:
    body = "\n".join(f"{number:6}\t{line}" for number, line in enumerate(snippet, first))
    return (
        f"The file {path} has been edited. Here's the result of running `cat -n` on a snippet of {path}:\n{body}\n"
        "Review the changes and make sure they are as expected (correct indentation, no duplicate lines, etc). "
        "Edit the file again if necessary."
    )
