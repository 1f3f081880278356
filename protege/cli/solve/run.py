"""A user's repository and issue in, a patch file out; the repository itself is only read."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from protege.agent.loop import opening, roll_out
from protege.cli.solve.params import SolveParams, default_home, default_keep, patch_target
from protege.cli.solve.progress import plain, turn_line
from protege.cli.solve.serve import ServedModel
from protege.cli.solve.tree import Tree, list_tree, run_git, run_git_apart
from protege.cli.solve.workspace import Workspace, make_instance, open_workspace
from protege.core.instance import Instance
from protege.core.patches import changes
from protege.core.trajectory import Failure, Identity, Trajectory, Turn
from protege.errors import BadInput, ProtegeError, StorageError
from protege.expert.base import Expert
from protege.files import write_atomic
from protege.policy.base import Policy
from protege.sandbox.base import Sandbox, SandboxProvider
from protege.sandbox.patches import patch_problem


class TestRun(BaseModel):
    """What the user's own test command did in a fresh sandbox. ``tail`` is the end of its output."""

    model_config = ConfigDict(extra="forbid")
    __test__ = False  # not a test of pytest's

    exit_code: int
    timed_out: bool = False
    seconds: float = 0.0
    tail: str = ""

    @property
    def last_line(self) -> str:
        lines = [line for line in self.tail.splitlines() if line.strip()]
        return lines[-1] if lines else "no output"


class Solution(BaseModel):
    """How it ended. ``patch_file`` is None where there is no patch; ``tokens`` are those that the model sampled."""

    model_config = ConfigDict(extra="forbid")

    exit_status: str
    patch_file: Path | None
    apply_command: list[str] = Field(default_factory=list)
    files: int = 0
    added: int = 0
    removed: int = 0
    steps: int
    tokens: int
    expert_calls: int
    expert_tokens: int
    cost_usd: float
    seconds: float
    model: Identity
    expert: Identity | None
    backend: str
    trajectory_file: Path
    tests_before: TestRun | None = None
    tests_after: TestRun | None = None
    left_out: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


def solve(
    repo: Path | str,
    issue: str,
    model: Policy | ServedModel,
    *,
    params: SolveParams | None = None,
    expert: Expert | None = None,
    out: Path | str | None = None,
    force: bool = False,
    keep: Path | str | None = None,
    home: Path | None = None,
    image: str | None = None,
    site: Path | None = None,
    test_command: str | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Solution:
    """Let ``model`` work on ``issue`` in a sandboxed copy of ``repo`` and write what it changed to a patch file.

    Args:
        out: the patch file; default ``<name>.patch`` in the current folder, or in ``keep`` where that is in ``repo``.
        force: replace ``out`` if it is there.
        keep: folder of the trajectory; default the project's ``data/solve``, else the user's cache.
        home: folder of caches, logs and pid files; default the project's, else the user's.
        image, site: see :func:`protege.cli.solve.workspace.open_workspace`.
        test_command: run in fresh sandboxes before and after; decides nothing.
        report: is given one line at a time while it works.

    Raises:
        BadInput: repository, issue, model, ``out`` or an option cannot be used.
        SandboxError, ExpertError, ModelServerError: infrastructure. What was changed until then is kept; a note on the
            exception says where. KeyboardInterrupt carries the same note.
    """
    params = (params or SolveParams()).with_lifetime()
    if expert is not None and expert.identity.sees_gold:
        raise BadInput("this expert answers from a gold patch, and your own issue has none; use expert api or none")
    tree = list_tree(repo, params.max_mb, params.max_files)
    home = home or default_home(tree.root)
    kept = Path(keep) if keep is not None else default_keep(tree.root)
    name = _fresh_name(tree.root)
    target = patch_target(out, tree.root, kept / f"{name}.patch", force)
    if isinstance(model, ServedModel):
        model.check(opening(make_instance(tree, issue), params.agent))
    report(f"repository: {tree.root}, {len(tree.files)} files, {tree.size / 1024 / 1024:.1f} MiB are copied")
    for line in tree.left_out[:5]:
        report(f"left out: {plain(line)}")
    with open_workspace(tree, issue, params.sandbox, home, image=image, site=site, note=report) as workspace:
        work = _Work(name, tree, workspace, params, expert, target, kept, seed, report)
        before = work.tests(test_command, "before")
        trajectory = work.roll_out(model)
        after = work.tests(test_command, "after", trajectory.patch) if trajectory.patch else None
    return work.finish(trajectory, before, after)


class _DiffRecorder:
    """A provider whose sandboxes leave their diff in ``partial`` when the work in them is broken off.

    ``reason`` says why a diff is empty although something may have changed.
    """

    def __init__(self, inner: SandboxProvider) -> None:
        self._inner = inner
        self.partial = self.reason = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def open(self, instance: Instance) -> Iterator[Sandbox]:
        with self._inner.open(instance) as sandbox:
            try:
                yield sandbox
            except BaseException:
                with suppress(ProtegeError):  # the sandbox itself may be what failed
                    self.partial = sandbox.diff()
                raise
            finally:
                self.reason = getattr(sandbox, "empty_diff_reason", "")


@dataclass
class _Work:
    """One solve, once its inputs are known to be good. ``notes`` are for its summary."""

    name: str
    tree: Tree
    workspace: Workspace
    params: SolveParams
    expert: Expert | None
    target: Path
    kept: Path
    seed: int
    report: Callable[[str], None]
    turns: list[Turn] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def roll_out(self, model: Policy | ServedModel) -> Trajectory:
        entered: AbstractContextManager[Policy] = model if isinstance(model, ServedModel) else nullcontext(model)
        recorder: Any = _DiffRecorder(self.workspace.provider)
        try:
            with entered as policy:
                trajectory = roll_out(
                    self.workspace.instance,
                    policy,
                    self.expert,
                    recorder,
                    self.params.agent,
                    self.seed,
                    trajectory_id=self.name,
                    command_timeout_s=self.params.sandbox.command_timeout_s,
                    on_turn=self._turn,
                )
        except (ProtegeError, KeyboardInterrupt) as error:
            error.add_note(self._keep_partial(error, recorder.partial, model.identity))
            raise
        trajectory.save(self.kept)
        if recorder.reason:
            self.notes.append(f"there is no patch: {recorder.reason}")
        return trajectory

    def _turn(self, turn: Turn) -> None:
        self.turns.append(turn)
        self.report(turn_line(turn, self.params.agent.step_limit, self.expert is not None))

    def _keep_partial(self, error: BaseException, patch: str, policy: Identity) -> str:
        """Keep what there is of an undone work; says where, or that there is nothing."""
        if not self.turns:
            return "nothing was changed yet, so no patch is kept"
        interrupted = isinstance(error, KeyboardInterrupt)
        instance = self.workspace.instance
        Trajectory(
            trajectory_id=self.name,
            instance_id=instance.instance_id,
            instance_digest=instance.digest,
            repo=instance.repo,
            policy=policy,
            expert=self.expert.identity if self.expert else None,
            seed=self.seed,
            messages=opening(instance, self.params.agent),
            turns=self.turns,
            exit_status="infrastructure",
            failure=Failure(
                boundary=error.boundary if isinstance(error, ProtegeError) else "input",
                error=type(error).__name__,
                message="interrupted by the user" if interrupted else str(error),
            ),
            patch=patch,
            sandbox_backend=self.workspace.provider.backend,
        ).save(self.kept)
        where = f"trajectory of the {len(self.turns)} steps until then: {self.kept / self.name}.json"
        if not patch or patch_problem(patch):
            return f"no patch is kept; {where}"
        partial = write_atomic(self.kept / f"{self.name}.partial.patch", patch)
        return f"partial patch, as the work stood: {partial}; {where}"

    def tests(self, command: str | None, when: str, patch: str = "") -> TestRun | None:
        """Run the user's ``command`` in a fresh copy, with ``patch`` applied."""
        if command is None:
            return None
        with self.workspace.provider.open(self.workspace.instance) as box:
            if patch:
                applied = box.exec("git apply --whitespace=nowarn -", stdin=patch.encode(), timeout=60)
                if applied.exit_code != 0:
                    self.notes.append(f"the patch does not apply to a fresh copy: {plain(applied.output, 200)}")
                    return None
            done = box.exec(command, timeout=self.params.sandbox.grade_timeout_s)
        run = TestRun(
            exit_code=done.exit_code, timed_out=done.timed_out, seconds=round(done.seconds, 2), tail=done.output[-4000:]
        )
        ended = "timed out" if run.timed_out else f"exit {run.exit_code}"
        self.report(f"tests {when}: {ended} in {run.seconds:.1f} s, {plain(run.last_line)}")
        if when == "before" and (missing := re.search(r"No module named '?([\w.]+)", done.output)):
            self.notes.append(f"the sandbox has no module {missing[1]}; --site FOLDER or --image NAME brings it along")
        return run

    def finish(self, trajectory: Trajectory, before: TestRun | None, after: TestRun | None) -> Solution:
        patch, notes = trajectory.patch, self.notes
        if patch and (problem := patch_problem(patch)):
            notes.append(f"the patch is withheld: {problem}; the trajectory holds it")
            patch = ""
        command: list[str] = []
        if patch:
            try:
                write_atomic(self.target, patch)
            except StorageError as error:
                error.add_note(f"the patch is in {self.kept / self.name}.json")
                raise
            except OSError as error:
                raise BadInput(
                    f"--out {self.target} cannot be written ({error.strerror}); the patch is in {self.kept / self.name}.json"
                ) from error
            command = ["git", *self.tree.apply_at, str(self.target)]
            if complaint := _does_not_apply(self.tree, self.target):
                notes.append(f"the patch does not apply to the repository as it is now: {complaint}")
        changed = changes(patch)
        return Solution(
            exit_status=trajectory.exit_status,
            patch_file=self.target if patch else None,
            apply_command=command,
            files=len(re.findall(r"(?m)^diff --git ", patch)),
            added=sum(len(change.added) for change in changed),
            removed=sum(len(change.removed) for change in changed),
            steps=len(trajectory.turns),
            tokens=trajectory.completion_tokens,
            expert_calls=sum(call.answered for call in trajectory.expert_calls),
            expert_tokens=trajectory.expert_tokens,
            cost_usd=sum(call.cost_usd for call in trajectory.expert_calls),
            seconds=trajectory.seconds,
            model=trajectory.policy,
            expert=trajectory.expert,
            backend=trajectory.sandbox_backend,
            trajectory_file=self.kept / f"{self.name}.json",
            tests_before=before,
            tests_after=after,
            left_out=list(self.tree.left_out),
            notes=notes,
        )


def _fresh_name(root: Path) -> str:
    """Names a trajectory: ``<folder>-<time>-<random>``."""
    slug = re.sub(r"[^\w.-]+", "-", root.name, flags=re.ASCII).strip("-.") or "repository"
    return f"{slug}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def _does_not_apply(tree: Tree, patch: Path) -> str:
    """What ``git apply --check`` says against the folder as it is now, without its repository's configuration."""
    git = run_git if tree.top is None else run_git_apart
    done = git(tree.root, "apply", "--check", str(patch))
    return plain(done.stderr.decode(errors="replace"), 200) if done.returncode else ""
