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

MAX_DEPTH = 6
"""Expressions nested deeper than this are "the rest"."""

_OPERATORS: dict[type, str] = {
    ast.Add: "plus",
    ast.Sub: "minus",
    ast.Mult: "times",
    ast.Div: "divided by",
    ast.FloorDiv: "floor-divided by",
    ast.Mod: "modulo",
    ast.Pow: "to the power of",
    ast.BitOr: "bitwise-or",
    ast.BitAnd: "bitwise-and",
    ast.BitXor: "bitwise-xor",
    ast.LShift: "shifted left by",
    ast.RShift: "shifted right by",
    ast.Eq: "equals",
    ast.NotEq: "differs from",
    ast.Lt: "is less than",
    ast.LtE: "is at most",
    ast.Gt: "is greater than",
    ast.GtE: "is at least",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "is in",
    ast.NotIn: "is not in",
    ast.And: "and",
    ast.Or: "or",
    ast.USub: "minus",
    ast.UAdd: "plus",
    ast.Not: "not",
    ast.Invert: "the bitwise inverse of",
}


def kind(removed: Sequence[str], added: Sequence[str]) -> str:
    """What sort of change turns the lines ``removed`` (buggy) into ``added`` (right), in a few words."""
    if not removed:
        statement = _parse(added)
        names = {ast.Assign: "an assignment", ast.AugAssign: "an update of a variable", ast.If: "a condition"}
        names |= {ast.Return: "a return", ast.For: "a loop", ast.While: "a loop", ast.Raise: "an error that is raised"}
        return f"{names.get(type(statement), 'a statement')} is missing"
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
    if len(edits) <= 3 and sum(len(a) + len(b) for a, b in edits) <= 14:
        return f"in {anchor(removed)}, " + "; and ".join(_edit_words(a, b) for a, b in edits)
    return f"{anchor(removed)} has to change: {statements(added)}"


def anchor(lines: Sequence[str]) -> str:
    """Which statement is meant, without quoting it: "the assignment to `x`", "the `return`", ..."""
    first = next((line.strip() for line in lines if line.strip()), "")
    if match := re.match(r"(el)?if\b|while\b", first):
        return f"the `{match.group()}` condition"
    for word, phrase in (("return", "the `return`"), ("for", "the `for` loop"), ("yield", "the `yield`")):
        if re.match(rf"{word}\b", first):
            return phrase
    for word in ("raise", "with", "try", "except", "else", "assert", "def", "class", "import", "from"):
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
    return "; then ".join(_statement(node) for node in body[:4])


def _parse_all(lines: Sequence[str]) -> list[ast.stmt]:
    text = textwrap.dedent("\n".join(lines))
    for candidate in (text, text.rstrip() + "\n    pass", "if True:\n    pass\n" + text.rstrip() + "\n    pass"):
        try:
            return ast.parse(candidate).body
        except SyntaxError:
            continue
    return []


def _parse(lines: Sequence[str]) -> ast.stmt | None:
    body = _parse_all(lines)
    return body[0] if body else None


def _statement(node: ast.stmt) -> str:
    match node:
        case ast.Assign(targets=targets, value=value):
            return f"set {_listed([_expr(t) for t in targets])} to {_expr(value)}"
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            return f"set {_expr(target)} to {_expr(value)}"
        case ast.AugAssign(target=target, op=op, value=value):
            return f"update {_expr(target)} to itself {_OPERATORS[type(op)]} {_expr(value)}"
        case ast.Return(value=None):
            return "return without a value"
        case ast.Return(value=ast.expr() as value):
            return f"return {_expr(value)}"
        case ast.If(test=test, body=body, orelse=orelse):
            words = f"check whether {_expr(test)}"
            inner = [n for n in body if not isinstance(n, ast.Pass)]
            words += f", and if so {_statement(inner[0])}" if inner else ""
            return words + (f", otherwise {_statement(orelse[0])}" if orelse else "")
        case ast.For(target=target, iter=iterator):
            return f"loop with {_expr(target)} over {_expr(iterator)}{_inside(node)}"
        case ast.While(test=test):
            return f"repeat while {_expr(test)}{_inside(node)}"
        case ast.Raise(exc=None):
            return "raise the same error again"
        case ast.Raise(exc=ast.Call(func=func)):
            return f"raise {_expr(func)}"
        case ast.Raise(exc=ast.expr() as exc):
            return f"raise {_expr(exc)}"
        case ast.Expr(value=ast.Call() as call):
            return _expr(call).replace("the result of calling", "call", 1)
        case ast.Expr(value=ast.Yield(value=ast.expr() as value)):
            return f"yield {_expr(value)}"
        case ast.Expr(value=value):
            return f"evaluate {_expr(value)}"
        case ast.With(items=items):
            return f"do it inside {_listed([_expr(i.context_expr) for i in items])}{_inside(node)}"
        case ast.Try():
            return "guard it with a try"
        case ast.Pass():
            return "do nothing"
        case ast.Break() | ast.Continue():
            return "leave the loop" if isinstance(node, ast.Break) else "go on with the next item"
    names = list(dict.fromkeys(n.id for n in ast.walk(node) if isinstance(n, ast.Name)))
    return "it works with " + _listed([f"`{n}`" for n in names[:6]])


def _inside(node: ast.For | ast.While | ast.With) -> str:
    inner = [_statement(n) for n in node.body if not isinstance(n, ast.Pass)]
    return f"; inside, {'; then '.join(inner[:2])}" if inner else ""


def _expr(node: ast.expr, depth: int = 0) -> str:
    if depth > MAX_DEPTH:
        return "the rest"
    sub = lambda n: _expr(n, depth + 1)  # noqa: E731
    match node:
        case ast.Name(id=name):
            return f"`{name}`"
        case ast.Constant(value=value):
            return f"`{value!r}`" if len(repr(value)) <= 18 else f"a constant that starts with `{repr(value)[:10]}`"
        case ast.Attribute(value=ast.Name(id=base), attr=attr):
            return f"`{attr}` of `{base}`" if len(base) + len(attr) > 14 else f"`{base}.{attr}`"
        case ast.Attribute(value=value, attr=attr):
            return f"`{attr}` of {sub(value)}"
        case ast.Call(func=func, args=args, keywords=keywords):
            given = [sub(a) for a in args] + [f"`{k.arg}` as {sub(k.value)}" for k in keywords if k.arg]
            return f"the result of calling {sub(func)}" + (f" with {_listed(given)}" if given else "")
        case ast.BinOp(left=left, op=op, right=right):
            return f"{sub(left)} {_OPERATORS[type(op)]} {sub(right)}"
        case ast.BoolOp(op=op, values=values):
            return f" {_OPERATORS[type(op)]} ".join(sub(v) for v in values)
        case ast.UnaryOp(op=op, operand=operand):
            return f"{_OPERATORS[type(op)]} {sub(operand)}"
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            parts = [f"{_OPERATORS[type(o)]} {sub(c)}" for o, c in zip(ops, comparators, strict=True)]
            return f"{sub(left)} {' and '.join(parts)}"
        case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper)):
            start = sub(lower) if lower else "the start"
            end = sub(upper) if upper else "the end"
            return f"the part of {sub(value)} from {start} to {end}"
        case ast.Subscript(value=value, slice=index):
            return f"item {sub(index)} of {sub(value)}"
        case ast.Tuple(elts=elts) | ast.List(elts=elts):
            word = "tuple" if isinstance(node, ast.Tuple) else "list"
            return f"the {word} of {_listed([sub(e) for e in elts])}" if elts else f"an empty {word}"
        case ast.Dict(keys=[]):
            return "an empty dict"
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return f"{sub(body)} if {sub(test)}, otherwise {sub(orelse)}"
        case ast.Starred(value=value):
            return f"all of {sub(value)}"
        case ast.Lambda(args=ast.arguments(args=[*args]), body=body):
            return f"a function of {_listed([f'`{a.arg}`' for a in args])} that gives {sub(body)}"
        case ast.ListComp(elt=elt, generators=[part]) | ast.GeneratorExp(elt=elt, generators=[part]):
            word = "list" if isinstance(node, ast.ListComp) else "generator"
            where = f" where {sub(part.ifs[0])}" if part.ifs else ""
            return f"a {word} of {sub(elt)} for each {sub(part.target)} in {sub(part.iter)}{where}"
    names = list(dict.fromkeys(n.id for n in ast.walk(node) if isinstance(n, ast.Name)))
    what = "a dict" if isinstance(node, ast.DictComp) else "something"
    return f"{what} built from {_listed([f'`{n}`' for n in names[:6]])}"


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


def _edit_words(old: Sequence[str], new: Sequence[str]) -> str:
    before, after = " ".join(f"`{t}`" for t in old), " ".join(f"`{t}`" for t in new)
    if not old:
        return f"add {after}"
    if not new:
        return f"drop {before}"
    return f"use {after} instead of {before}"


def _reads(lines: Sequence[str]) -> str:
    node = _parse(lines)
    if isinstance(node, ast.Assign | ast.Return) and node.value is not None:
        return _expr(node.value)
    if isinstance(node, ast.If | ast.While):
        return _expr(node.test)
    return statements(lines)


def _is_operator(token: str) -> bool:
    return bool(re.fullmatch(r"[^\w\s]+|and|or|not|in|is", token))
