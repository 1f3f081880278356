"""From a failing test to the few lines that a user would have typed: imports, set-up, and the call that goes wrong.

The statement at which the test failed is lifted out of the test; names it needs are replaced by their values in the
failing run (parameters, loop variables), by the test's own earlier statements, or by public imports.
"""

from __future__ import annotations

import ast
import builtins
import copy
from dataclasses import dataclass
from typing import Any

from protege.desk.failing import finals, is_check, statement_at
from protege.desk.parsing import parse

INLINE = 70
"""Longest literal (characters) that is written into the call; longer ones get a line of their own."""


@dataclass(frozen=True)
class Snippet:
    """``imports`` and ``setup`` run first; ``final`` is the expression (or statement) whose outcome is the bug.

    ``subject`` is the public name the call is about, such as ``chunked`` or ``cache.pop``.
    """

    imports: tuple[str, ...]
    setup: tuple[str, ...]
    final: str
    subject: str

    def as_input(self) -> dict[str, Any]:
        return {"setup": [*self.imports, *self.setup], "final": self.final}

    def __len__(self) -> int:
        return sum(len(line) + 1 for line in (*self.imports, *self.setup, self.final))


class _Unsuitable(Exception):
    """This test cannot be told as a short snippet."""


def snippets(record: dict[str, Any], source: str, package_roots: tuple[str, ...]) -> list[Snippet]:
    """Snippets for one failing test, best guess first; empty when it cannot be told in a few lines.

    ``record`` is what the probe noted, ``source`` the text of the file that defines the test, ``package_roots`` the
    top-level modules that a user may import.
    """
    tree = parse(source)
    function = next(
        (
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name == record["function"]
            and node.lineno <= record["line"] <= (node.end_lineno or node.lineno)
        ),
        None,
    )
    if function is None:
        return []
    statement = statement_at(function.body, record["line"])
    if statement is None:
        return []
    found: list[Snippet] = []
    for final in finals(statement):
        try:
            snippet = _Builder(tree, function, statement, record, package_roots).build(final)
        except (_Unsuitable, RecursionError):
            continue
        if snippet.final not in {s.final for s in found}:
            found.append(snippet)
    return found


class _Builder:
    def __init__(
        self,
        tree: ast.Module,
        function: ast.FunctionDef | ast.AsyncFunctionDef,
        statement: ast.stmt,
        record: dict[str, Any],
        roots: tuple[str, ...],
    ) -> None:
        self.tree, self.function, self.statement, self.record, self.roots = tree, function, statement, record, roots
        self.imports: list[str] = []
        self.lines: list[tuple[int, str]] = []
        self.done: set[str] = set()
        self.taken: set[int] = set()
        self.public: dict[str, str] = {}
        self.made: set[str] = set()

    def build(self, final: ast.expr | ast.stmt) -> Snippet:
        node = self._resolved(final, self.statement.lineno)
        text = ast.unparse(ast.fix_missing_locations(node))
        if "self." in text or not self.public:
            raise _Unsuitable
        setup = tuple(line for _, line in sorted(self.lines, key=lambda item: item[0]))
        if len(setup) > 12 or len(text) > 400:
            raise _Unsuitable
        return Snippet(_merged(self.imports), setup, text, self._subject(node))

    def _subject(self, node: ast.AST) -> str:
        """``chunked``, ``cache.pop``, ``LRUCache.popitem``: the outermost call of something of the package."""
        for call in ast.walk(node):
            if not isinstance(call, ast.Call):
                continue
            root, parts = call.func, list[str]()
            while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
                if isinstance(root, ast.Attribute):
                    parts.insert(0, root.attr)
                root = root.func if isinstance(root, ast.Call) else root.value
            if isinstance(root, ast.Name) and (root.id in self.public or (parts and root.id in self.made)):
                return ".".join([root.id, *parts])
        return next(iter(self.public))

    def _resolved(self, node: Any, line: int) -> Any:
        """``node`` with names replaced by values where those are short; notes the imports and set-up it needs."""
        node = copy.deepcopy(node)
        bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {
            a.arg
            for n in ast.walk(node)
            if isinstance(n, ast.arguments)
            for a in (*n.args, *n.kwonlyargs, *n.posonlyargs)
        }
        bound |= {a.arg for n in ast.walk(node) if isinstance(n, ast.arguments) for a in (n.vararg, n.kwarg) if a}
        needed = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - (
            bound if isinstance(node, ast.expr) else set()
        )
        attributes = {
            n.attr
            for n in ast.walk(node)
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"
        }
        inline: dict[str, ast.expr] = {}
        for name in sorted(needed - {"self"}):
            value = self._need(name, line)
            if value is not None:
                inline[name] = value
        fixed = {name: self._refer(self.record["attributes"].get(name), name) for name in attributes}

        class Replace(ast.NodeTransformer):
            def visit_Name(self, item: ast.Name) -> ast.expr:
                return copy.deepcopy(inline[item.id]) if item.id in inline and isinstance(item.ctx, ast.Load) else item

            def visit_Attribute(self, item: ast.Attribute) -> ast.expr:
                if isinstance(item.value, ast.Name) and item.value.id == "self":
                    return copy.deepcopy(fixed[item.attr])
                self.generic_visit(item)
                return item

        return Replace().visit(node)

    def _need(self, name: str, line: int) -> ast.expr | None:
        """Make ``name`` available; an expression to write in its place, or None when it is defined by the set-up."""
        if name in self.done or (
            hasattr(builtins, name) and name not in self.record["names"] and name not in self.record["locals"]
        ):
            return None
        if name in self.record["locals"]:
            if self._earlier(name, line):
                return None
            return self._refer(self.record["names"].get(name), name)
        for node in self.tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name.split(".")[0]) == name and not getattr(node, "level", 0):
                        self._import(node, alias, name)
                        return None
            if (
                isinstance(node, ast.FunctionDef)
                and node.name == name
                and (node.end_lineno or 0) - node.lineno < 6
                and not node.decorator_list
            ):
                self.done.add(name)
                self.lines.append((node.lineno - 100_000, ast.unparse(self._resolved(node, node.lineno))))
                return None
        return self._refer(self.record["names"].get(name), name)

    def _import(self, node: ast.Import | ast.ImportFrom, alias: ast.alias, name: str) -> None:
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        root = module.split(".")[0]
        if root in {"tests", "test", "conftest", "pytest", "unittest", "_pytest"} or "tests" in module.split("."):
            raise _Unsuitable
        single = ast.ImportFrom(module, [alias], 0) if isinstance(node, ast.ImportFrom) else ast.Import([alias])
        self.imports.append(ast.unparse(single))
        self.done.add(name)
        if root in self.roots:
            self.public[name] = module

    def _refer(self, described: dict[str, str] | None, name: str) -> ast.expr:
        if described is None:
            raise _Unsuitable
        if "literal" in described:
            value = _expression(described["literal"])
            if len(described["literal"]) > INLINE:
                self.lines.append((-1, f"{name} = {described['literal']}"))
                self.done.add(name)
                return ast.Name(name, ast.Load())
            return value
        module, qualified = described["module"], described.get("name")
        if (
            module.split(".")[0] in {"tests", "test", "conftest"}
            or "tests" in module.split(".")
            or module.split(".")[-1].startswith("test_")
        ):
            raise _Unsuitable
        head = qualified.split(".")[0] if qualified else module.split(".")[0]
        self.imports.append(f"from {module} import {head}" if qualified else f"import {module}")
        if module.split(".")[0] in self.roots:
            self.public[head] = module
        return _expression(qualified or module)

    def _earlier(self, name: str, line: int) -> bool:
        """Take over the test's earlier statements that make or change ``name``; False when none makes it."""
        related = [
            n
            for n in self.function.body
            if n.lineno < line and (n.end_lineno or n.lineno) < line and _mentions(n, name)
        ]
        if not any(_binds(node, name) for node in related):
            return False
        self.done.add(name)
        self.made.add(name)
        for node in related:
            if id(node) in self.taken or is_check(node):
                continue
            if not isinstance(
                node,
                ast.Assign
                | ast.AugAssign
                | ast.AnnAssign
                | ast.Expr
                | ast.Delete
                | ast.FunctionDef
                | ast.For
                | ast.ClassDef,
            ):
                raise _Unsuitable
            self.taken.add(id(node))
            self.lines.append((node.lineno, ast.unparse(ast.fix_missing_locations(self._resolved(node, node.lineno)))))
        return True


def _expression(text: str) -> ast.expr:
    statement = parse(text).body[0]
    assert isinstance(statement, ast.Expr)
    return statement.value


def _merged(imports: list[str]) -> tuple[str, ...]:
    """One line for each module: ``from m import a`` and ``from m import b`` become ``from m import a, b``."""
    plain: set[str] = set()
    names: dict[str, set[str]] = {}
    for line in imports:
        if line.startswith("from "):
            module, _, name = line.removeprefix("from ").partition(" import ")
            names.setdefault(module, set()).add(name)
        else:
            plain.add(line)
    return (*sorted(plain), *(f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)))


def _mentions(node: ast.stmt, name: str) -> bool:
    return _binds(node, name) or any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))


def _binds(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name == name
    return isinstance(node, ast.Assign | ast.AnnAssign) and any(
        isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store) for n in ast.walk(node)
    )
