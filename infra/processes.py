"""Ends what a killed or forgotten stage left: its process, its model server, its sandboxes (``make down``).

python -m infra.processes
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

from protege.policy.processes import reap_orphans
from tasks.settings import HOME


def running_stages(run_dir: Path) -> dict[str, int]:
    """Stage -> pid of every stage that holds its lock now (tasks.stage.only_run)."""
    found = {}
    for path in sorted(run_dir.glob("stage-*.lock")):
        with path.open("r+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid, _, _ = handle.read().strip().partition(" ")
                if pid.isdigit():
                    found[path.stem.removeprefix("stage-")] = int(pid)
    return found


def end_stages(run_dir: Path, patience_s: float = 20.0) -> list[str]:
    """SIGINT (so that sandboxes are closed), then SIGKILL; the stages that were ended."""
    ended = []
    for stage, pid in running_stages(run_dir).items():
        for sig, patience in ((signal.SIGINT, patience_s), (signal.SIGKILL, 5.0)):
            try:
                os.kill(pid, sig)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + patience
            while stage in running_stages(run_dir) and time.monotonic() < deadline:
                time.sleep(0.2)
            if stage not in running_stages(run_dir):
                break
        ended.append(stage)
    return ended


def remove_sandboxes() -> int:
    """Remove this machine's containers whose owner is gone. 0 where no engine answers."""
    from protege.errors import SandboxError
    from protege.sandbox import images

    try:
        return images.reap_orphans(images.docker_client(timeout=20))
    except SandboxError:
        return 0


def main() -> None:
    run_dir = HOME / "run"
    if stages := end_stages(run_dir):
        print(f"down: ended the stage {', '.join(stages)}")
    if servers := reap_orphans(run_dir, everything=True):
        print(f"down: ended {len(servers)} model server(s)")
    if boxes := remove_sandboxes():
        print(f"down: removed {boxes} sandbox(es)")


if __name__ == "__main__":
    main()
