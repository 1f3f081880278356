"""What is wrong with this machine or this project, and the one command that fixes each finding.

Works where half of the packages are missing: this package imports the standard library only at the top, and a check
that cannot import what it needs says so as its finding. ``python -m protege.cli.doctor`` needs nothing installed at all.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from protege.cli.doctor.finding import Finding, Place

__all__ = ["Finding", "Place", "as_json", "as_text", "examine"]

DEADLINE_S = 4.0
"""Seconds for all checks together; one that has not answered by then is a finding."""

Check = Callable[[Place], Iterable[Finding]]


def checks() -> list[tuple[str, Check]]:
    """Name and function of every check, in the order they are shown."""
    from protege.cli.doctor import engines, machine, packages, project, services

    return [
        ("python", packages.python),
        ("virtual environment", packages.virtual_environment),
        ("packages", packages.packages),
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
        ("DVC remote", services.dvc_remote),
        ("params", project.params),
        ("schedules", project.schedules),
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


def _counts(findings: Iterable[Finding]) -> dict[str, int]:
    return {status: sum(f.status == status for f in findings) for status in ("ok", "warn", "fail")}


def as_json(findings: list[Finding]) -> str:
    return json.dumps({**_counts(findings), "findings": [asdict(f) for f in findings]}, indent=1, ensure_ascii=False)


def as_text(findings: list[Finding]) -> str:
    """One line a finding, the command that fixes it below, then the counts."""
    width = max((len(f.name) for f in findings), default=0)
    lines = []
    for f in findings:
        lines.append(f"{f.status:<4}  {f.name:<{width}}  {f.found}")
        if f.fix:
            lines.append(f"{'':<4}  {'':<{width}}  → {f.fix}")
    n = _counts(findings)
    return "\n".join([*lines, "", f"{n['fail']} to fix, {n['warn']} to know, {n['ok']} fine"])
