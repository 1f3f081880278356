"""What is retried, and the page that a failed task run shows in the Prefect UI."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.runtime import task_run

from protege.errors import ProtegeError

PATCH_CHARS = 6000
"""So much of a patch stands on a failure's page; the whole one is in the trajectory."""


def worth_retrying(task: Any, run: Any, state: Any) -> bool:
    """Prefect's retry condition: only failures of infrastructure that say a retry can help."""
    try:
        state.result()
    except ProtegeError as error:
        return error.retryable
    except Exception:
        return False
    return False


def slug(*parts: str) -> str:
    """An artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


@dataclass(frozen=True)
class Circumstances:
    """What an attempt was at when it failed. ``patch`` is empty where the rollout did not end."""

    instance_id: str
    image_digest: str
    patch: str


def failure_markdown(
    unit: str, error: ProtegeError, attempt: int, retries: int, at: Circumstances | None = None
) -> str:
    """What happened, at which boundary, what comes next, how to see it again, and the ends of log and patch."""
    tries = retries + 1 if error.retryable else attempt
    then = "it is tried again" if attempt < tries else "it is masked and counted apart"
    if error.boundary == "input":
        then = "the stage stops: only a person can mend it"
    tail = str(getattr(error, "log_tail", "") or error.__cause__ or "")[-3000:]
    lines = [
        f"# {unit}: {type(error).__name__}",
        "",
        str(error),
        "",
        f"- boundary: **{error.boundary}**",
        f"- attempt {attempt} of {tries}; {then}",
    ]
    if at:
        lines += [
            f"- instance `{at.instance_id}` in image `{at.image_digest}`",
            f"- alone, in a fresh sandbox, when the stage has ended: `protege inspect {unit} --replay`",
        ]
    if tail:
        lines += ["", "End of the log:", "", _fenced(tail)]
    if at and at.patch:
        lines += ["", "The patch to be graded:", "", _fenced(at.patch[:PATCH_CHARS], "diff")]
    return "\n".join(lines) + "\n"


def _fenced(text: str, language: str = "") -> str:
    return f"```{language}\n" + text.replace("```", "'''") + "\n```"


def report_failure(unit: str, error: ProtegeError, retries: int, at: Circumstances | None = None) -> None:
    """Publish the failure as a markdown artifact of the running task."""
    attempt = int(task_run.run_count or 1)
    create_markdown_artifact(
        failure_markdown(unit, error, attempt, retries, at),
        key=f"failure-{slug(unit)}",
        description=f"{error.boundary}: {type(error).__name__}, attempt {attempt}",
    )
