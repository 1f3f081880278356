"""DVC's stages through DVC's own API: their order, one at a time with retries, and what goes to and leaves its cache and remote.

DVC decides and keeps (what has changed, the lock file, cache and locks), in this process; a stage's command is run by
tasks.child. DVC is not made for several threads: all of this belongs into the main thread of one night.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from dvc import exceptions
from dvc.dvcfile import Lockfile
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from dvc.stage import PipelineStage
from dvc.stage import run as dvc_run
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from protege.config import GcPolicy
from protege.errors import BadInput, Boundary, ProtegeError
from tasks.child import StageFailed, run_child
from tasks.failures import slug, worth_retrying
from tasks.progress import tell
from tasks.runs import stage_environment

REMOTE = "nightly"


@contextmanager
def project() -> Iterator[Repo]:
    """The current folder as DVC sees it now. DVC says nothing by itself: its hints are for people who type its commands."""
    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # its progress bars heed it too
    with Repo() as repo:
        _set_aside_half_a_lock_file(repo)
        yield repo


def _set_aside_half_a_lock_file(repo: Repo) -> None:
    """DVC writes dvc.lock in place: a kill at that instant leaves half of one. Its run cache gives back what was done."""
    lock = Path("dvc.lock")
    try:
        Lockfile(repo, str(lock)).load()
    except exceptions.DvcException as error:
        if not lock.is_file():
            raise
        lock.replace("dvc.lock.broken")
        tell(
            f"dvc: dvc.lock could not be read and is now dvc.lock.broken; what was done is in DVC's run cache: {error}"
        )


def stage_order(targets: Sequence[str] = ()) -> list[str]:
    """The stages of dvc.yaml that ``targets`` need (default: all), each after those it needs. Raises BadInput."""
    try:
        with project() as repo:
            graph = repo.index.graph
            named = {stage.addressing: stage for stage in graph if isinstance(stage, PipelineStage)}
            if unknown := sorted(set(targets) - named.keys()):
                raise BadInput(f"dvc.yaml has no stage {', '.join(unknown)}; there are {', '.join(sorted(named))}")
            # a folder's own dvc.yaml runs when it is asked for
            wanted = [named[name] for name in (targets or [name for name in named if ":" not in name])]
            return [stage.addressing for stage in plan_repro(graph, wanted) if isinstance(stage, PipelineStage)]
    except exceptions.DvcException as error:
        raise BadInput(f"DVC does not take dvc.yaml; correct it first: {error}") from error


def commands(stage: Any) -> list[list[str]]:
    """The commands of a stage, each as a list of words: there is no shell between a stage and the night."""
    lines = stage.cmd if isinstance(stage.cmd, list) else stage.cmd.splitlines()
    return [shlex.split(line) for line in lines]


def stage_command(name: str) -> list[str]:
    """The one command of stage ``name`` as a list of words. Raises BadInput."""
    try:
        with project() as repo:
            (command,) = commands(repo.stage.get_target(name))
            return command
    except (exceptions.DvcException, ValueError) as error:
        raise BadInput(f"dvc.yaml has no stage {name!r} with a cmd of one command: {error}") from error


def reproduce(name: str) -> Literal["done", "unchanged"]:
    """``dvc repro --single-item NAME``, the stage's command as a child of this process. Raises StageFailed."""

    def run(stage: Any, dry: bool = False, run_env: dict[str, str] | None = None) -> None:
        env = {**stage_environment(), "DVC_ROOT": stage.repo.root_dir, "DVC_STAGE": stage.addressing}
        for command in commands(stage):
            run_child(name, command, {**env, **(run_env or {})}, tell, cwd=stage.wdir)

    by_shell, dvc_run.cmd_run = dvc_run.cmd_run, run
    try:
        with project() as repo:
            return "done" if repo.reproduce(name, single_item=True) else "unchanged"
    except (exceptions.DvcException, OSError) as error:
        cause: BaseException = error
        while not isinstance(cause, StageFailed | LockError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, StageFailed):
            raise cause from None
        # its lock, a full disk: that may pass
        raise StageFailed(name, type(cause).__name__, str(cause), "sandbox", True) from error
    finally:
        dvc_run.cmd_run = by_shell


@task(name="dvc stage", persist_result=False, cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def stage_task(stage: str, retries: int) -> Any:
    """:func:`reproduce` as a task: its state's result is "done" or "unchanged". Raises StageFailed."""
    try:
        outcome = reproduce(stage)
    except StageFailed as error:
        attempt = int(task_run.run_count or 1)
        create_markdown_artifact(
            _page(error, attempt, retries), key=f"stage-{slug(stage)}", description=f"{stage}, attempt {attempt}"
        )
        raise
    if outcome == "unchanged":
        tell(f"{stage}: unchanged")
        return Completed(name="Cached", message="nothing that it depends on has changed", data=outcome)
    return outcome


def retrying(retries: int, backoff_s: float) -> Any:
    """:func:`stage_task`, tried ``retries`` more times after ``backoff_s``, twice that, … seconds."""
    return stage_task.with_options(
        retries=retries, retry_delay_seconds=exponential_backoff(backoff_s), retry_jitter_factor=0.2
    )


def _page(error: StageFailed, attempt: int, retries: int) -> str:
    again = error.retryable and attempt <= retries
    then = "it is tried again" if again else "the night stops here; the stages before it are done and kept"
    tail = error.log_tail.replace("```", "'''")
    return (
        f"# Stage {error.stage} failed\n\n{error}\n\n- boundary: **{error.boundary}**\n"
        f"- attempt {attempt} of {retries + 1 if error.retryable else attempt}; {then}\n"
        f"- by hand: `dvc repro --single-item {error.stage}`\n\n```\n{tail}\n```\n"
    )


def remote_address(given: str) -> str:
    """Where to push: PROTEGE_REMOTE, else ``given`` (``nightly.remote``); "" for nowhere."""
    return os.environ.get("PROTEGE_REMOTE", given)


def use_remote(address: str) -> None:
    """Make ``address`` the remote of this checkout (in .dvc/config.local, which git ignores). Raises BadInput.

    An S3 server of one's own is named by AWS_ENDPOINT_URL; keys come from AWS's usual variables and files.
    """
    settings = {"url": address}
    if address.startswith("s3://") and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
        settings["endpointurl"] = endpoint
    try:
        with project() as repo, repo.config.edit("local") as config:
            config["remote"][REMOTE] = settings
    except exceptions.DvcException as error:
        raise BadInput(f"nightly.remote: DVC does not take {address!r}: {error}") from error


def transfer(what: Literal["push", "pull"], address: str) -> str:
    """``dvc push`` or ``dvc pull`` with the remote at ``address``; what was done, in a phrase. Raises TransferFailed."""
    use_remote(address)
    try:
        with project() as repo:
            if what == "push":
                return f"{repo.push(remote=REMOTE, jobs=4)} files pushed"
            stats = repo.pull(remote=REMOTE, jobs=4)["stats"]
            return ", ".join(f"{count} {how}" for how, count in stats.items() if count) or "nothing to do"
    except Exception as error:  # each kind of remote has its own
        raise TransferFailed(f"dvc {what} with {address} failed: {type(error).__name__}: {str(error)[:600]}") from error


class TransferFailed(ProtegeError):
    """The remote could not be reached or refused. Nothing is lost: the next night pushes what is missing."""

    boundary: Boundary = "sandbox"
    retryable = True


def add(path: Path) -> None:
    """``dvc add PATH``. Raises NotTracked."""
    try:
        with project() as repo:
            repo.add(str(path))
    except (exceptions.DvcException, OSError) as error:
        raise NotTracked(f"`dvc add {path}` failed: {str(error)[:500]}") from error


class NotTracked(ProtegeError):
    """DVC did not take a path. It stands where it should, and the next night tries again."""

    boundary: Boundary = "sandbox"
    retryable = True


def collect_garbage(policy: GcPolicy, pushed: bool) -> str:
    """Shrink DVC's cache by ``policy`` (see NightlyParams) to what the workspace uses; what was done, in a phrase.

    Not DVC's own ``--not-in-remote``: that drops what the workspace uses as well, as soon as the remote has it.
    """
    if policy == "never":
        return "kept"
    if policy == "pushed" and not pushed:
        return "kept: nightly.gc is 'pushed', and this night pushed nothing"
    with project() as repo:
        cache = Path(repo.cache.local.path)
        before = sum(path.is_file() for path in cache.rglob("*"))
        try:
            repo.gc(workspace=True, force=True)
        except exceptions.DvcException as error:
            return f"failed: {str(error)[:300]}"
        return f"{before - sum(path.is_file() for path in cache.rglob('*'))} of {before} files removed"
