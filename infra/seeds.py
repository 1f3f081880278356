"""``make seeds``: the pipeline up to its evaluation once for each seed, then one table over all trainings.

python -m infra.seeds 1 2 3
python -m infra.seeds --first-stage rl 1 2 3

A seed is that of SFT, RL and the evaluation, or of those from ``--first-stage`` on: then all start from the SFT model of
params.yaml. Instances and trajectories are the same for all. DVC keeps every training, so that a run that was cut off goes on
where it was. params.yaml and what belongs to it are as before at the end.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.report import commit
from protege.config import load
from protege.errors import ProtegeError
from protege.files import write_atomic
from protege.report.seeds import write_seeds
from tasks.child import StageFailed
from tasks.dvcstages import project, reproduce, stage_order
from tasks.outs import fresh_folder
from tasks.paramsfile import PARAMS, set_values
from tasks.server import ensure
from tasks.settings import HOME

OUT = Path("data/seeds")
SEEDED = ("sft", "rl", "evaluate")
LOCK = Path("dvc.lock")
BEFORE = HOME / "before-seeds"


@contextmanager
def as_before() -> Iterator[None]:
    """Put params.yaml, dvc.lock and the outs of that lock back at the end; after a kill, the next run does."""
    if BEFORE.is_dir():
        _put_back()
    else:
        with fresh_folder(BEFORE) as folder:
            for path in (PARAMS, LOCK):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
    try:
        yield
    finally:
        _put_back()
        if (BEFORE / LOCK.name).is_file():
            with project() as repo:
                repo.checkout()
        shutil.rmtree(BEFORE)


def _put_back() -> None:
    for path in BEFORE.iterdir():
        write_atomic(Path(path.name), path.read_bytes())


def train(seed: int, seeded: Sequence[str]) -> None:
    """One training with its evaluation, kept as ``data/seeds/<seed>``. Raises StageFailed."""
    set_values({(section, "seed"): seed for section in seeded})
    for stage in stage_order(["evaluate"]):
        reproduce(stage)
    with fresh_folder(OUT / str(seed)) as folder:
        shutil.copytree("data/evaluation", folder / "evaluation")
        shutil.copyfile(PARAMS, folder / PARAMS.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first-stage", choices=SEEDED, default=SEEDED[0])
    parser.add_argument("seeds", type=int, nargs="+")
    asked = parser.parse_args()
    seeds, seeded = list(dict.fromkeys(asked.seeds)), SEEDED[SEEDED.index(asked.first_stage) :]
    try:
        ensure()
        with as_before():
            for done, seed in enumerate(seeds, 1):
                print(f"seeds: {done}/{len(seeds)}, seed {seed}", flush=True)
                train(seed, seeded)
        params = load()
        about = {"commit": commit(), "profile": params.profile, "seeds are of": ", ".join(seeded)}
        print(write_seeds(OUT, seeds, params.report, about))
    except StageFailed as error:
        print(f"\nseeds: seed {seed} stopped: {error}", file=sys.stderr)
        print("seeds: what is finished is kept: the same command goes on from there", file=sys.stderr)
        return 1
    except ProtegeError as error:
        print(f"seeds: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nseeds: interrupted; the same command goes on from there", file=sys.stderr)
        return 130
    print(f"seeds: {OUT / 'seeds.md'}, {OUT / 'seeds.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
