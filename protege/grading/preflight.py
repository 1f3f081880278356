"""Before any number is made of them: do the instances grade the way they claim to, every time?

The gold patch is graded ``repeats`` times and must resolve each time; a patch that changes nothing is graded once
and must not; and the box that an agent would get must not hold a fixed copy of the package. What fails is
quarantined with its reason, so that a report can say its denominator: instances in all, quarantined, left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from protege.core.instance import Instance
from protege.errors import BadParams, SandboxError
from protege.files import Store, digest
from protege.grading.grade import grade
from protege.identity import code_of
from protege.sandbox.bubblewrap import BubblewrapProvider
from protege.sandbox.copies import fixed_copies
from protege.sandbox.docker import DockerProvider

NOTHING = (
    "diff --git a/.protege-preflight b/.protege-preflight\nnew file mode 100644\n--- /dev/null\n"
    "+++ b/.protege-preflight\n@@ -0,0 +1 @@\n+This patch changes nothing.\n"
)
"""Stands for "no patch": the harness never runs the tests for an empty one."""

Reason = Literal["gold_fails", "gold_flaky", "resolved_without_a_patch", "fixed_copy"]


class Checked(BaseModel):
    """What was found about one instance. ``reason`` is None for one that may be used; ``detail`` is for a person."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instance_id: str
    instance_digest: str
    reason: Reason | None = None
    detail: str = ""
    gold_runs: int = 0
    gold_resolved: int = 0
    evidence: str = ""


class Preflight(BaseModel):
    """``ok`` may be used, ``quarantined`` must not, ``failed`` could not be told (infrastructure); each in the order given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ok: tuple[str, ...] = ()
    quarantined: tuple[Checked, ...] = ()
    failed: dict[str, str] = Field(default_factory=dict)
    repeats: int = 0

    @property
    def denominator(self) -> str:
        """One sentence for a report: of how many instances, and why not of all."""
        total = len(self.ok) + len(self.quarantined) + len(self.failed)
        text = f"{len(self.ok)} of {total} instances"
        counts: dict[str, int] = {}
        for item in self.quarantined:
            counts[str(item.reason)] = counts.get(str(item.reason), 0) + 1
        if counts:
            why = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(counts.items()))
            text += f"; {len(self.quarantined)} quarantined ({why})"
        if self.failed:
            text += f"; {len(self.failed)} could not be checked (infrastructure)"
        return text + f"; the gold patch was graded {self.repeats} times"


def preflight(
    instances: Sequence[Instance],
    provider: DockerProvider | BubblewrapProvider,
    repeats: int = 3,
    log_dir: Path | str = "logs/preflight",
    workers: int = 1,
    on_result: Callable[[Checked], None] | None = None,
    store: Store | None = None,
) -> Preflight:
    """Check every instance; ``on_result`` is called for each as it is done, from several threads.

    With ``store`` an instance that was checked before, with the same row, image, limits, repeats and code, is
    not checked again.

    Raises:
        BadInput: an image is missing, or ``repeats`` is less than 1.
    """
    if repeats < 1:
        raise BadParams(f"preflight: repeats must be at least 1, not {repeats}")
    provider.check(list(instances))

    def one(instance: Instance) -> Checked | SandboxError:
        try:
            found = _cached(instance, provider, repeats, Path(log_dir), store)
        except SandboxError as error:
            return error
        if on_result:
            on_result(found)
        return found

    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = list(pool.map(one, instances))
    pairs = list(zip(instances, results, strict=True))
    return Preflight(
        ok=tuple(r.instance_id for r in results if isinstance(r, Checked) and r.reason is None),
        quarantined=tuple(r for r in results if isinstance(r, Checked) and r.reason is not None),
        failed={i.instance_id: str(r) for i, r in pairs if isinstance(r, SandboxError)},
        repeats=repeats,
    )


def preflight_key(instance: Instance, provider: DockerProvider | BubblewrapProvider, repeats: int) -> str:
    """What decides a check: the row, the image, the limits, the number of gradings, and the code."""
    image, limits = provider.image_digest(instance), provider.params.deciding()
    code = code_of("protege.grading.preflight", type(provider).__module__)
    return digest("preflight", instance.digest, image, limits, provider.backend, repeats, code)


def _cached(
    instance: Instance,
    provider: DockerProvider | BubblewrapProvider,
    repeats: int,
    log_dir: Path,
    store: Store | None,
) -> Checked:
    key = preflight_key(instance, provider, repeats) if store else ""
    if store and (found := store.get("preflight", key)) is not None:
        return Checked.model_validate(found)
    result = check(instance, provider, repeats, log_dir)
    if store:
        store.put("preflight", key, result.model_dump(mode="json"))
    return result


def check(
    instance: Instance, provider: DockerProvider | BubblewrapProvider, repeats: int, log_dir: Path | str
) -> Checked:
    """One instance, now. Stops at the first finding.

    Raises:
        GradingError, SandboxError: the engine failed.
    """
    resolved, evidence = 0, ""

    def result(reason: Reason | None, detail: str = "", runs: int = repeats) -> Checked:
        return Checked(
            instance_id=instance.instance_id,
            instance_digest=instance.digest,
            reason=reason,
            detail=detail,
            gold_runs=runs,
            gold_resolved=resolved,
            evidence=evidence,
        )

    with provider.open(instance) as box:
        if copies := fixed_copies(box, instance):
            return result("fixed_copy", f"the fix lies in {', '.join(copies[:5])}", runs=0)
    why = ""
    for _ in range(repeats):
        verdict = grade(instance, instance.patch, provider, log_dir=log_dir)
        resolved += verdict.resolved
        if verdict.resolved:
            evidence = verdict.evidence
        else:
            failing = f": {', '.join(verdict.failed_tests[:5])}" if verdict.failed_tests else ""
            why = why or f"{verdict.reason}{failing}"
    if resolved == 0:
        return result("gold_fails", why)
    if resolved < repeats:
        return result("gold_flaky", f"the gold patch resolved {resolved} of {repeats} times; {why}")
    nothing = grade(instance, NOTHING, provider, log_dir=log_dir)
    if nothing.resolved:
        return result("resolved_without_a_patch", "all deciding tests pass without any patch")
    return result(None)
