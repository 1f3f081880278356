"""Several trainings of one recipe: each seed's own figures, and intervals that hold the distance between trainings."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from protege.config import ReportParams
from protege.errors import BadInput
from protege.report.seeds import write_seeds
from protege.report.stats import bootstrap_mean, crossed_bootstrap
from tests.report.test_report import rollout

PARAMS = ReportParams()
NAMES = [f"pkg__{number:02}" for number in range(20)]


def write(folder: Path, seed: int, system: str, resolved: list[bool | None], **changes: object) -> None:
    for name, one in zip(NAMES, resolved, strict=False):
        rollout(name, resolved=one, **changes).save(folder / str(seed) / "evaluation" / system / "trajectories")


def first(count: int) -> list[bool | None]:
    return [number < count for number in range(len(NAMES))]


@pytest.fixture
def trainings(tmp_path: Path) -> Path:
    for seed, sft, rl in ((3, 8, 10), (5, 12, 16), (9, 4, 7)):
        write(tmp_path, seed, "sft-oracle", first(sft), asked=2, steps=4)
        write(tmp_path, seed, "rl-oracle", first(rl), asked=1, steps=3)
    return tmp_path


def test_the_table_has_each_training_and_their_mean(trainings: Path) -> None:
    text = write_seeds(trainings, [3, 5, 9], PARAMS, {"commit": "abc"})
    made = json.loads((trainings / "seeds.json").read_text())
    sft, rl = made["pass_at_1"]["sft-oracle"], made["pass_at_1"]["rl-oracle"]
    assert sft["each"] == [0.4, 0.6, 0.2] and sft["mean"] == 0.4 and round(sft["deviation"], 6) == 0.2
    assert rl["mean"] == 0.55 and rl["instances"] == 20
    gain = made["differences"]["sft → rl + oracle"]
    assert [round(each, 6) for each in gain["each"]] == [0.1, 0.2, 0.15] and gain["low"] >= 0
    row = next(line for line in text.splitlines() if line.startswith("| sft + oracle (has seen the gold patch)"))
    assert "| 40.0% |" in row and "40.0, 60.0, 20.0" in row and "| 20.0 |" in row and "| 60 (20) | 0 of 60 |" in row
    assert "+15.0" in text and "+10.0, +20.0, +15.0" in text and "has seen the gold patch" in text and "abc" in text
    assert (trainings / "seeds.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_seeds_asked_for_count(trainings: Path) -> None:
    write_seeds(trainings, [9, 3], PARAMS, {})
    made = json.loads((trainings / "seeds.json").read_text())
    assert made["seeds"] == [9, 3] and made["pass_at_1"]["sft-oracle"]["each"] == [0.2, 0.4]


def test_what_infrastructure_lost_in_one_training_is_outside_and_counted(trainings: Path) -> None:
    write(trainings, 3, "sft-oracle", [None], asked=2)
    text = write_seeds(trainings, [3, 5, 9], PARAMS, {})
    made = json.loads((trainings / "seeds.json").read_text())
    assert made["pass_at_1"]["sft-oracle"]["instances"] == 19 and "| 59 (19) | 1 of 60 |" in text


def test_trainings_that_cannot_be_compared_are_refused(trainings: Path) -> None:
    with pytest.raises(BadInput, match="7/evaluation; run `make seeds`"):
        write_seeds(trainings, [3, 7], PARAMS, {})
    rollout("other", resolved=True).save(trainings / "9/evaluation/sft-oracle/trajectories")
    with pytest.raises(BadInput, match=r"3 and 9 do not have the same instances \(other\)"):
        write_seeds(trainings, [3, 9], PARAMS, {})
    write(trainings, 5, "base-none", first(0))
    with pytest.raises(BadInput, match="3 and 5 do not have the same systems"):
        write_seeds(trainings, [3, 5], PARAMS, {})


def test_one_training_has_the_interval_of_its_instances(trainings: Path) -> None:
    row = [float(number % 3 == 0) for number in range(40)]
    assert crossed_bootstrap([row]) == pytest.approx(bootstrap_mean(row), abs=0.03)
    text = write_seeds(trainings, [5], PARAMS, {})
    assert "| 60.0% |" in text and "| – |" in text


def test_the_interval_covers_what_trainings_and_instances_vary() -> None:
    """Trainings 15 points apart, bugs 30: the mean of all possible ones lies in nine of ten intervals or more.

    An interval over bugs alone, of the trainings' mean, holds it less often.
    """
    rng = random.Random(1)
    crossed = alone = 0
    for _ in range(150):
        training = [rng.gauss(0, 0.15) for _ in range(6)]
        bug = [rng.gauss(0, 0.3) for _ in range(40)]
        table = [[0.5 + t + b + rng.gauss(0, 0.2) for b in bug] for t in training]
        low, high = crossed_bootstrap(table, samples=400)
        crossed += low <= 0.5 <= high
        low, high = bootstrap_mean([sum(column) / 6 for column in zip(*table, strict=True)], samples=400)
        alone += low <= 0.5 <= high
    assert crossed >= 0.88 * 150 > alone
