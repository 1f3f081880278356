"""``make demo``: run the pipeline's stages, time its stages, and say where to look.

python -m infra.demo
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from protege.cli.main import results_table
from protege.errors import ProtegeError
from protege.files import write_json
from tasks.dvcstages import reproduce, stage_order
from tasks.server import ensure, ui
from tasks.settings import HOME


def run_stages(targets: list[str]) -> dict[str, float]:
    """Bring what ``targets`` need up to date; the wall time in seconds of each stage that had to run. Raises StageFailed."""
    times: dict[str, float] = {}
    for stage in stage_order(targets):
        began = time.monotonic()
        if reproduce(stage) == "done":
            times[stage] = time.monotonic() - began
    return times


def main() -> int:
    began = time.monotonic()
    try:
        address = ui(ensure())
        print(f"demo: Prefect server at {address}; running the stages of dvc.yaml", flush=True)
        times = run_stages(sys.argv[1:])
    except ProtegeError as error:
        print(f"\ndemo: {error}\ndemo: what is finished is kept: `make demo` goes on from there", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    seconds = time.monotonic() - began
    if times:
        write_json(HOME / "logs" / "demo-times.json", {k: round(v, 1) for k, v in times.items()})
        print("\nWall time by stage: " + ", ".join(f"{name} {value:.0f} s" for name, value in times.items()))
    else:
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
