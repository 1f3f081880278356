from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from prefect.states import Completed
from pydantic import ValidationError

from protege.config import load
from protege.errors import BadInput, BadParams
from tasks.nights import Night, begin, seed_params
from tasks.nights import load as load_night

ROOT = Path(__file__).parents[2]


def test_the_date_is_the_seed_and_the_rest_of_params_stays_as_it_was(in_tmp: Path) -> None:
    before = (ROOT / "profiles/desk.yaml").read_text()
    Path("params.yaml").write_text(before, encoding="utf-8")
    night = begin("2026-11-22", "UTC", fresh=True)
    seed_params(night.seed)
    after = Path("params.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(after)["instances"]["seed"] == 20261122
    differ = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert len(differ) == 1
    seed_params(night.seed)
    assert Path("params.yaml").read_text(encoding="utf-8") == after


def test_a_seed_that_has_no_line_of_its_own_is_said(in_tmp: Path) -> None:
    Path("params.yaml").write_text("instances: {source: desk, seed: 7}\nsft:\n  seed: 3\n", encoding="utf-8")
    with pytest.raises(BadParams, match="line of its own"):
        seed_params(20261122)
    assert "20261122" not in Path("params.yaml").read_text(encoding="utf-8")


def test_a_night_goes_on_from_the_instances_of_the_nights_before_it(in_tmp: Path) -> None:
    Path("params.yaml").write_text((ROOT / "profiles/desk.yaml").read_text(), encoding="utf-8")
    for day in (18, 19, 20, 21):
        night = begin(f"2026-11-{day}", "UTC", fresh=True, window=3)
        if day != 19:  # that one never came to its end
            night.finished = "2026-11-22T01:00:00+00:00"
        night.save()
    night = begin("2026-11-22", "UTC", fresh=True, window=3)
    assert night.earlier == [20261120, 20261121]
    assert begin("2026-11-22", "UTC", fresh=True, window=5).earlier == night.earlier, (
        "a night that goes on keeps its own"
    )
    assert begin("2026-11-23", "UTC", fresh=True, window=1).earlier == []
    assert begin("2026-11-25", "UTC", fresh=True, window=5).earlier == [20261118, 20261120, 20261121]
    assert begin("2026-11-24", "UTC", fresh=True, window=9).earlier == [20261118, 20261120, 20261121]
    seed_params(night.seed, night.earlier)
    found = load("params.yaml").instances
    assert (found.seed, found.earlier) == (20261122, (20261120, 20261121))
    seed_params(20261123, [20261122])
    assert load("params.yaml").instances.earlier == (20261122,)
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    raw["instances"]["earlier"] = [20261120, 20261121]
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")  # one number a line
    seed_params(20261124, [20261122, 20261123])
    found = load("params.yaml").instances
    assert (found.seed, found.earlier) == (20261124, (20261122, 20261123))


def test_without_fresh_instances_params_are_left_alone(in_tmp: Path) -> None:
    assert begin("2026-11-22", "UTC", fresh=False).seed is None
    seed_params(None)  # there is no params.yaml to read


def test_a_night_that_was_cut_off_goes_on_under_its_own_date(in_tmp: Path) -> None:
    first = begin("2026-11-21", "UTC", fresh=True)
    first.outcome("model", "done")
    assert begin(None, "UTC", fresh=True).stages == {"model": "done"}
    first.finished = "2026-11-22T01:00:00+00:00"
    first.save()
    assert begin(None, "UTC", fresh=True).night != "2026-11-21"


def test_a_night_that_was_cut_off_long_ago_does_not(in_tmp: Path) -> None:
    began = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    Night(night="2026-01-01", seed=20260101, began=began).save()
    assert begin(None, "UTC", fresh=True).night != "2026-01-01"


def test_a_wrong_date_is_said(in_tmp: Path) -> None:
    with pytest.raises(BadInput, match="2026-13-01"):
        begin("2026-13-01", "UTC", fresh=True)


def test_a_record_takes_only_what_it_can_give_back(in_tmp: Path) -> None:
    night = begin("2026-11-22", "UTC", fresh=True)
    with pytest.raises(ValidationError):
        night.outcome("model", Completed(data="unchanged"))  # type: ignore[arg-type]
    night.outcome("model", "unchanged")
    assert load_night("2026-11-22") == night


def test_a_record_that_cannot_be_read_is_an_error_and_no_absence(in_tmp: Path) -> None:
    path = begin("2026-11-22", "UTC", fresh=True).folder / "night.json"
    path.write_text('{"night": "2026-11-22", "seed": 1, "began": "", "stages": {"model": {"type": "COMPLETED"}}}')
    for asked, window in (("2026-11-22", 1), (None, 1), ("2026-11-23", 3)):
        with pytest.raises(BadInput, match=str(path)):
            begin(asked, "UTC", fresh=True, window=window)


def test_a_finished_night_is_never_overwritten(in_tmp: Path) -> None:
    for count in range(1, 12):
        night = begin("2026-11-22", "UTC", fresh=True, window=3)
        assert night.night == ("2026-11-22" if count == 1 else f"2026-11-22.{count}")
        assert (night.seed, night.earlier) == (20261122, [])
        night.outcome("model", "done")
        assert begin("2026-11-22", "UTC", fresh=True).night == night.night, "one that is not finished goes on"
        night.finished = "2026-11-22T01:00:00+00:00"
        night.save()
    assert len(list(Path("data/nights").glob("*/night.json"))) == 11
    assert begin("2026-11-23", "UTC", fresh=True, window=3).earlier == [20261122]
