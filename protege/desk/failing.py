"""Which part of a failing test statement may give another outcome with the bug than without."""

from __future__ import annotations

import ast


def statement_at(body: list[ast.stmt], line: int) -> ast.stmt | None:
    """The innermost statement at ``line``; a ``with raises`` block counts as one statement."""
    for node in body:
        if not node.lineno <= line <= (node.end_lineno or node.lineno):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or _raises(node):
            return node
        for field in ("body", "orelse", "finalbody"):
            inner = statement_at([n for n in getattr(node, field, []) if isinstance(n, ast.stmt)], line)
            if inner is not None:
                return inner
        return node
    return None


def _raises(node: ast.stmt) -> bool:
    if not isinstance(node, ast.With):
        return False
    calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
    return any(_called(call) in {"raises", "assertRaises", "assertRaisesRegex"} for call in calls)


def _called(call: ast.Call) -> str:
    return (
        call.func.attr
        if isinstance(call.func, ast.Attribute)
        else call.func.id
        if isinstance(call.func, ast.Name)
        else ""
    )


def finals(statement: ast.stmt) -> list[ast.expr | ast.stmt]:
    """The parts of a failing statement that may give another outcome with the bug, most telling first."""
    if isinstance(statement, ast.With) and _raises(statement):
        return [statement.body[0]] if len(statement.body) == 1 else []
    if isinstance(statement, ast.Assert):
        return _sides(statement.test)
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        name = _called(statement.value)
        if name in {"assertRaises", "raises"} and len(statement.value.args) >= 2:
            _, func, *rest = statement.value.args
            return [ast.Call(func=func, args=rest, keywords=statement.value.keywords)]
        if name.startswith("assert") or name in {"eq_", "ok_"}:
            parts = [side for arg in statement.value.args[:2] for side in _sides(arg)]
            return [*parts]
        return [statement.value]
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Return) and statement.value is not None:
        return [statement.value]
    if isinstance(statement, ast.For):
        return [statement.iter]
    if isinstance(statement, ast.AugAssign | ast.Delete):
        return [statement]
    return []


def _sides(test: ast.expr) -> list[ast.expr | ast.stmt]:
    if isinstance(test, ast.Compare):
        sides = [side for side in (test.left, *test.comparators) if _has_call(side)]
        return [*sides, test]
    if isinstance(test, ast.BoolOp):
        return [part for value in test.values for part in _sides(value)]
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return [test.operand]
    return [test] if _has_call(test) else []


def _has_call(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Call | ast.Subscript | ast.Attribute) for n in ast.walk(node)) or isinstance(
        node, ast.Name
    )


def is_check(node: ast.stmt) -> bool:
    """An assertion: it tells the set-up nothing (an assertion with side effects is caught by running the snippet)."""
    if isinstance(node, ast.Assert) or _raises(node):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _called(node.value).startswith("assert")
