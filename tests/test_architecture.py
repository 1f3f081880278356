"""Imports point one way: flows -> tasks -> protege; protege knows neither Prefect nor DVC, and one module drives DVC."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "protege": {"tasks", "flows", "infra", "prefect", "dvc"},
    "tasks": {"flows", "infra", "dvc"},
    "flows": {"infra", "dvc"},
}
DVC = ROOT / "tasks/dvcstages.py"
ENGINE_CLASSES = {
    *("protege.train.cpu.blocks", "protege.train.cpu.lm_head", "protege.train.trimmed"),
    "protege.policy.vllm_sampler",  # loaded by vLLM alone
}
"""Modules that subclass an engine's own class; only functions import them."""
HEAVY = ("torch", "transformers", "trl", "vllm", "docker", "swebench", "great_expectations", "prefect", "dvc")


def imported(source: str) -> Iterator[str]:
    """Top-level names of every import in ``source``, those inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_point_one_way(package: str) -> None:
    files = sources(package)
    assert files
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported(path.read_text())
        if name in FORBIDDEN[package] and not (name == "dvc" and path == DVC)
    }
    assert not wrong, sorted(wrong)


def test_the_settings_import_nothing_of_ours_but_the_errors() -> None:
    tree = ast.parse((ROOT / "protege/config.py").read_text(encoding="utf-8"))
    ours = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and str(n.module).startswith("protege")}
    assert ours == {"protege.errors"}


def test_the_check_sees_imports_inside_functions() -> None:
    assert set(imported("def f():\n    from prefect.x import y\n    import dvc.api\n")) == {"prefect", "dvc"}


def test_importing_the_library_loads_no_engine() -> None:
    """Every module of protege imports in one process without pulling in torch, Docker's SDK or the like."""
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in sources("protege")
    ]
    modules = sorted(set(modules) - ENGINE_CLASSES)
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
