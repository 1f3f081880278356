"""What a night leaves smaller: images over their budget, old logs, finished units of work that nobody asked for lately."""

from __future__ import annotations

import time
from pathlib import Path

from protege.config import SandboxParams
from protege.datasets.load import load_instances
from protege.errors import ProtegeError
from protege.sandbox.budget import GB, prune
from protege.sandbox.images import docker_client
from tasks.settings import HOME

OLD = ("store", "logs")
"""Folders of HOME whose files are removed by age: all of them cost a recomputation at most."""


def prune_images(params: SandboxParams, instances: Path = Path("data/instances")) -> str:
    """Remove our images beyond ``sandbox.images_gb``, those of the current suite kept; what was done, in a phrase."""
    if params.images_gb <= 0 or params.backend == "bubblewrap":
        return "not asked for"
    try:
        client = docker_client(timeout=20)
    except ProtegeError:
        return "no engine answers"
    keep = {row.image for path in sorted(instances.glob("*.jsonl")) for row in load_instances(path)}
    removed = prune(client, params.images_gb * GB, keep)
    return f"{len(removed)} removed"


def prune_files(days: float, home: Path = HOME) -> str:
    """Remove the files of OLD that were not written for ``days`` (0: none); how many, in a phrase."""
    if days <= 0:
        return "not asked for"
    before, removed = time.time() - days * 86_400, 0
    for folder in OLD:
        for path in (home / folder).rglob("*"):
            if path.is_file() and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
                removed += 1
    return f"{removed} removed"
