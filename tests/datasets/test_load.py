from __future__ import annotations

import json
from pathlib import Path

import pytest

from protege.datasets.load import fetch_rows, load_instances
from protege.errors import BadInput, BadRow

SAMPLE = Path(__file__).parents[1] / "data" / "swebench_rows_sample.jsonl"
ROWS = [json.loads(line) for line in SAMPLE.read_text().splitlines()]


def test_official_rows_load_from_every_kind_of_file(tmp_path: Path):
    import pandas as pd

    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "b.json").write_text(json.dumps({row["instance_id"]: row for row in ROWS}))
    pd.DataFrame(ROWS).to_parquet(tmp_path / "c.parquet")
    expected = load_instances(SAMPLE)
    assert [i.instance_id for i in expected] == ["pytest-dev__pytest-7432", "sympy__sympy-13480"]
    assert expected[0].hints_text.startswith("Can I look")  # type: ignore[attr-defined]
    for name in ("a.json", "b.json", "c.parquet"):
        assert load_instances(tmp_path / name) == expected


def test_a_row_survives_the_round_trip():
    assert load_instances(SAMPLE)[1].to_row() == {**ROWS[1]}


def test_a_twin_is_named(tmp_path: Path):
    path = tmp_path / "twice.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (*ROWS, ROWS[0])))
    with pytest.raises(BadRow, match=r"twice\.jsonl, row 3: .*already that of row 1"):
        load_instances(path)


@pytest.mark.parametrize("line", ["{", "[]", json.dumps({**ROWS[0], "patch": None})])
def test_a_bad_row_is_named(tmp_path: Path, line: str):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROWS[1]) + "\n" + line + "\n")
    with pytest.raises(BadRow, match=r"bad\.jsonl, row 2"):
        load_instances(path)


def test_split_keeps_its_rows(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROWS[0], "split": "sft"}) + "\n" + json.dumps({**ROWS[1], "split": "eval"}) + "\n")
    assert [i.instance_id for i in load_instances(path, "eval")] == [ROWS[1]["instance_id"]]


def test_a_missing_file_and_a_strange_source_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="does not exist"):
        load_instances(tmp_path / "gone.jsonl")
    with pytest.raises(BadInput, match="protege rows"):
        load_instances("notes.txt")


def test_a_dataset_of_the_hub_becomes_a_file_once(in_tmp: Path):
    """Offline the hub's library reads a folder of that name, with its own reader."""
    (in_tmp / "owner/rows").mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (in_tmp / "owner/rows/test.jsonl").write_text(text, encoding="utf-8")
    assert fetch_rows("owner/rows", "out/rows.jsonl") == len(ROWS)
    assert [i.instance_id for i in load_instances("out/rows.jsonl")] == [row["instance_id"] for row in ROWS]
    with pytest.raises(BadInput, match="owner/name"):
        fetch_rows("rows", "rows.jsonl")
