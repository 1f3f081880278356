"""Stalls as the paper measures them: base commands, runs of the same one, and the loop metric.

Definition (paper section on loop shaping; docs/method.md):

* The *base command* of a step is the class of what it did. Of a bash call: leading environment
  assignments and redirections are stripped, of a chain (``&&``, ``||``, ``;``, newline) the last subcommand counts, of a
  pipeline the first; its first token is the base command, or its first two for multi-command programs
  such as git. Programs that only look (grep, find, cat, ls, ``sed -n``, ``str_replace_editor view``, ...)
  are one class, ``navigate``.
* A *run* is a maximal sequence of consecutive steps with the same base command.
* The *loop metric* is the share of trajectories whose longest run is longer than 10.

>>> base_command("bash", {"command": "cd /testbed && LANG=C grep -rn foo . | head"})
'navigate'
>>> base_command("bash", {"command": "git -C x diff --stat; git status -s"})
'git status'
>>> base_command("bash", {"command": "python -m pytest -q 2>&1 | tail -n 3"})
'python'
>>> base_command("str_replace_editor", {"command": "str_replace"})
'str_replace_editor str_replace'
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from itertools import groupby

from protege.core.trajectory import Trajectory, Turn

NAVIGATE = "navigate"
MALFORMED = "(malformed)"
EMPTY = "(empty)"

_LOOKERS = frozenset(
    "ack ag awk bat cat cd dir egrep fd fgrep file find grep head less locate ls more nl pwd rg stat tail tree wc".split()
)
_SHOWERS = frozenset({NAVIGATE, EMPTY, "cut", "diff", "echo", "printf", "sort", "tr", "uniq"})
_TWO_TOKENS = frozenset("apt apt-get cargo conda docker git go hg make npm pip pip3 poetry svn uv yarn".split())
_ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")
_PIPES = frozenset({"|", "|&"})
_GIT_OPTIONS_WITH_VALUE = frozenset({"-C", "-c", "--git-dir", "--work-tree"})


def base_command(tool: str | None, arguments: dict[str, str]) -> str:
    """The base command of one step; ``tool`` is None for a message without a well-formed call."""
    if tool is None:
        return MALFORMED
    if tool == "str_replace_editor":
        action = arguments.get("command", "").strip()
        return NAVIGATE if action == "view" else f"{tool} {action}".strip()
    if tool == "bash":
        return _bash_base(arguments.get("command", ""))
    return tool


def only_looks(command: str) -> bool:
    """Whether all programs of a bash command show what is there, so that its output stands like that in files.

    >>> only_looks("cd src && grep -n x a.py | head; git diff"), only_looks("pytest > log; cat log")
    (True, False)
    """
    bases = [_simple_base(words) for words in _simple_commands(_tokens(command))]
    return all(base in _SHOWERS or base.split()[0] == "git" for base in bases)


def _simple_commands(tokens: Sequence[str]) -> list[list[str]]:
    commands: list[list[str]] = [[]]
    for token in tokens:
        if token and set(token) <= set(";&|\n"):
            commands.append([])
        else:
            commands[-1].append(token)
    return [command for command in commands if command]


def _bash_base(command: str) -> str:
    return _simple_base(_last_simple_command(_tokens(command)))


def _simple_base(simple: list[str]) -> str:
    while simple and _ASSIGNMENT.match(simple[0]):
        simple = simple[1:]
    if not simple:
        return EMPTY
    program = simple[0].rstrip("/").rsplit("/", 1)[-1] or simple[0] or EMPTY
    rest = simple[1:]
    if program in _LOOKERS or (program == "sed" and "-n" in rest):
        return NAVIGATE
    if program in _TWO_TOKENS:
        action = _first_action(rest)
        return f"{program} {action}" if action else program
    return program


def _tokens(command: str) -> list[str]:
    # A here-document's body is data, not commands: only the line that opens it counts.
    heredoc = re.search(r"<<-?\s*['\"]?(\w+)['\"]?[^\n]*\n.*?^\s*\1\s*$", command, re.DOTALL | re.MULTILINE)
    if heredoc:
        opening = command[: command.index("\n", heredoc.start())]
        return _tokens(opening + command[heredoc.end() :])
    lexer = shlex.shlex(command.strip().replace("\\\n", " "), posix=True, punctuation_chars=";&|\n<>")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return _without_redirections(list(lexer))
    except ValueError:  # an unbalanced quote: fall back to words
        return command.split()


def _without_redirections(tokens: Sequence[str]) -> list[str]:
    """``2>&1``, ``> out``, ``&> out``, ``<< EOF``: the operator with its descriptor and its target, out of ``tokens``."""
    kept: list[str] = []
    words = iter(tokens)
    for token in words:
        if token and set(token) <= set("<>&|") and set(token) & set("<>"):
            if kept and kept[-1].isdigit():
                kept.pop()
            next(words, None)
        else:
            kept.append(token)
    return kept


def _last_simple_command(tokens: Sequence[str]) -> list[str]:
    commands: list[list[str]] = [[]]
    in_pipe = False
    for token in tokens:
        if token and set(token) <= set(";&|\n"):
            in_pipe = token in _PIPES
            if not in_pipe:
                commands.append([])
        elif not in_pipe:
            commands[-1].append(token)
    return next((command for command in reversed(commands) if command), [])


def _first_action(words: Sequence[str]) -> str | None:
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in _GIT_OPTIONS_WITH_VALUE:
            skip = True
        elif not word.startswith("-"):
            return word
    return None


def base_commands(turns: Iterable[Turn]) -> list[str]:
    """The base command of every step, in order."""
    return [base_command(t.call.name if t.call else None, t.call.arguments if t.call else {}) for t in turns]


def runs(trajectory: Trajectory) -> list[tuple[str, int]]:
    """The maximal runs as (base command, length), in order of time; lengths sum to the number of steps."""
    return [(base, sum(1 for _ in group)) for base, group in groupby(base_commands(trajectory.turns))]


def run_lengths(trajectory: Trajectory) -> list[int]:
    """Lengths of the maximal runs, in order of time."""
    return [length for _, length in runs(trajectory)]


def longest_run(trajectory: Trajectory) -> int:
    """Length of the longest run; 0 for a trajectory without steps."""
    return max(run_lengths(trajectory), default=0)


def loop_share(trajectories: Sequence[Trajectory], longer_than: int = 10) -> float:
    """Share of trajectories whose longest run is longer than ``longer_than`` (paper: 10); 0.0 for none."""
    if not trajectories:
        return 0.0
    return sum(longest_run(t) > longer_than for t in trajectories) / len(trajectories)


def survival(trajectories: Sequence[Trajectory], up_to: int = 30) -> list[float]:
    """Element k is the share of trajectories whose longest run is longer than k, for k = 0 .. ``up_to``."""
    return [loop_share(trajectories, k) for k in range(up_to + 1)]
