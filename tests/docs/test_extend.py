"""The examples of docs/extend.md, run as they stand there."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from protege.agent.loop import roll_out
from protege.config import AgentParams, SandboxParams
from protege.datasets.load import load_instances
from protege.errors import ImageMissing
from protege.grading.grade import grade
from protege.sandbox.bubblewrap import BubblewrapProvider
from tests.sandbox.fixtures import cache, tiny
from tests.sandbox.tiny import GOLD, TEST_PATCH
from tests.sandbox_conformance import test_commands, test_diff, test_files
from tests.solve.conftest import SUBMIT, Parrot, bash, say

__all__ = ["cache", "tiny"]
CONFORMS = {
    test_commands: (
        "test_a_command_that_closes_its_output_keeps_its_exit_code",
        "test_a_timeout_kills_children_and_grandchildren_and_says_so",
        "test_environment",
        "test_exit_codes",
        "test_huge_output_is_bounded_and_counted",
        "test_no_network",
        "test_output_that_is_not_utf8",
        "test_stdin",
        "test_streams_are_interleaved_in_order",
        "test_what_no_shell_could_take_is_a_result",
    ),
    test_diff: (
        "test_a_link_out_of_the_tree_is_not_followed",
        "test_an_emptied_tree",
        "test_binary_files_and_caches_are_left_out",
        "test_edit_new_and_deleted_files",
        "test_nothing_of_the_repositorys_configuration_runs",
        "test_the_agents_git_does_not_matter",
        "test_what_is_committed_stashed_or_staged_counts_by_what_is_in_the_tree",
    ),
    test_files: (
        "test_bytes_survive_both_ways",
        "test_errors",
        "test_parents_are_made_and_names_may_be_odd",
        "test_the_mode_of_an_existing_file_is_kept",
        "test_through_a_link",
        "test_what_is_no_file_is_refused_at_once",
    ),
}
"""What of the conformance tests the example passes; pytest collects them here, with the fixtures below."""
globals().update({name: getattr(module, name) for module, names in CONFORMS.items() for name in names})

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


PARAMS = SandboxParams(memory_mb=512, command_timeout_s=20, max_output_bytes=100_000, lifetime_s=2000)


def example(name: str) -> types.ModuleType:
    """The code block of the page that starts with ``# file: <name>``, imported as a module."""
    (code,) = re.findall(rf"```python\n# file: {re.escape(name)}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = types.ModuleType(name.removesuffix(".py"))
    sys.modules[module.__name__] = module
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    return module


@pytest.fixture
def provider(tiny, cache):
    return example("box.py").BoxProvider(PARAMS, tiny.testbeds)


@pytest.fixture
def sandbox(provider, tiny):
    with provider.open(tiny.instance) as opened:
        yield opened


def test_the_sandbox_leaves_nothing_and_names_what_is_missing(provider, tiny):
    with provider.open(tiny.instance) as sandbox:
        folder = sandbox._dir
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(ImageMissing, match="no-such"):
        provider.check([tiny.instance.model_copy(update={"instance_id": "no-such"})])


def test_the_expert_and_the_sandbox_in_a_rollout(provider, tiny):
    expert = example("traceback_expert.py").TracebackExpert()
    fail = bash("python3 -c 'from calc import add; add(1)'; sed -i 's/a - b/a + b/' calc.py")
    work = Parrot(say("ask_expert", query="where?"), fail, say("ask_expert", query="where?"), SUBMIT)
    done = roll_out(tiny.instance, work, expert, provider, AgentParams(), 0, trajectory_id="t")
    first, second = (call.reply for call in done.expert_calls)
    assert first.startswith("Run what the issue shows") and second.startswith("Look at <string>, line 1")
    assert done.patch == GOLD or "+    return a + b" in done.patch
    assert not expert.identity.sees_gold and pickle.loads(pickle.dumps(expert)).identity == expert.identity


def test_the_source_makes_an_instance_that_grades(tiny, tmp_path, cache):
    repo = tmp_path / "calc"
    subprocess.run(["cp", "-r", str(tiny.testbeds.parent / "testbed"), str(repo)], check=True)
    for patch in (GOLD, TEST_PATCH):
        subprocess.run(["git", "apply", "-"], input=patch.encode(), cwd=repo, check=True)
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *who, "commit", "-qam", "add adds"], cwd=repo, check=True)
    fix = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repo, check=True, capture_output=True, text=True
    ).stdout.strip()
    source = example("my_source.py")
    test = "tests/test_calc.py"
    made = source.row(repo, fix, "add(2, 3) gives -1", "i", [test], [f"{test}::test_add"], [f"{test}::test_double"])
    source.write([made], tmp_path / "rows.jsonl")
    (instance,) = load_instances(tmp_path / "rows.jsonl")
    assert instance.base_commit == tiny.instance.base_commit
    testbeds = tmp_path / "testbeds"
    testbeds.mkdir()
    (testbeds / f"{instance.instance_id}.tar.gz").symlink_to(tiny.testbeds / f"{tiny.instance.instance_id}.tar.gz")
    provider = BubblewrapProvider(PARAMS, testbeds, tiny.site)
    assert grade(instance, instance.patch, provider, log_dir=tmp_path / "logs").resolved
    assert not grade(instance, "", provider, log_dir=tmp_path / "logs").resolved
