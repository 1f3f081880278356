"""Put a small code change into a colleague's words, without writing out the line.

The oracle (oracle.py) speaks with these; the words name identifiers, operators and short constants, never
a whole changed line.
"""

from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Sequence
from difflib import SequenceMatcher

from protege.expert.spoken import expression, is_complete, statement

MAX_TOLD = 4
"""Statements told of one change."""


def kind(removed: Sequence[str], added: Sequence[str]) -> str:
    """What sort of change turns the lines ``removed`` (buggy) into ``added`` (right), in a few words."""
    if not removed:
        missing = _parse(added)
        names = {ast.Assign: "an assignment", ast.AugAssign: "an update of a variable", ast.If: "a condition"}
        names |= {ast.Return: "a return", ast.For: "a loop", ast.While: "a loop", ast.Raise: "an error that is raised"}
        return f"{names.get(type(missing), 'a statement')} is missing"
    if not added:
        return "there is a statement too many"
    if sorted(line.strip() for line in removed) == sorted(line.strip() for line in added):
        return "statements stand in the wrong order"
    old, new = _tokens(removed), _tokens(added)
    if sorted(old) == sorted(new):
        return "two parts of an expression are the wrong way round"
    edits = _edits(old, new)
    if all(re.fullmatch(r"[\d.]+|'.*'|\".*\"", token) for pair in edits for side in pair for token in side):
        return "a constant is off"
    if all(_is_operator(token) for pair in edits for side in pair for token in side):
        return "an operator is wrong"
    if len(added) > len(removed):
        return "part of the logic is missing"
    return "an expression is not what it should be"


def fix(removed: Sequence[str], added: Sequence[str]) -> str:
    """What to change, in words."""
    if not removed:
        return f"what is missing there: {statements(added)}"
    if not added:
        return f"{anchor(removed)} should not be there; take it out"
    old_lines, new_lines = [x.strip() for x in removed], [x.strip() for x in added]
    if sorted(old_lines) == sorted(new_lines) and len(old_lines) > 1:
        first = next(b for a, b in zip(old_lines, new_lines, strict=True) if a != b)
        return f"put the statements back in order; {anchor([first])} belongs earlier"
    old, new = _tokens(removed), _tokens(added)
    edits = _edits(old, new)
    if sorted(old) == sorted(new) and len(edits) <= 3:
        return f"in {anchor(removed)}, swap the two sides so that it reads {_reads(added)}"
    if old != ["pass"] and len(edits) <= 3 and sum(len(a) + len(b) for a, b in edits) <= 14:
        if all(_count(a, old) == 1 for a, _ in edits) or not is_complete(_reads(added)):
            return f"in {anchor(removed)}, " + "; and ".join(_edit_words(a, b) for a, b in edits)
        return f"in {anchor(removed)}, something is off; it should be: {_reads(added)}"
    return f"{anchor(removed)} has to change: {statements(added)}"


def anchor(lines: Sequence[str]) -> str:
    """Which statement is meant, without quoting it: "the assignment to `x`", "the `return`", ..."""
    first = next((line.strip() for line in lines if line.strip()), "")
    if match := re.match(r"(el)?if\b|while\b", first):
        return f"the `{match.group()}` condition"
    for word, phrase in (("return", "the `return`"), ("for", "the `for` loop"), ("yield", "the `yield`")):
        if re.match(rf"{word}\b", first):
            return phrase
    for word in ("raise", "with", "try", "pass", "except", "else", "assert", "def", "class", "import", "from"):
        if re.match(rf"{word}\b", first):
            return f"the `{word}` statement"
    if match := re.match(r"([\w.]+(?:\[[^\]]{1,12}\])?)\s*(?:[-+*/|&]|//)?=(?!=)", first):
        return f"the assignment to `{match.group(1)}`"
    if match := re.match(r"([\w.]+)\s*\(", first):
        return f"the call of `{match.group(1)}`"
    return "the expression"


def statements(lines: Sequence[str]) -> str:
    """The statements in ``lines`` in words; names what they use where they do not parse."""
    body = _parse_all(lines)
    if not body:
        names = list(dict.fromkeys(re.findall(r"[A-Za-z_]\w*", " ".join(lines))))
        return "it should work with " + _listed([f"`{n}`" for n in names[:8]])
    told = "; then ".join(statement(node) for node in body[:MAX_TOLD])
    told += " and more" if len(body) > MAX_TOLD else ""
    # A branch of an earlier condition (see _parse_all).
    return f"otherwise {told}" if re.match(r"\s*(elif|else)\b", "\n".join(lines)) else told


def _parse_all(lines: Sequence[str]) -> list[ast.stmt]:
    """What ``lines`` hold, an unfinished block and a branch of an earlier condition included; [] where nothing parses."""
    text = textwrap.dedent("\n".join(lines)).rstrip()
    for candidate in (text, text + "\n    pass"):
        try:
            return ast.parse(candidate).body
        except SyntaxError:
            pass
        try:
            (condition,) = ast.parse("if True:\n    pass\n" + candidate).body
        except (SyntaxError, ValueError):
            continue
        if isinstance(condition, ast.If):
            return condition.orelse
    return []


def _parse(lines: Sequence[str]) -> ast.stmt | None:
    body = _parse_all(lines)
    return body[0] if body else None


def _listed(words: Sequence[str]) -> str:
    if len(words) <= 1:
        return words[0] if words else "nothing"
    return ", ".join(words[:-1]) + " and " + words[-1]


def _tokens(lines: Sequence[str]) -> list[str]:
    text = textwrap.dedent("\n".join(lines)) + "\n"
    skip = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}
    tokens: list[str] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in skip:
                tokens.append(token.string)
    except (tokenize.TokenError, IndentationError):
        return re.findall(r"\w+|[^\w\s]+", text)
    return tokens


def _edits(old: Sequence[str], new: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    return [(list(old[a:b]), list(new[c:d])) for tag, a, b, c, d in matcher.get_opcodes() if tag != "equal"]


def _count(part: Sequence[str], whole: Sequence[str]) -> int:
    """How often ``part`` stands in ``whole``; nothing stands everywhere."""
    return sum(list(whole[i : i + len(part)]) == list(part) for i in range(len(whole) - len(part) + 1))


def _edit_words(old: Sequence[str], new: Sequence[str]) -> str:
    before, after = " ".join(f"`{t}`" for t in old), " ".join(f"`{t}`" for t in new)
    if not old:
        return f"add {after}"
    if not new:
        return f"drop {before}"
    return f"use {after} instead of {before}"


def _reads(lines: Sequence[str]) -> str:
    node = _parse(lines)
    if isinstance(node, ast.Assign | ast.Return | ast.Expr) and node.value is not None:
        return expression(node.value)
    if isinstance(node, ast.If | ast.While):
        return expression(node.test)
    return statements(lines)


def _is_operator(token: str) -> bool:
    return bool(re.fullmatch(r"[^\w\s]+|and|or|not|in|is", token))
