"""Which tests run on one worker, one after the other, and in which order the workers take them (pytest-xdist).

A group is what shares something dear (a model server, a Prefect server, an engine that is stopped and started, a run of
the whole pipeline in a module's fixture). The longest start first, so that none is left for the end; of those that
compute rather than wait, two at most run at once. A file in no group is one of its own.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling

GROUPS: dict[str, tuple[str, ...]] = {
    "pipeline": ("tests/e2e/test_pipeline.py",),
    "training, killed": ("tests/train/test_grpo_step.py::test_a_killed_run",),
    "nights": ("tests/nightly/test_night.py",),
    "private engine": ("tests/adversarial/test_recovery.py",),
    "vllm": ("tests/policy/test_served.py",),
    "training": ("tests/train/test_grpo_step.py",),
    "without an engine": ("tests/e2e/test_without_docker.py",),
    "projects": ("tests/nightly/test_seeds.py", "tests/nightly/test_remote.py", "tests/nightly/test_provenance.py"),
    "processes": ("tests/train/test_launch.py", "tests/train/test_sft.py"),
    "identity": ("tests/test_identity.py",),
    "lint": ("tests/test_lint.py",),
    "tasks": ("tests/tasks/test_runner.py", "tests/tasks/test_server.py", "tests/nightly/"),
    "expert": ("tests/expert/test_vllm.py", "tests/policy/test_vllm_sampler.py", "tests/train/test_grpo.py"),
    "serving": ("tests/tasks/test_serving.py",),
    "validation": ("tests/validation/",),
    "harness": ("tests/adversarial/test_grading.py",),
    "grading": ("tests/grading/",),
    "limits": ("tests/adversarial/test_resources.py",),
    "agent side": ("tests/adversarial/test_agent_side.py",),
    "desk": ("tests/desk/test_limits.py", "tests/desk/test_desk_docker.py"),
    "frontier": ("tests/frontier/",),
    "commands": ("tests/test_cli.py",),
    "browser": ("tests/report/test_browser.py", "tests/chaos/test_clicks.py"),
}
"""Group -> what the ids of its tests begin with; the longest beginning decides. The order is that of their start."""

COMPUTING = {"training, killed", "vllm", "training", "processes", "identity", "lint", "expert", "serving"}
COMPUTING_AT_ONCE = 2
_PREFIXES = sorted(((p, name) for name, all_ in GROUPS.items() for p in all_), key=lambda pair: -len(pair[0]))


def group_of(nodeid: str) -> str:
    """The group of a test, or its file.

    >>> group_of("tests/train/test_grpo_step.py::test_a_killed_run_ends[0]"), group_of("tests/train/test_grpo_step.py::t")
    ('training, killed', 'training')
    >>> group_of("tests/test_files.py::test_it")
    'tests/test_files.py'
    """
    return next((name for prefix, name in _PREFIXES if nodeid.startswith(prefix)), nodeid.split("::", 1)[0])


class Groups(LoadScopeScheduling):
    """Groups in the order of the table, then the other files, those of most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    def schedule(self) -> None:
        self.config.option.loadscopereorder = True
        super().schedule()

    def _assign_work_unit(self, node: Any) -> None:
        if not any(self.assigned_work.values()):  # before the first: by the table
            places = {name: place for place, name in enumerate(GROUPS)}
            for name in sorted(self.workqueue, key=lambda name: places.get(name, len(places))):
                self.workqueue.move_to_end(name)
        computing = sum(
            any(name in COMPUTING and not all(tests.values()) for name, tests in units.items())
            for other, units in self.assigned_work.items()
            if other is not node
        )
        if computing >= COMPUTING_AT_ONCE:
            waits = next((name for name in self.workqueue if name not in COMPUTING), None)
            if waits is not None:
                self.workqueue.move_to_end(waits, last=False)
        super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        # xdist hands out the next unit two tests early; here a test may take minutes, and another worker be free by then
        if len(self.workqueue) and self._pending_of(self.assigned_work[node]) > 1:
            return
        super()._reschedule(node)
