"""What of an agent's patch is graded: not the parts that decide how tests are found, run or reported.

A solution has no business in the test configuration, in the files that the deciding tests live in, in what
the interpreter runs by itself at its start, or in modules that take the place of pytest or the standard
library. Such parts are left out before grading and named in ``Verdict.dropped``, never silently. A path that the
gold patch touches too is let through: there the solution does have business.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterable

from protege.core.instance import Instance
from protege.sandbox.patches import sections

CONFIGURATION = frozenset(
    """conftest.py pytest.ini .pytest.ini pytest.toml .pytest.toml tox.ini tox.toml setup.cfg setup.py pyproject.toml noxfile.py
    nose.cfg .noserc unittest.cfg .coveragerc .testr.conf .stestr.conf .gitattributes .gitmodules
    sitecustomize.py usercustomize.py entry_points.txt pyvenv.cfg easy-install.pth""".split()
)
"""File names that configure tests, builds, git or the interpreter, wherever in the repository they are."""

RUNNERS = frozenset(
    """pytest _pytest py pluggy iniconfig exceptiongroup tomli attr attrs packaging pygments colorama atomicwrites wcwidth
    more_itertools importlib_metadata importlib_resources zipp typing_extensions six setuptools pkg_resources _distutils_hack
    distutils pip wheel tox nose nose2 hypothesis xdist execnet coverage pytest_cov pytest_asyncio pytest_mock mock
    pytest_xdist pytest_timeout pytest_django swebench sitecustomize usercustomize""".split()
)
"""Importable names that test runs depend on; the standard library's are added."""

_TEST_FOLDERS = {"test", "tests", "testing", "Test", "Tests"}
_IMPORT_ROOTS = {"", "src", "lib", "python"}


def filter_patch(patch: str, instance: Instance) -> tuple[str, list[str]]:
    """``patch`` without the parts that grading does not take, and the paths of those, sorted.

    The patch comes back word for word where nothing is left out. Pure.
    """
    parts = sections(patch)
    gold = _touched(instance.patch)
    deciding = deciding_files(instance)
    folders = _test_folders(deciding)
    called = _called(instance.eval_script)
    dropped: set[str] = set()
    kept = []
    for part in parts:
        bad = {
            path
            for path in part.paths
            if path not in gold
            and (path in deciding or path in called or _protected(path, folders) or (part.creates and _shadows(path)))
        }
        if not bad:
            kept.append(part.text)
        # of the spellings of one name (a/x, b/x, x) the shortest is the repository's
        dropped |= {path for path in bad if path.partition("/")[2] not in bad}
    return ("".join(kept) if dropped else patch), sorted(dropped)


def deciding_files(instance: Instance) -> frozenset[str]:
    """The files that the hidden tests are written to and those that the deciding test ids name."""
    ids = (*instance.FAIL_TO_PASS, *instance.PASS_TO_PASS)
    named = {posixpath.normpath(name.split("::")[0]) for name in ids if "::" in name}
    # a doctest's id names the module that it documents, which is the agent's to change
    tests = {
        name for name in named if posixpath.basename(name).startswith("test") or _TEST_FOLDERS & set(name.split("/"))
    }
    return frozenset(_touched(instance.test_patch) | tests)


def _touched(patch: str) -> set[str]:
    return {path for part in sections(patch) for path in part.paths if part.text.strip()} if patch.strip() else set()


def _test_folders(files: Iterable[str]) -> set[str]:
    """For each deciding file the outermost folder on its path that is named like one of tests."""
    found = set()
    for file in files:
        parts = file.split("/")
        for depth, name in enumerate(parts[:-1]):
            if name in _TEST_FOLDERS:
                found.add("/".join(parts[: depth + 1]) + "/")
                break
    return found


def _called(eval_script: str) -> set[str]:
    """Words of the eval script that may be paths of the repository: what it runs or reads is not the agent's to write."""
    body = re.sub(r"(?ms)<<-?\s*'?\"?(\w+)'?\"?.*?^\1$", "", eval_script)
    words = {posixpath.normpath(word.strip("'\"")) for word in re.split(r"[\s;|&()=]+", body) if word.strip("'\"")}
    words = {word.removeprefix("/testbed/") for word in words if not word.startswith(("-", "..")) and word != "."}
    # where modules are given to be searched for doctests they are the code under test
    return {word for word in words if not word.endswith(".py")} if "doctest" in body else words


def _protected(path: str, folders: set[str]) -> bool:
    name = posixpath.basename(path)
    parents = path.split("/")[:-1]
    return (
        name in CONFIGURATION
        or name.endswith((".pth", ".egg-link"))
        or any(parent.endswith((".egg-info", ".dist-info")) for parent in parents)
        or any(path.startswith(folder) for folder in folders)
    )


def _shadows(path: str) -> bool:
    """Whether a new file at ``path`` would be imported in place of pytest's or the standard library's."""
    parts = path.split("/")
    for root in _IMPORT_ROOTS:
        rest = parts if not root else parts[1:] if parts[0] == root else []
        if not rest or len(rest) > 2 or (len(rest) == 2 and not rest[1].startswith("__init__.")):
            continue
        name = rest[0].split(".")[0]
        suffix = rest[-1].partition(".")[2]
        if suffix.split(".")[-1] in {"py", "pyc", "so", "pyi", "pyd"} and (
            name in RUNNERS or name in sys.stdlib_module_names or name.startswith("pytest_")
        ):
            return True
    return False
