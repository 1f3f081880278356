"""What is wrong with this machine or this project, and the one command that mends each finding.

Works where half of the packages are missing: this package imports the standard library only at the top, and a check
that cannot import what it needs says so as its finding. ``python -m protege.cli.doctor`` needs nothing installed at all.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from protege.cli.doctor.finding import Finding, Place

__all__ = ["Finding", "Place", "as_json", "as_text", "examine"]

DEADLINE_S = 4.0
"""Seconds for all checks together; one that has not answered by then is a finding."""

Check = Callable[[Place], Iterable[Finding]]


def checks() -> list[tuple[str, Check]]:
    """Name and function of every check, in the order they are shown."""
    from protege.cli.doctor import engines, machine, project, services, versions

    return [
        ("python", versions.python),
        ("virtual environment", versions.virtual_environment),
        ("packages", versions.packages),
        ("versions together", versions.together),
        ("cores", machine.cores),
        ("bf16", machine.instructions),
        ("memory", machine.memory),
        ("disk", machine.disk),
        ("programs", machine.programs),
        ("cache", machine.cache),
        ("GPU", machine.gpu),
        ("Docker", engines.docker),
        ("bubblewrap", engines.bubblewrap),
        ("ports", services.ports),
        ("Prefect server", services.prefect_server),
        ("Prefect database", services.prefect_database),
        ("DVC remote", services.dvc_remote),
        ("params", project.params),
        ("model", project.model),
        ("API", project.api),
    ]


def examine(
    root: Path | str = ".", env: Mapping[str, str] | None = None, deadline_s: float = DEADLINE_S
) -> list[Finding]:
    """Every check of ``root``, side by side. Never raises and writes nothing but a file it removes at once."""
    place = Place(Path(root), dict(os.environ if env is None else env))
    listed = checks()
    end = time.monotonic() + deadline_s
    # Once and before the threads: threads that import the same half-broken packages together blame the wrong one.
    _ = place.params
    found: dict[str, list[Finding]] = {}

    def run(name: str, check: Check) -> None:
        try:
            found[name] = list(check(place))
        except ImportError as error:
            missing = error.name or str(error)
            found[name] = [Finding(name, "fail", f"cannot be checked: package {missing} is missing", "make setup")]
        except Exception as error:  # one check that breaks must not hide the others
            found[name] = [Finding(name, "warn", f"could not be checked: {type(error).__name__}: {error}")]

    # Daemon threads, not a pool: a check that hangs (a dead engine, a network file system) must not keep us from ending.
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in listed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    late = f"no answer within {deadline_s:g} s; the machine may be busy"
    return [
        finding for name, _ in listed for finding in found.get(name, [Finding(name, "warn", late, "protege doctor")])
    ]


def as_json(findings: Iterable[Finding]) -> str:
    rows = [finding.as_dict() for finding in findings]
    counts: dict[str, Any] = {s: sum(row["status"] == s for row in rows) for s in ("ok", "warn", "fail")}
    return json.dumps({**counts, "findings": rows}, indent=1, ensure_ascii=False)


def as_text(findings: Iterable[Finding]) -> str:
    """One line a finding, the command that mends it below, then the counts."""
    rows = list(findings)
    width = max((len(row.name) for row in rows), default=0)
    lines = []
    for row in rows:
        lines.append(f"{row.status:<4}  {row.name:<{width}}  {row.found}")
        if row.fix:
            lines.append(f"{'':<4}  {'':<{width}}  → {row.fix}")
    counts = {status: sum(row.status == status for row in rows) for status in ("fail", "warn", "ok")}
    lines += ["", f"{counts['fail']} to mend, {counts['warn']} to know, {counts['ok']} fine"]
    return "\n".join(lines)
