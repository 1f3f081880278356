"""Bugs by SWE-smith's own procedural modifiers (the ``swesmith`` package), one small bug a candidate.

SWE-smith: Yang et al. 2025, "SWE-smith: Scaling Data for Software Engineering Agents", section on procedural
modification. The modifiers are AST rewrites with a likelihood and a seed; each (function, modifier, try) gets a seed
of its own here, so that a candidate does not depend on which others were made.
"""

from __future__ import annotations

import ast
import difflib
import os
import random
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protege.config import InstancesParams
from protege.desk import parsing
from protege.desk.parsing import parse
from protege.desk.sources import Package
from protege.files import digest

TRIES = 6
"""Seeds tried for one bug of one (function, modifier)."""
TURNS = 3
"""Bugs asked of one (function, modifier)."""
LIKELIHOOD = 0.2
"""Ceiling for a modifier's chance to change each place it could: SWE-smith's 0.25 to 0.4 often break several at once."""

_import_lock = threading.Lock()


@dataclass(frozen=True)
class Candidate:
    """One bug in one function: ``buggy`` is the whole text of ``path`` with the bug in it.

    ``candidate_id`` is also the instance id: ``<package>__<version>.<modifier>__<hash8>``, fit for a container's name.
    """

    candidate_id: str
    package: str
    version: str
    modifier: str
    path: str
    entity: str
    original: str
    buggy: str
    changed_lines: int

    @property
    def digest(self) -> str:
        return digest(self.candidate_id, self.path, self.original, self.buggy)

    @property
    def patch(self) -> str:
        """The gold patch: from the buggy file to the original one."""
        return unified(self.path, self.buggy, self.original)


def unified(path: str, before: str, after: str) -> str:
    """A diff that ``git apply`` takes, files without a final newline included."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{path}", f"b/{path}"
    )
    body = "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
    return f"diff --git a/{path} b/{path}\n{body}" if body else ""


def candidates(
    package: Package, tree: Path, params: InstancesParams, seed: int | None = None, limit: int | None = None
) -> list[Candidate]:
    """Up to ``limit`` (default: all) small bugs in ``package`` as unpacked at ``tree``, in the order to try them.

    Deterministic in its arguments. The order is a shuffle by ``seed`` (default ``params.seed``) dealt out so that
    functions, then modifiers and files, take turns: any prefix is spread as widely as the package allows, and a
    shorter ``limit`` gives a prefix of a longer one.
    """
    seed = params.seed if seed is None else seed
    smith = _swesmith()
    sites: list[_Site] = []
    tests = package.tests.rstrip("/")
    for file in sorted((tree / package.source).rglob("*.py")):
        path = file.relative_to(tree).as_posix()
        in_tests = path == tests or path.startswith(f"{tests}/") or "/tests/" in path
        if not in_tests and file.stat().st_size <= params.max_file_kb * 1024:
            sites += _sites(smith, file, path)
    random.Random(digest("order", package.name, seed)).shuffle(sites)
    found: dict[str, Candidate] = {}
    used: Counter[str] = Counter()
    while sites and (limit is None or len(found) < limit):
        site = min(sites, key=lambda s: (used[s.function], used[s.modifier.name] + used[s.path]))
        candidate = _bug(smith, package, site, params, seed, known=found)
        if candidate is None or site.turn + 1 == TURNS:
            sites.remove(site)
        site.turn += 1
        if candidate is not None:
            found[candidate.candidate_id] = candidate
            used.update((site.function, site.modifier.name, site.path))
    return list(found.values())


@dataclass
class _Site:
    """One (function or class, modifier) pair, and how many bugs have been asked of it."""

    path: str
    original: str
    entity: Any
    qualified: str
    modifier: Any
    turn: int = 0

    @property
    def function(self) -> str:
        return f"{self.path}:{self.qualified}"


def _sites(smith: _Smith, file: Path, path: str) -> list[_Site]:
    original = file.read_text(encoding="utf-8")
    entities: list[Any] = []
    with parsing.lock:
        smith.entities(entities, str(file))
    names = _qualified_names(original)
    return [
        _Site(path, original, entity, names.get(entity.line_start, entity.name), modifier)
        for entity in entities
        for modifier in smith.modifiers
        if modifier.can_change(entity)
    ]


def _bug(
    smith: _Smith, package: Package, site: _Site, params: InstancesParams, seed: int, known: dict[str, Candidate]
) -> Candidate | None:
    """The first rewrite, over TRIES seeds, that is new, real, contiguous and small enough."""
    entity, modifier = site.entity, site.modifier
    for attempt in range(TRIES):
        key = digest(seed, package.name, site.function, entity.line_start, modifier.name, site.turn, attempt)
        rewrite = type(modifier)(likelihood=min(modifier.likelihood, LIKELIHOOD), seed=int(key[:15], 16)).modify(entity)
        if not rewrite or _size(entity.src_code, rewrite.rewrite) > params.max_changed_lines:
            continue
        buggy = _applied(smith, entity, rewrite, site.original)
        if buggy is None or not _is_real_change(site.original, buggy):
            continue
        changed = _size(site.original, buggy)
        name = f"{package.name}__{package.version}.{modifier.name}__{digest(site.path, buggy)[:8]}".lower()
        if changed > params.max_changed_lines or name in known:
            continue
        return Candidate(
            name,
            package.name,
            package.version,
            modifier.name,
            site.path,
            site.qualified,
            site.original,
            buggy,
            int(changed),
        )
    return None


def _size(before: str, after: str) -> float:
    """Added plus removed lines; infinite when the change is not one contiguous block (one bug an instance)."""
    old, new = before.splitlines(), after.splitlines()
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    blocks = [
        op
        for op in difflib.SequenceMatcher(None, old[head : len(old) - tail], new[head : len(new) - tail]).get_opcodes()
        if op[0] != "equal"
    ]
    return sum(op[2] - op[1] + op[4] - op[3] for op in blocks) if len(blocks) == 1 else float("inf")


def _applied(smith: Any, entity: Any, rewrite: Any, original: str) -> str | None:
    """The file's text after SWE-smith's own ``apply_code_change``, made on a copy."""
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8", newline="") as copy:
        copy.write(original)
        copy.flush()
        path, entity.file_path = entity.file_path, copy.name
        try:
            smith.apply(entity, rewrite)
            return Path(copy.name).read_text(encoding="utf-8")
        except (ValueError, UnicodeError):
            return None
        finally:
            entity.file_path = path


def _is_real_change(original: str, buggy: str) -> bool:
    """False when the result does not parse, or differs in layout and comments only."""
    try:
        return ast.dump(parse(original)) != ast.dump(parse(buggy))
    except (SyntaxError, ValueError):
        return False


def _qualified_names(text: str) -> dict[int, str]:
    """``Class.method`` by the line of its ``def`` or ``class``."""
    names: dict[int, str] = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names[child.lineno] = f"{prefix}{child.name}"
                inner = f"{names[child.lineno]}."
            walk(child, inner)

    walk(parse(text), "")
    return names


@dataclass(frozen=True)
class _Smith:
    modifiers: list[Any]
    entities: Any
    apply: Any


def _swesmith() -> _Smith:
    """SWE-smith's modules, imported late: they take seconds and read ``.env`` files unless told not to."""
    with _import_lock, _no_dotenv():
        from swesmith.bug_gen.adapters.python import get_entities_from_file_py
        from swesmith.bug_gen.procedural.python import MODIFIERS_PYTHON
        from swesmith.bug_gen.utils import apply_code_change
    return _Smith(list(MODIFIERS_PYTHON), get_entities_from_file_py, apply_code_change)


@contextmanager
def _no_dotenv() -> Iterator[None]:
    before = os.environ.get("PYTHON_DOTENV_DISABLED")
    os.environ["PYTHON_DOTENV_DISABLED"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHON_DOTENV_DISABLED"]
        else:
            os.environ["PYTHON_DOTENV_DISABLED"] = before
