"""The pre-flight of a suite: what does not grade as it claims to leaves the splits, and is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact

from protege.config import SplitName
from protege.core.instance import Instance
from protege.errors import SandboxError
from protege.files import Store, write_atomic, write_json
from protege.grading.preflight import Checked, Preflight, preflight
from protege.sandbox.bubblewrap import BubblewrapProvider
from protege.sandbox.docker import DockerProvider
from tasks.progress import Progress, say
from tasks.settings import HOME


def quarantine(
    out: Path,
    splits: Mapping[SplitName, list[Instance]],
    provider: DockerProvider | BubblewrapProvider,
    repeats: int,
    workers: int,
) -> dict[str, Any]:
    """Check every instance of ``splits`` and write the files of ``out`` anew without those that fail.

    Returns what belongs into the stage's metrics; nothing with ``repeats`` 0. Finished checks are kept in the
    Store, so that a killed stage goes on where it was.

    Raises:
        SandboxError: infrastructure kept some from being checked.
    """
    if repeats == 0:
        write_json(out / "preflight.json", Preflight().model_dump(mode="json"))
        return {}
    rows = list({row.instance_id: row for items in splits.values() for row in items}.values())
    progress = Progress("instances: pre-flight", len(rows))

    def tell(found: Checked) -> None:
        progress.step(found.instance_id, f"{found.reason}: {found.detail}" if found.reason else "grades as it should")

    store = Store(HOME / "store")
    result = preflight(rows, provider, repeats, HOME / "logs" / "preflight", workers, tell, store)
    if result.failed:
        name, why = next(iter(result.failed.items()))
        raise SandboxError(
            f"{len(result.failed)} of {len(rows)} instances could not be checked, {name} among them: {why}"
        )
    good = set(result.ok)
    for split, items in splits.items():
        kept = [row for row in items if row.instance_id in good]
        write_atomic(out / f"{split}.jsonl", "".join(json.dumps(row.to_row()) + "\n" for row in kept))
    write_json(out / "preflight.json", result.model_dump(mode="json"))
    create_markdown_artifact(page(result), key="instances-preflight", description=result.denominator)
    say("instances", result.denominator)
    return {"quarantined": {c.instance_id: c.reason for c in result.quarantined}, "denominator": result.denominator}


def page(result: Preflight) -> str:
    """What the Prefect UI shows."""
    lines = [f"# Pre-flight\n\n{result.denominator}\n"]
    if result.quarantined:
        lines += ["| instance | reason | gold resolved | detail |", "|---|---|---|---|"]
        lines += [
            f"| {c.instance_id} | {str(c.reason).replace('_', ' ')} | {c.gold_resolved} of {c.gold_runs} | {c.detail} |"
            for c in result.quarantined
        ]
    return "\n".join(lines)
