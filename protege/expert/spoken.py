"""Python statements and expressions in words that follow the order of the code.

Whoever reads them can write the code from left to right, which is what a small model can learn (docs/log/2026-11.md: words in
another order, "item `k` of `d`", were turned into code right once in eight). Brackets say what belongs together.
Where the words cannot say everything, they hold one of VAGUE.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

MAX_DEPTH = 7
"""Expressions nested deeper than this are "the rest"."""

MAX_CHARS = 20
"""Longest constant or dotted name that is said as it is written; the leak audit allows runs of twenty characters."""

MAX_INNER = 3
"""Statements told of one block."""

VAGUE = ("the rest", "built from", "that starts with", "works with", "work with", "and more", "guard it")
"""One of these stands in every telling that leaves something out."""

_OPERATORS: dict[type, str] = {
    ast.Add: "plus",
    ast.Sub: "minus",
    ast.Mult: "times",
    ast.Div: "divided by",
    ast.FloorDiv: "floor-divided by",
    ast.Mod: "modulo",
    ast.Pow: "to the power of",
    ast.MatMult: "matrix-times",
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


def is_complete(words: str) -> bool:
    """Whether ``words`` (of this module or of verbalise.py) leave nothing out.

    >>> is_complete("set `x` to `1`"), is_complete("set `x` to something built from `a`")
    (True, False)
    """
    return not any(vague in words for vague in VAGUE)


def statement(node: ast.stmt) -> str:
    """One statement.

    >>> statement(ast.parse("d[k] = f(x, y=2).n").body[0])
    'set `d` at `k` to the call of `f` with (`x`, `y` as `2`) dot `n`'
    """
    match node:
        case ast.Assign(targets=targets, value=value):
            return f"set {' and '.join(_targets(t) for t in targets)} to {expression(value)}"
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            return f"set {expression(target)} to {expression(value)}"
        case ast.AugAssign(target=target, op=op, value=value):
            return f"update {expression(target)} to itself {_OPERATORS[type(op)]} {expression(value)}"
        case ast.Return(value=None):
            return "return without a value"
        case ast.Return(value=ast.expr() as value):
            return f"return {expression(value)}"
        case ast.If(test=test, body=body, orelse=orelse):
            inner = _block(body)
            words = f"check whether {expression(test)}" + (f", and if so {inner}" if inner else "")
            return words + (f", otherwise {_block(orelse)}" if orelse else "")
        case ast.For(target=target, iter=iterator, body=body):
            inner = _block(body)
            return f"loop with {_targets(target)} over {expression(iterator)}" + (f"; inside, {inner}" * bool(inner))
        case ast.While(test=test, body=body):
            inner = _block(body)
            return f"repeat while {expression(test)}" + (f"; inside, {inner}" * bool(inner))
        case ast.With(items=items, body=body):
            inner = _block(body)
            names = " and ".join(
                expression(i.context_expr) + (f" as {expression(i.optional_vars)}" if i.optional_vars else "")
                for i in items
            )
            return f"do it inside {names}" + (f"; inside, {inner}" * bool(inner))
        case ast.Raise(exc=None):
            return "raise the same error again"
        case ast.Raise(exc=ast.Call(func=func, args=[ast.Constant() | ast.JoinedStr() | ast.BinOp()])):
            return f"raise {expression(func)} with a message"
        case ast.Raise(exc=ast.expr() as exc):
            return f"raise {expression(exc)}"
        case ast.Expr(value=ast.Call() as call):
            return expression(call).replace("the call of", "call", 1)
        case ast.Expr(value=ast.Yield(value=ast.expr() as value)):
            return f"yield {expression(value)}"
        case ast.Expr(value=ast.YieldFrom(value=value)):
            return f"yield from {expression(value)}"
        case ast.Expr(value=value):
            return f"evaluate {expression(value)}"
        case ast.Delete(targets=targets):
            return f"delete {' and '.join(expression(t) for t in targets)}"
        case ast.Assert(test=test):
            return f"assert that {expression(test)}"
        case ast.Try(body=body, handlers=handlers, orelse=[], finalbody=[]):
            return f"try this: {_block(body)}" + "".join(_handler(h) for h in handlers)
        case ast.Try():
            return "guard it with a try"
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            source = f" from `{'.' * node.level}{node.module or ''}`" if isinstance(node, ast.ImportFrom) else ""
            return (
                f"import {', '.join(f'`{n.name}`' + (f' as `{n.asname}`' if n.asname else '') for n in names)}{source}"
            )
        case ast.Pass():
            return "do nothing"
        case ast.Break():
            return "leave the loop"
        case ast.Continue():
            return "go on with the next item"
    return f"it works with {_names(node)}"


def _block(body: Sequence[ast.stmt]) -> str:
    inner = [n for n in body if not isinstance(n, ast.Pass)]
    said = [statement(n) for n in inner[:MAX_INNER]]
    return "; then ".join(said) + (" and more" if len(inner) > MAX_INNER else "")


def _handler(handler: ast.ExceptHandler) -> str:
    caught = expression(handler.type) if handler.type else "anything"
    return (
        f"; when {caught} is raised"
        + (f" as `{handler.name}`" if handler.name else "")
        + f", {_block(handler.body) or 'do nothing'}"
    )


def _targets(node: ast.expr) -> str:
    return ", ".join(expression(e) for e in node.elts) if isinstance(node, ast.Tuple) else expression(node)


def expression(node: ast.expr, depth: int = 0) -> str:
    """One expression, in the order of the code.

    >>> expression(ast.parse("[g(a) for a in (x or y) if a > 1]", mode="eval").body)
    'a list of the call of `g` with (`a`) for each `a` in (`x` or `y`) where `a` is greater than `1`'
    """
    if depth > MAX_DEPTH:
        return "the rest"

    def sub(child: ast.expr) -> str:
        words = expression(child, depth + 1)
        bracketed = isinstance(child, ast.BinOp | ast.BoolOp | ast.Compare | ast.IfExp | ast.Lambda)
        return f"({words})" if bracketed and f"({ast.unparse(child)})" in ast.unparse(node) else words

    match node:
        case ast.Name(id=name):
            return f"`{name}`"
        case ast.Constant(value=value):
            said = repr(value)
            return f"`{said}`" if len(said) <= MAX_CHARS else f"a constant that starts with `{said[:10]}`"
        case ast.Attribute(value=value, attr=attr):
            dotted = ast.unparse(node)
            if dotted.replace(".", "").isidentifier() and len(dotted) <= MAX_CHARS:
                return f"`{dotted}`"
            return f"{sub(value)} dot `{attr}`"
        case ast.Call(func=func, args=args, keywords=keywords):
            given = [sub(a) for a in args]
            given += [f"`{k.arg}` as {sub(k.value)}" if k.arg else f"double star {sub(k.value)}" for k in keywords]
            return f"the call of {sub(func)}" + (f" with ({', '.join(given)})" if given else " with nothing")
        case ast.BinOp(left=left, op=op, right=right):
            return f"{sub(left)} {_OPERATORS[type(op)]} {sub(right)}"
        case ast.BoolOp(op=op, values=values):
            return f" {_OPERATORS[type(op)]} ".join(sub(v) for v in values)
        case ast.UnaryOp(op=op, operand=operand):
            return f"{_OPERATORS[type(op)]} {sub(operand)}"
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            parts = [f"{_OPERATORS[type(o)]} {sub(c)}" for o, c in zip(ops, comparators, strict=True)]
            return f"{sub(left)} {' '.join(parts)}"
        case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper, step=step)):
            start, end = sub(lower) if lower else "the start", sub(upper) if upper else "the end"
            return f"{sub(value)} from {start} to {end}" + (f" in steps of {sub(step)}" if step else "")
        case ast.Subscript(value=value, slice=index):
            return f"{sub(value)} at {sub(index)}"
        case ast.Tuple(elts=elts) | ast.List(elts=elts) | ast.Set(elts=elts):
            word = type(node).__name__.lower()
            return f"the {word} ({', '.join(sub(e) for e in elts)})" if elts else f"an empty {word}"
        case ast.Dict(keys=keys, values=values):
            pairs = [
                f"{sub(k)} to {sub(v)}" if k else f"double star {sub(v)}" for k, v in zip(keys, values, strict=True)
            ]
            return f"the dict ({', '.join(pairs)})" if pairs else "an empty dict"
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return f"{sub(body)} if {sub(test)}, otherwise {sub(orelse)}"
        case ast.Starred(value=value):
            return f"star {sub(value)}"
        case ast.Lambda(args=ast.arguments(args=[*args]), body=body):
            return f"a lambda of {', '.join(f'`{a.arg}`' for a in args) or 'nothing'} that gives {sub(body)}"
        case ast.ListComp(elt=elt, generators=parts) | ast.SetComp(elt=elt, generators=parts):
            return f"a {type(node).__name__[:-4].lower()} of {sub(elt)}{_each(parts, depth)}"
        case ast.GeneratorExp(elt=elt, generators=parts):
            return f"a generator of {sub(elt)}{_each(parts, depth)}"
        case ast.DictComp(key=key, value=value, generators=parts):
            return f"a dict of {sub(key)} to {sub(value)}{_each(parts, depth)}"
    return f"something built from {_names(node)}"


def _each(parts: Sequence[ast.comprehension], depth: int) -> str:
    words = ""
    for part in parts:
        words += f" for each {_targets(part.target)} in "
        inner = expression(part.iter, depth + 1)
        words += f"({inner})" if isinstance(part.iter, ast.BoolOp | ast.IfExp) else inner
        words += "".join(f" where {expression(test, depth + 1)}" for test in part.ifs)
    return words


def _names(node: ast.AST) -> str:
    names = list(dict.fromkeys(n.id for n in ast.walk(node) if isinstance(n, ast.Name)))
    return " and ".join(f"`{name}`" for name in names[:6]) or "nothing"
