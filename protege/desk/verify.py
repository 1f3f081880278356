"""Whether a candidate bug makes an instance: its tests decide, run in the sandbox, repeatedly.

The sandbox starts from the package as published (its ``pristine`` testbed, which no agent ever sees); the buggy file
is written into it. The tree that is tested is the one that grading later restores, file for file.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from protege.config import InstancesParams
from protege.desk import snippet as snippets_of
from protege.desk import statement as statements
from protege.desk.modifiers import Candidate
from protege.desk.sources import Package
from protege.desk.testfiles import base_id, find_test, remove_tests
from protege.desk.testrun import (
    PASSING,
    Gold,
    Prepared,
    Run,
    gold,
    plugin,
    run_plugin,
    run_tests,
    script,
    whole_id,
)
from protege.errors import SandboxOutOfMemory
from protege.sandbox.base import Sandbox, SandboxProvider

Reason = Literal[
    "no_fail_to_pass",
    "too_many_fail_to_pass",
    "flaky",
    "timeout",
    "crash",
    "test_not_found",
    "ambiguous_ids",
    "no_statement",
    "statement_leaks",
]
_PROBED = 8
_SNIPPET = 700


__all__ = ["Dropped", "Gold", "Prepared", "Verified", "gold", "verify"]


class Dropped(BaseModel):
    """A candidate that is no instance, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidate_id: str
    package: str
    reason: Reason
    detail: str = ""


class Verified(BaseModel):
    """A candidate that its tests have proved: all that ``desk.build`` needs to write the instance.

    ``removed`` are the base ids of every test that failed with the bug; the agent's repository lacks them all.
    ``flaky`` counts test ids left out of both lists because they did not behave alike in every run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidate_id: str
    package: str
    version: str
    modifier: str
    path: str
    entity: str
    original: str
    buggy: str
    changed_lines: int
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    removed: tuple[str, ...]
    problem_statement: str
    flaky: int = 0
    seconds: float = 0.0


def verify(
    candidate: Candidate, prepared: Prepared, gold: Gold, provider: SandboxProvider, params: InstancesParams
) -> Verified | Dropped:
    """Prove or drop one candidate. Thread-safe; deterministic but for flaky tests; costs at most ``repeats`` + 1 test runs.

    Raises:
        SandboxError: the sandbox itself failed; a retry may help.
    """

    def drop(reason: Reason, detail: str = "") -> Dropped:
        return Dropped(
            candidate_id=candidate.candidate_id, package=candidate.package, reason=reason, detail=detail[:300]
        )

    try:
        with provider.open(prepared.pristine) as sandbox:
            return _verify(candidate, prepared, gold, sandbox, params, drop)
    except SandboxOutOfMemory as error:
        return drop("crash", str(error))


def _verify(
    candidate: Candidate,
    prepared: Prepared,
    gold: Gold,
    sandbox: Sandbox,
    params: InstancesParams,
    drop: Callable[..., Dropped],
) -> Verified | Dropped:
    sandbox.write(f"{sandbox.workdir}/{candidate.path}", candidate.buggy.encode())
    # A bug that hangs must not cost the whole allowance: ten times the normal time is enough to tell. Of the processor's
    # time, since what else the machine does must not decide which bugs there are; one that only waits meets the clock.
    timeout, cpu_limit = params.test_timeout_s, 5 + 10 * gold.cpu_seconds
    scene = _Scene(candidate, prepared, sandbox, timeout, cpu_limit)
    # Most candidates fail no test, or none that a few lines can show. Where the tests that call the function are known to be
    # few, they tell so in a fraction of the time of a whole run; a candidate that they speak for is proved by whole runs.
    calling = (
        None if candidate.modifier.startswith("func_pm_class") else gold.tests_of(candidate.path, candidate.entity)
    )
    text: str | None = None
    if calling is not None:
        if not calling:
            return drop("no_fail_to_pass", "no test calls the function")
        exit_code, records = scene.failures(calling)
        if exit_code == 0:
            return drop("no_fail_to_pass")
        if exit_code == 1:
            text, why = scene.statement(records)
            if text is None:
                return drop("statement_leaks" if why else "no_statement", why)
    runs: list[Run] = []
    for _ in range(params.repeats):
        run = run_tests(sandbox, prepared.package, timeout, cpu_limit)
        if run.timed_out:
            return drop("timeout", f"over {cpu_limit:.0f} s of the processor or {timeout:.0f} s")
        if run.exit_code not in (0, 1) or run.dropped or not run.status:
            return drop("crash", f"pytest ended with exit {run.exit_code}")
        if not run.failing - set(gold.broken) - set(gold.unstable):
            return drop("no_fail_to_pass") if not runs else drop("flaky", "fails in some runs only")
        if len(run.failing) > params.max_fail_to_pass:
            return drop("too_many_fail_to_pass", f"{len(run.failing)} test functions")
        runs.append(run)
        if text is None:
            telling = sorted({base_id(test) for test in _always(gold, runs)})[:_PROBED]
            if not telling:
                return drop("ambiguous_ids", "no id fails that the log gives whole")
            text, why = scene.statement(scene.failures(telling)[1])
            if text is None:
                return drop("statement_leaks" if why else "no_statement", why)
    assert text is not None
    always = _always(gold, runs)
    passed = {test for test in gold.passed if whole_id(test)}
    kept = {test for test in passed if all(run.status.get(test) in PASSING for run in runs)}
    shaky = passed - always - kept
    known = set(gold.unstable) | set(gold.broken)
    everywhere = set(runs[0].failing).intersection(*(run.failing for run in runs))
    anywhere = set(runs[0].failing).union(*(run.failing for run in runs))
    removed = everywhere - set(gold.broken)
    odd = anywhere - everywhere - known
    if odd:
        return drop("flaky", f"fail in some runs only: {', '.join(sorted(odd))}")
    if not always:
        return drop("ambiguous_ids", "no id fails that the log gives whole")
    removal = remove_tests(prepared.tests, removed)
    if removal.missing:
        return drop("test_not_found", ", ".join(removal.missing))
    if leak := scene.leak(text, sorted(removed)):
        return drop("statement_leaks", leak)
    return Verified(
        **{
            name: getattr(candidate, name)
            for name in ("candidate_id", "package", "version", "modifier", "path", "entity")
        },
        original=candidate.original,
        buggy=candidate.buggy,
        changed_lines=candidate.changed_lines,
        fail_to_pass=tuple(sorted(always)),
        pass_to_pass=tuple(sorted(kept)),
        removed=tuple(sorted(removed)),
        problem_statement=text,
        flaky=len(shaky),
        seconds=round(sum(run.seconds for run in runs), 2),
    )


def _always(gold: Gold, runs: list[Run]) -> set[str]:
    """Ids that pass without the bug and fail in every run with it."""
    failed = {"FAILED", "ERROR"}
    return {t for t in gold.passed if whole_id(t) and all(run.status.get(t) in failed for run in runs)}


@dataclass(frozen=True)
class _Scene:
    """A sandbox with the bug in it, and what can be asked there: which tests fail how, and what a user would see."""

    candidate: Candidate
    prepared: Prepared
    sandbox: Sandbox
    timeout: float
    cpu_limit: float

    def failures(self, tests: Sequence[str]) -> tuple[int, list[dict[str, Any]]]:
        """pytest's exit code for the test functions ``tests``, and probe.py's records of those that fail."""
        wanted = " ".join(map(shlex.quote, tests))
        code, records = run_plugin(self.sandbox, self.prepared.package, "probe", wanted, self.timeout, self.cpu_limit)
        return code, records or []

    def statement(self, records: list[dict[str, Any]]) -> tuple[str | None, str]:
        """(statement, "") or (None, why): ``why`` is empty when no snippet shows the bug."""
        candidate, prepared, sandbox = self.candidate, self.prepared, self.sandbox
        package = prepared.package
        failing = sorted({base_id(record["nodeid"]) for record in records})[:_PROBED]
        roots = {name.split("/")[-1].removesuffix(".py") for name in (package.source, *package.also)}
        found: list[snippets_of.Snippet] = []
        for record in records:
            place = find_test(prepared.tests, record["nodeid"]) if base_id(record["nodeid"]) in failing else None
            if place is not None:
                found += snippets_of.snippets(record, prepared.tests[place[0]], tuple(roots))
        found = sorted({json.dumps(s.as_input()): s for s in found if len(s) < _SNIPPET}.values(), key=len)[:24]
        if not found:
            return None, ""
        faulty = f"{sandbox.workdir}/{candidate.path}"
        buggy = _outcomes(package, sandbox, found)
        sandbox.write(faulty, candidate.original.encode())
        correct = _outcomes(package, sandbox, found)
        sandbox.write(faulty, candidate.buggy.encode())
        why = ""
        for snippet, with_bug, without in zip(found, buggy, correct, strict=False):
            observed = statements.Observed(snippet, with_bug, without)
            if observed.telling:
                text = statements.write(observed, candidate.candidate_id)
                why = self.leak(text, failing)
                if not why:
                    return text, ""
        return None, why

    def leak(self, text: str, tests: list[str]) -> str:
        """What of the patch, or of the names of ``tests``, the statement gives away; empty: nothing."""
        return statements.leaks(text, patch=self.candidate.patch, tests=tests, path=self.candidate.path) or ""


def _outcomes(package: Package, sandbox: Sandbox, snippets: list[snippets_of.Snippet]) -> list[dict[str, Any]]:
    command = script(sandbox, package, f"python {plugin(sandbox, 'probe')}/protege_probe.py")
    result = sandbox.exec(command, timeout=30, stdin=json.dumps([s.as_input() for s in snippets]).encode())
    for line in result.output.splitlines():
        if line.startswith("PROTEGE-PROBE "):
            answers: list[dict[str, Any]] = json.loads(line.removeprefix("PROTEGE-PROBE "))
            return answers
    return []
