"""Process groups on Linux: who is in one, how to end it for good, and orphans of a killed parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name may hold spaces and parentheses: fields are counted from the last ")".
    return text[text.rindex(")") + 2 :].split()


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of ``pid``, or None when it is gone; tells a reused pid from the original."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def group_members(pgid: int) -> list[int]:
    """The live (not zombie) processes of the process group or session ``pgid``."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            if fields[0] != "Z" and pgid in (int(fields[2]), int(fields[3])):
                members.append(int(entry.name))
    return members


def kill_group(pgid: int, grace_s: float = 5.0) -> None:
    """SIGTERM to every process of the group or session, SIGKILL to what is left after ``grace_s`` seconds."""
    for sig, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        for pid in group_members(pgid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)
        while group_members(pgid) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not group_members(pgid):
            return


def reap_orphans(run_dir: Path | str, *, everything: bool = False) -> list[int]:
    """End the servers recorded in ``run_dir`` whose owner is gone; with ``everything``, all of them (``make down``).

    Returns the process-group ids that were ended. A pid file whose process is gone is removed.
    """
    ended = []
    for path in sorted(Path(run_dir).glob("server-*.json")):
        try:
            record = json.loads(path.read_text())
            pid, started = int(record["pid"]), record["started"]
            owner, owner_started = int(record["owner"]), record["owner_started"]
        except (FileNotFoundError, json.JSONDecodeError, KeyError, ValueError):
            continue
        if not everything and start_time(owner) is not None and start_time(owner) == owner_started:
            continue
        leader = start_time(pid)
        # A live leader of another age is a stranger that got the number; a group cannot outlive its number's reuse.
        if (leader is None or leader == started) and group_members(pid):
            kill_group(pid)
            ended.append(pid)
        path.unlink(missing_ok=True)
    return ended
