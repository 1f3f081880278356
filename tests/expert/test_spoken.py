"""Words for code: every statement has some, and those that leave nothing out name everything in the order of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from protege.expert.spoken import is_complete, statement
from protege.expert.verbalise import fix

SOURCES = sorted((Path(__file__).parents[2] / "protege").rglob("*.py"))


def simple_statements() -> list[ast.stmt]:
    kinds = ast.Assign | ast.AugAssign | ast.Return | ast.Expr | ast.Delete | ast.Assert
    trees = [ast.parse(path.read_text()) for path in SOURCES]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]


def test_complete_words_name_every_name_in_the_order_of_the_code():
    told = 0
    for node in simple_statements():
        words = statement(node)
        if not is_complete(words):
            continue
        told += 1
        code = re.findall(r"[A-Za-z_]\w*", ast.unparse(node))
        named = re.findall(r"[A-Za-z_]\w*", " ".join(re.findall(r"`([^`]*)`", words)))
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        in_code = [word for word in code if word in names]
        assert [word for word in named if word in names] == in_code or _reorders(node), (ast.unparse(node), words)
    assert told > 1000


def _reorders(node: ast.AST) -> bool:
    """Names within text constants are no names of the statement, but look like them."""
    return any(isinstance(n, ast.Constant) and isinstance(n.value, str | bytes) for n in ast.walk(node))


def test_every_statement_has_words():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.stmt):
                assert statement(node).strip()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = (a + b) * c", "set `x` to (`a` plus `b`) times `c`"),
        ("x = a + b * c", "set `x` to `a` plus `b` times `c`"),
        ("x = not (a or b)", "set `x` to not (`a` or `b`)"),
        ("return d[k][1:]", "return `d` at `k` from `1` to the end"),
        ("for a, b in c:\n    d.e(a)", "loop with `a`, `b` over `c`; inside, call `d.e` with (`a`)"),
        ("f(*a, k=1, **b)", "call `f` with (star `a`, `k` as `1`, double star `b`)"),
        ("x = {a: b for a in c if a}", "set `x` to a dict of `a` to `b` for each `a` in `c` where `a`"),
        ("try:\n    a()\nexcept E:\n    pass", "try this: call `a` with nothing; when `E` is raised, do nothing"),
        ("if a:\n    pass\nelse:\n    b = 1", "check whether `a`, otherwise set `b` to `1`"),
    ],
)
def test_words(code, words):
    assert statement(ast.parse(code).body[0]) == words


@pytest.mark.parametrize(
    "code",
    [
        "x = 'a constant of more than twenty characters'",
        "if a:\n    b()\n    c()\n    d()\n    e()",
        "x = f'{a}'",
        "try:\n    a()\nfinally:\n    b()",
        "def f(): pass",
    ],
)
def test_what_is_left_out_is_said_to_be(code):
    assert not is_complete(statement(ast.parse(code).body[0]))


@pytest.mark.parametrize(
    ("removed", "added", "how"),
    [
        (["  m = a // 2"], ["  m = (a + b) // 2"], "it should be: (`a` plus `b`) floor-divided by `2`"),
        (["  x = a - b - c"], ["  x = a - b + c"], "it should be: `a` minus `b` plus `c`"),
        (["  x = a - b"], ["  x = a + b"], "use `+` instead of `-`"),
        (["  pass"], ["  x = f(y)"], "the `pass` statement has to change: set `x` to the call of `f` with (`y`)"),
        (
            [],
            ["  elif f(x):", "    return y"],
            "otherwise check whether the call of `f` with (`x`), and if so return `y`",
        ),
    ],
)
def test_where_words_for_the_difference_would_not_tell_the_place_the_result_is_told(removed, added, how):
    assert how in fix(removed, added)
