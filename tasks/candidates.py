"""One candidate bug proved or dropped by its tests, as a retryable, cached Prefect task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.states import Completed
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import quote

from protege.config import InstancesParams, SandboxParams
from protege.desk.modifiers import Candidate
from protege.desk.verify import Dropped, Gold, Prepared, Verified, gold, verify
from protege.errors import ProtegeError
from protege.files import Store, digest
from protege.identity import code_of
from protege.sandbox.bubblewrap import BubblewrapProvider
from protege.sandbox.docker import DockerProvider
from tasks.failures import report_failure, worth_retrying
from tasks.progress import Progress
from tasks.settings import HOME

RETRIES = 2
_DECIDES_NO_TEST_RUN = {"source", "seed", "earlier", "splits", "tries_per_instance", "preflight"}


@dataclass(frozen=True)
class PackageBench:
    """A package, and the sandboxes that its tests are run in; ``gold`` is what they do without a bug, once known."""

    prepared: Prepared
    provider: DockerProvider | BubblewrapProvider
    params: InstancesParams
    sandbox: SandboxParams
    gold: Gold | None = None
    store: Store = field(default_factory=lambda: Store(HOME / "store"))

    def key(self, *what: object) -> str:
        """What decides a test run of this package; not the seed and the counts, which only choose among candidates."""
        return digest(
            *what,
            self.prepared.package.model_dump(mode="json"),
            self.provider.image_digest(self.prepared.pristine),
            {k: v for k, v in self.params.deciding().items() if k not in _DECIDES_NO_TEST_RUN},
            self.sandbox.deciding(),
            self.provider.backend,
            code_of("protege.desk.verify", "protege.desk.modifiers", type(self.provider).__module__),
        )

    def candidate_key(self, candidate: Candidate) -> str:
        assert self.gold is not None
        return self.key("candidate", candidate.digest, self.gold.passed)


@task(
    name="baseline",
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=worth_retrying,
    persist_result=False,
    cache_policy=NO_CACHE,
)
def baseline_task(bench: PackageBench) -> Any:
    """The value is the package's Gold."""
    key = bench.key("baseline")
    if (found := bench.store.get("baseline", key)) is not None:
        return Completed(name="Cached", data=Gold.model_validate(found))
    name = bench.prepared.package.name
    try:
        made = gold(bench.prepared, bench.provider, bench.params)
    except ProtegeError as error:
        report_failure(f"{name}-baseline", error, RETRIES)
        raise
    bench.store.put("baseline", key, made.model_dump(mode="json"))
    return made


def baselines(benches: Sequence[PackageBench], progress: Progress) -> dict[str, PackageBench]:
    """The workshops by package, each with its package's tests run without a bug. Raises what a run raised."""
    futures = {
        baseline_task.with_options(task_run_name=bench.prepared.package.name).submit(quote(bench)): bench  # type: ignore[call-overload]
        for bench in benches
    }
    known = {}
    for future in as_completed(list(futures)):
        bench = futures[future]
        name = bench.prepared.package.name
        found: Gold = future.result()
        known[name] = replace(bench, gold=found)
        progress.step(name, f"{len(found.passed)} tests pass without a bug ({found.seconds:.1f} s)")
    return {bench.prepared.package.name: known[bench.prepared.package.name] for bench in benches}


@task(
    name="candidate",
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=worth_retrying,
    persist_result=False,
    cache_policy=NO_CACHE,
)
def candidate_task(candidate: Candidate, bench: PackageBench) -> Any:
    """The value is Verified or Dropped."""
    assert bench.gold is not None, "baselines() first"
    key = bench.candidate_key(candidate)
    if (found := bench.store.get("candidate", key)) is not None:
        return Completed(name="Cached", data=_read(found))
    try:
        result = verify(candidate, bench.prepared, bench.gold, bench.provider, bench.params)
    except ProtegeError as error:
        report_failure(candidate.candidate_id, error, RETRIES)
        raise
    bench.store.put("candidate", key, {"proved": isinstance(result, Verified), **result.model_dump(mode="json")})
    return result


def _read(found: dict[str, Any]) -> Verified | Dropped:
    proved = found.pop("proved")
    return Verified.model_validate(found) if proved else Dropped.model_validate(found)


def prove(
    work: Sequence[tuple[Candidate, PackageBench]], progress: Progress
) -> tuple[list[Verified | Dropped], list[str]]:
    """Every candidate on the flow's task runner: the results in the order given, and the ids that infrastructure kept out.

    Bad input and defects of ours end the stage.
    """
    futures = {
        candidate_task.with_options(task_run_name=c.candidate_id).submit(quote(c), quote(bench)): index  # type: ignore[call-overload]
        for index, (c, bench) in enumerate(work)
    }
    results: dict[int, Verified | Dropped] = {}
    failed = []
    for future in as_completed(list(futures)):
        index = futures[future]
        name = work[index][0].candidate_id
        result = future.result(raise_on_failure=False)
        if isinstance(result, (Verified, Dropped)):
            results[index] = result
            what = (
                f"proved by {len(result.fail_to_pass)} tests"
                if isinstance(result, Verified)
                else f"dropped: {result.reason}"
            )
            progress.step(name, what + (" (cached)" if future.state.name == "Cached" else ""))
        elif isinstance(result, ProtegeError) and result.boundary != "input":
            failed.append(name)
            progress.step(name, f"infrastructure failure at the {result.boundary} boundary: {str(result)[:120]}")
        elif isinstance(result, BaseException):
            raise result
        else:
            raise TypeError(f"{name}: the task returned {type(result).__name__}")
    return [results[index] for index in sorted(results)], failed
