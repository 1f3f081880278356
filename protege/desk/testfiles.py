"""Taking tests out of a repository by the positions in their syntax tree, so that the agent never sees them.

A test is named by a base id: a pytest node id without its parameters (``tests/test_x.py::TestA::test_b``). A
method that a test class inherits is looked up through the bases by name, in any file under the tests.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from protege.desk.parsing import parse

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Removal:
    """``files``: new contents of the changed files, by path; ``missing``: base ids whose function was not found."""

    files: dict[str, str]
    missing: tuple[str, ...]


def base_id(test_id: str) -> str:
    """
    >>> base_id("tests/test_x.py::TestA::test_b[1-[2]]")
    'tests/test_x.py::TestA::test_b'
    """
    return test_id.split("[", 1)[0]


def remove_tests(sources: dict[str, str], tests: Iterable[str]) -> Removal:
    """Remove whole test functions, with decorators and the comments right above, from ``sources`` (path -> text).

    Every definition of that name in the same scope goes (an earlier, shadowed one would come back to life
    otherwise). A block left empty gets ``pass``.
    """
    trees = {path: parse(text) for path, text in sources.items() if path.endswith(".py")}
    doomed: dict[str, list[Function]] = {}
    missing: list[str] = []
    for test in sorted({base_id(t) for t in tests}):
        found = _find(trees, test)
        if not found:
            missing.append(test)
        for path, node in found:
            doomed.setdefault(path, []).append(node)
    return Removal(
        {path: _without(sources[path], trees[path], nodes) for path, nodes in doomed.items()}, tuple(missing)
    )


def find_test(sources: dict[str, str], test: str) -> tuple[str, Function] | None:
    """Where a base id is defined: (path, function), or None."""
    trees = {path: parse(text) for path, text in sources.items() if path.endswith(".py")}
    found = _find(trees, base_id(test))
    return found[-1] if found else None


def _find(trees: dict[str, ast.Module], test: str) -> list[tuple[str, Function]]:
    path, *scopes = test.split("::")
    if path not in trees or not scopes:
        return []
    *classes, name = scopes
    if not classes:
        return [(path, node) for node in _named(trees[path].body, name) if not isinstance(node, ast.ClassDef)]
    scope: list[ast.stmt] = trees[path].body
    owners: list[ast.ClassDef] = []
    for cls in classes:
        owners = [node for node in _named(scope, cls) if isinstance(node, ast.ClassDef)]
        if not owners:
            return []
        scope = owners[-1].body
    return _in_class(trees, path, owners[-1], name, set())


def _in_class(
    trees: dict[str, ast.Module], path: str, owner: ast.ClassDef, name: str, seen: set[int]
) -> list[tuple[str, Function]]:
    own = [(path, node) for node in _named(owner.body, name) if not isinstance(node, ast.ClassDef)]
    if own or id(owner) in seen:
        return own
    seen.add(id(owner))
    for base in owner.bases:
        wanted = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
        for other in sorted(trees, key=lambda p: p != path):
            for node in _named(trees[other].body, wanted):
                if isinstance(node, ast.ClassDef) and (found := _in_class(trees, other, node, name, seen)):
                    return found
    return []


def _named(body: list[ast.stmt], name: str) -> list[Function | ast.ClassDef]:
    """Definitions of ``name`` in this scope, inside if/try/with blocks too, but not inside other definitions."""
    found: list[Function | ast.ClassDef] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found += [node] if node.name == name else []
            continue
        for block in _blocks(node):
            found += _named(block, name)
    return found


def _blocks(node: ast.AST) -> list[list[ast.stmt]]:
    blocks = [
        getattr(node, field)
        for field in ("body", "orelse", "finalbody")
        if isinstance(getattr(node, field, None), list)
    ]
    for handler in getattr(node, "handlers", []):
        blocks.append(handler.body)
    return [block for block in blocks if block and isinstance(block[0], ast.stmt)]


def _without(text: str, tree: ast.Module, nodes: list[Function]) -> str:
    lines = text.splitlines(keepends=True)
    gone = {id(node) for node in nodes}
    fill: dict[int, str] = {}
    drop: set[int] = set()
    for node in nodes:
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
        indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
        while first > 0 and lines[first - 1].startswith(f"{indent}#"):
            first -= 1
        last = node.end_lineno or node.lineno
        drop.update(range(first, last))
        while last < len(lines) and not lines[last].strip():
            drop.add(last)
            last += 1
    for parent in ast.walk(tree):
        for block in _blocks(parent):
            if not isinstance(parent, ast.Module) and all(id(node) in gone for node in block):
                head = block[0]
                fill[head.lineno - 1] = f"{' ' * head.col_offset}pass\n"
    out = [fill.get(i, "") if i in drop else line for i, line in enumerate(lines)]
    result = "".join(out).rstrip("\n") + "\n"
    parse(result)
    return result if result.strip() else ""
