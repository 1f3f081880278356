"""``make demo``: run the pipeline through DVC, time its stages, and say where to look.

python -m infra.demo
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from protege.cli.main import results_table
from protege.errors import ProtegeError
from protege.files import write_json
from tasks.server import ensure, ui
from tasks.settings import HOME

RUNNING = re.compile(r"^Running stage '([\w@-]+)'")
UP_TO_DATE = "Data and pipelines are up to date."


def reproduce(command: list[str]) -> tuple[int, dict[str, float], bool]:
    """Run ``dvc repro``, its output shown as it comes.

    Returns its exit status, the wall time in seconds of each stage that ran, and whether nothing had changed.
    """
    times: dict[str, float] = {}
    stage, began, unchanged = "", time.monotonic(), False
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            unchanged = unchanged or UP_TO_DATE in line
            if match := RUNNING.match(line):
                if stage:
                    times[stage] = time.monotonic() - began
                stage, began = match.group(1), time.monotonic()
    except KeyboardInterrupt:
        process.wait()
        return 130, times, False
    if stage:
        times[stage] = time.monotonic() - began
    return process.wait(), times, unchanged


def main() -> int:
    began = time.monotonic()
    try:
        address = ui(ensure())
    except ProtegeError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(f"demo: Prefect server at {address}; running dvc repro", flush=True)
    status, times, unchanged = reproduce([sys.executable, "-m", "dvc", "repro", *sys.argv[1:]])
    if status:
        print(
            "\ndemo: the pipeline stopped (the reason stands above). What is finished is kept: "
            "`make demo` goes on from there.",
            file=sys.stderr,
        )
        return 1
    seconds = time.monotonic() - began
    if times:
        write_json(HOME / "logs" / "demo-times.json", {k: round(v, 1) for k, v in times.items()})
        print("\nWall time by stage: " + ", ".join(f"{name} {value:.0f} s" for name, value in times.items()))
    if unchanged or not times:
        print(f"\ndemo: nothing changed since the last run, so nothing was done ({seconds:.0f} s)")
    print()
    print(results_table())
    page = Path("data/report/index.html").absolute()
    print("\nWhere to look:")
    print(f"  report page       {os.path.relpath(page)}  ({page.as_uri()})")
    print(f"  Prefect UI        {address}")
    print("  metrics           .venv/bin/dvc metrics show")
    print("\n`make down` stops what runs in the background; `make clean` removes what was generated.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
