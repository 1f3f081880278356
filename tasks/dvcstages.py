"""DVC's stages, run through DVC: their order, one at a time with retries, and what goes to and leaves its cache and remote."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from protege import errors
from protege.config import GcPolicy
from protege.errors import BadInput, Boundary, ProtegeError
from tasks.failures import slug, worth_retrying
from tasks.lineage import dying_with_parent, end, identity
from tasks.progress import tell
from tasks.runs import stage_environment

TAIL_LINES = 60
REMOTE = "nightly"
_EDGE = re.compile(r'^\s*"(?P<needed>[^"]+)"\s*->\s*"(?P<by>[^"]+)"')
_NODE = re.compile(r'^\s*"(?P<name>[^"]+)";?\s*$')
_EXIT = re.compile(r"failed to run: .* exited with (-?\d+)")
_SAID = re.compile(r"^[\w-]+: (?P<kind>[A-Z]\w+): ")


class StageFailed(ProtegeError):
    """A DVC stage did not end well. The message ends with what it said; ``boundary`` is that of the error it named."""

    def __init__(self, stage: str, status: int, output: str) -> None:
        self.stage, self.log_tail = stage, output
        kind = next((m["kind"] for line in reversed(output.splitlines()) if (m := _SAID.match(line))), "")
        named = getattr(errors, kind, None)
        known = isinstance(named, type) and issubclass(named, ProtegeError)
        exits = _EXIT.findall(output)
        code = int(exits[-1]) if exits else status
        self.boundary: Boundary = named.boundary if known else "sandbox"  # type: ignore[union-attr]
        # 1 is bad input, or a defect of ours; whatever else ended it (a signal, a full disk, DVC's lock) may pass
        self.retryable = code != 1 or "Unable to acquire" in output
        last = next((line for line in reversed(output.splitlines()) if _SAID.match(line)), output.strip()[-300:])
        super().__init__(f"stage {stage} ended with status {code}: {last}")


def dvc(*arguments: str, tell: Callable[[str], None] = lambda _: None) -> tuple[int, str]:
    """Run ``dvc ARGUMENTS`` in the current folder: its exit status and the end of its output, each line given to ``tell``.

    It ends when the thread that calls this ends, however that is.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        env=stage_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        preexec_fn=dying_with_parent(signal.SIGTERM),
    )
    assert process.stdout is not None
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        for line in process.stdout:
            tail.append(line)
            tell(line.rstrip("\n"))
        status = process.wait()
    except BaseException:
        end(identity(process.pid))
        process.wait()
        raise
    return status, "".join(tail)


def stage_order(targets: list[str] | None = None) -> list[str]:
    """The stages of dvc.yaml that ``targets`` need (default: all), each after those it needs. Raises BadInput."""
    status, output = dvc("dag", "--dot")
    if status:
        raise BadInput(f"`dvc dag` failed; mend dvc.yaml first: {output.strip()[-1000:]}")
    needs: dict[str, set[str]] = {}
    for line in output.splitlines():
        if edge := _EDGE.match(line):
            needs.setdefault(edge["by"], set()).add(edge["needed"])
            needs.setdefault(edge["needed"], set())
        elif node := _NODE.match(line):
            needs.setdefault(node["name"], set())
    needs = {name: others for name, others in needs.items() if not name.endswith(".dvc")}
    if unknown := sorted(set(targets or ()) - needs.keys()):
        raise BadInput(f"dvc.yaml has no stage {', '.join(unknown)}; there are {', '.join(sorted(needs))}")
    try:
        order = [name for name in TopologicalSorter(needs).static_order() if name in needs]
    except CycleError as error:
        raise BadInput(f"dvc.yaml goes round in circles: {' -> '.join(error.args[1])}") from error
    wanted: set[str] = set()
    todo = list(
        targets or (name for name in order if ":" not in name)
    )  # a folder's own dvc.yaml runs when it is asked for
    while todo:
        if (name := todo.pop()) in needs and name not in wanted:
            wanted.add(name)
            todo += needs[name]
    return [name for name in order if name in wanted]


def stage_command(stage: str) -> list[str]:
    """The command of a stage of dvc.yaml as a list of words. Raises BadInput."""
    try:
        return shlex.split(yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["cmd"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"dvc.yaml has no stage {stage!r} with a cmd of one command: {error}") from error


@task(name="dvc stage", persist_result=False, cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def stage_task(stage: str, retries: int) -> Any:
    """``dvc repro --single-item`` of ``stage``; the value is "done" or "unchanged". Raises StageFailed."""
    status, output = dvc("repro", "--single-item", stage, tell=tell)
    if status:
        error = StageFailed(stage, status, output)
        attempt = int(task_run.run_count or 1)
        create_markdown_artifact(
            _page(error, attempt, retries), key=f"stage-{slug(stage)}", description=f"{stage}, attempt {attempt}"
        )
        raise error
    if "didn't change, skipping" in output or "Data and pipelines are up to date" in output:
        return Completed(name="Cached", message="nothing that it depends on has changed", data="unchanged")
    return "done"


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
    for key, value in settings.items():
        status, output = dvc("config", "--local", f"remote.{REMOTE}.{key}", value)
        if status:
            raise BadInput(f"nightly.remote: DVC does not take {address!r}: {output.strip()[-500:]}")


def transfer(what: str, address: str) -> str:
    """``dvc push`` or ``dvc pull`` with the remote at ``address``; DVC's last line. Raises TransferFailed."""
    use_remote(address)
    status, output = dvc(what, "--remote", REMOTE, "--jobs", "4")
    lines = [line for line in output.splitlines() if line.strip()]
    if status:
        raise TransferFailed(f"dvc {what} with {address} failed: {' '.join(lines[-3:])[-600:]}")
    return lines[-1] if lines else "nothing to do"


class TransferFailed(ProtegeError):
    """The remote could not be reached or refused. Nothing is lost: the next night pushes what is missing."""

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
    status, output = dvc("gc", "--workspace", "--force")
    lines = [line for line in output.splitlines() if line.strip()]
    if status:
        return f"failed: {' '.join(lines[-2:])[-300:]}"
    return lines[-1] if lines else "nothing to remove"
