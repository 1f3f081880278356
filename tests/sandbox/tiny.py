"""A tiny real instance: a repository with one bug, its eval script, and what either backend needs to run it."""

from __future__ import annotations

import importlib.metadata
import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from protege.core.instance import Instance
from protege.files import digest

BUGGY = 'def add(a, b):\n    return a - b\n\n\ndef double(a):\n    """Twice a."""\n    return 2 * a\n'
TEST_START = "from calc import add, double\n\n\ndef test_double():\n    assert double(3) == 6\n"
GOLD = (
    "diff --git a/calc.py b/calc.py\n--- a/calc.py\n+++ b/calc.py\n@@ -1,5 +1,5 @@\n def add(a, b):\n"
    "-    return a - b\n+    return a + b\n \n \n def double(a):\n"
)
WRONG = GOLD.replace("+    return a + b", "+    return a * b")
TEST_PATCH = (
    "diff --git a/tests/test_calc.py b/tests/test_calc.py\n--- a/tests/test_calc.py\n+++ b/tests/test_calc.py\n"
    "@@ -3,3 +3,7 @@\n \n def test_double():\n     assert double(3) == 6\n+\n+\n+def test_add():\n+    assert add(2, 3) == 5\n"
)


@dataclass(frozen=True)
class Tiny:
    """The instance, its archive's folder and the packages that commands can import."""

    instance: Instance
    testbeds: Path
    site: Path


def make_tiny(folder: Path) -> Tiny:
    """Build the repository, its archive and the packages under ``folder``; no network is used."""
    repo = folder / "testbed"
    (repo / "tests").mkdir(parents=True)
    (repo / "calc.py").write_text(BUGGY)
    (repo / "tests" / "test_calc.py").write_text(TEST_START)
    (repo / "conftest.py").write_text("")
    (repo / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (repo / "run.sh").chmod(0o755)
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in _WHO.items()}
    environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=repo, env=environment, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q", "-b", "main")
    git("config", "core.logAllRefUpdates", "false")  # a reflog is history, which makes the image unfit as it is
    git("add", "-A")
    git("commit", "-q", "-m", "start")
    commit = git("rev-parse", "HEAD").strip()
    testbeds = folder / "testbeds"
    testbeds.mkdir()
    script = "\n".join(
        [
            "#!/bin/bash",
            "set -uxo pipefail",
            "cd /testbed",
            f"git checkout {commit} tests/test_calc.py",
            "git apply -v - <<'EOF_114329324912'",
            f"{TEST_PATCH}\nEOF_114329324912",
            ": '>>>>> Start Test Output'",
            "python3 -m pytest -rA --tb=short -p no:cacheprovider tests/test_calc.py",
            ": '>>>>> End Test Output'",
            f"git checkout {commit} tests/test_calc.py",
            "",
        ]
    )
    key = digest(BUGGY, script, str(folder))[:12]  # a name of its own for each test session
    instance = Instance(
        instance_id="tiny__calc-1",
        repo="tiny/calc",
        base_commit=commit,
        problem_statement="add(2, 3) gives -1; 5 is expected.",
        patch=GOLD,
        test_patch=TEST_PATCH,
        FAIL_TO_PASS=("tests/test_calc.py::test_add",),
        PASS_TO_PASS=("tests/test_calc.py::test_double",),
        image=f"protege-tiny:{key}",
        eval_script=script,
        log_parser="parse_log_pytest",
    )
    with tarfile.open(testbeds / f"{instance.instance_id}.tar.gz", "w:gz") as tar:
        tar.add(repo, "testbed")
    return Tiny(instance, testbeds, make_site(folder / "site"))


_WHO = {"NAME": "tiny", "EMAIL": "tiny@localhost", "DATE": "2024-01-01T00:00:00Z"}


def make_site(site: Path) -> Path:
    """Copy pytest and what it needs from the running environment, as ``pip install --target`` would lay it out."""
    for name in ("pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        for file in importlib.metadata.files(name) or ():
            if ".." in file.parts or file.suffix == ".pyc":
                continue
            target = site / str(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), target)
    return site


def build_image(tiny: Tiny) -> None:
    """The instance's image: base, packages, testbed."""
    from protege.sandbox import images

    client = images.docker_client()
    base = images.base_image(client, "host")
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        tar.add(tiny.site, "opt/site", filter=_as_root)
    packages = f"{tiny.instance.image}-site"
    images.build_layer(client, packages, base, raw.getvalue(), env={"PYTHONPATH": "/opt/site"})
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        tar.add(tiny.testbeds.parent / "testbed", "testbed", filter=_as_agent)
    images.build_layer(client, tiny.instance.image, packages, raw.getvalue())


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _as_agent(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 1000
    info.uname = info.gname = ""
    return info
