"""Bad rows, patches and package pins."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input.row import Row, write

GOOD: dict[str, Any] = {
    "instance_id": "pkg__core-1",
    "repo": "someone/pkg",
    "base_commit": "0" * 40,
    "problem_statement": "double(2) gives 6, expected 4",
    "patch": "--- a/pkg.py\n+++ b/pkg.py\n@@ -1 +1 @@\n-a\n+b\n",
    "test_patch": "",
    "FAIL_TO_PASS": ["tests/test_core.py::test_double"],
    "PASS_TO_PASS": [],
    "image": "pkg:1",
    "eval_script": "true",
    "log_parser": "pytest",
}


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in GOOD.items() if k != key}


def load(name: str) -> Callable[[], object]:
    def enter() -> object:
        from protege.datasets.load import load_instances

        return load_instances(name)

    return enter


def split(name: str) -> Callable[[], object]:
    def enter() -> object:
        from protege.config import InstancesParams
        from protege.datasets.load import load_instances
        from protege.datasets.partition import partition

        params = InstancesParams.model_validate({"source": name, "splits": {"eval": {"count": 4}}})
        return partition(load_instances(name), params, name)

    return enter


def packages(text: str) -> tuple[Callable[[], object], Callable[[], object]]:
    def enter() -> object:
        from protege.desk.sources import load_packages

        return load_packages("packages.yaml")

    return write("packages.yaml", text), enter


def parquet(row: dict[str, Any] | None) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row or GOOD]), buffer)
    return buffer.getvalue() if row else buffer.getvalue()[:-40]


def row_(id: str, given: str, names: tuple[str, ...], name: str, content: str | bytes | Callable[[], bytes]) -> Row:
    def prepare() -> None:
        write(name, content() if callable(content) else content)()

    return Row(f"load_instances: {id}", given, names, enter=load(name), prepare=prepare)


PIN = {
    "name": "toolz",
    "version": "1",
    "sdist": "t.tar.gz",
    "sha256": "0" * 64,
    "repo": "r",
    "source": "toolz",
    "tests": "t",
}

ROWS = [
    row_("missing field", "a row without `patch`", ("rows.jsonl", "row 2", "'patch'", "SWE-bench"), "rows.jsonl",
         lines(GOOD, {**without("patch"), "instance_id": "other"})),
    row_("wrong type", "`FAIL_TO_PASS` is a number", ("rows.jsonl", "row 1", "FAIL_TO_PASS", "list of test ids"), "rows.jsonl",
         lines({**GOOD, "FAIL_TO_PASS": 3})),
    row_("broken list", "`PASS_TO_PASS` is a string that is no JSON", ("rows.jsonl", "row 1", "PASS_TO_PASS", "list of test ids"), "rows.jsonl",
         lines({**GOOD, "PASS_TO_PASS": "[tests/a.py"})),
    row_("not a number", "`problem_statement` is NaN", ("rows.jsonl", "row 1", "problem_statement", "string"), "rows.jsonl",
         lines({**GOOD, "problem_statement": float("nan")})),
    row_("null", "`image` is null", ("rows.jsonl", "row 1", "'image'", "string"), "rows.jsonl", lines({**GOOD, "image": None})),
    row_("twice", "one `instance_id` in two rows", ("rows.jsonl", "row 2", "pkg__core-1", "row 1"), "rows.jsonl", lines(GOOD, GOOD)),
    row_("broken line", "a line that is no JSON", ("rows.jsonl", "row 2", "not JSON"), "rows.jsonl", lines(GOOD, '{"instance_id": ')),
    row_("a list for a row", "a row that is a list", ("rows.jsonl", "row 1", "list", "object"), "rows.jsonl", lines([1, 2])),
    row_("not UTF-8", "a .jsonl in Latin-1", ("rows.jsonl", "UTF-8"), "rows.jsonl", json.dumps({**GOOD, "repo": "é"}, ensure_ascii=False).encode("latin-1")),
    row_("binary", "a .json of random bytes", ("rows.json", "UTF-8"), "rows.json", bytes(range(128, 256))),
    row_("a string", "a .json that holds a string", ("rows.json", "row 1", "str", "object"), "rows.json", '"rows"'),
    row_("empty .json", "a .json of no bytes", ("rows.json", "JSON"), "rows.json", b""),
    row_("cut-off parquet", "a .parquet without its end", ("rows.parquet", "cannot be read"), "rows.parquet", lambda: parquet(None)),
    row_("parquet column", "a .parquet without `eval_script`", ("rows.parquet", "row 1", "'eval_script'"), "rows.parquet",
         lambda: parquet(without("eval_script") | {"PASS_TO_PASS": ["t"]})),
    row_("unknown kind", "a .csv", ("rows.csv", ".json, .jsonl or .parquet"), "rows.csv", "instance_id\n"),
    Row("partition: too few", "an empty .jsonl, of which 4 rows are wanted", ("rows.jsonl",), enter=split("rows.jsonl"), prepare=write("rows.jsonl", "")),
    Row("load_instances: missing file", "a file that is not there", ("absent.jsonl", "does not exist", "instances.source"), enter=load("absent.jsonl")),
    Row("load_instances: a folder", "a folder called rows.jsonl", ("rows.jsonl", "cannot be read"), enter=load("rows.jsonl"),
        prepare=lambda: Path("rows.jsonl").mkdir()),
    *(
        Row(f"load_packages: {id}", given, names, enter=packages(text)[1], prepare=packages(text)[0])
        for id, given, names, text in (
            ("pin", "a hash that is none", ("packages.yaml", "entry 1", "'sha256'"), json.dumps([{**PIN, "sha256": "abc"}])),
            ("unknown key", "a key of our invention", ("packages.yaml", "entry 1", "'license'"), json.dumps([{**PIN, "license": "MIT"}])),
            ("twice", "one package in two entries", ("packages.yaml", "entry 2", "toolz", "twice"), json.dumps([PIN, PIN])),
            ("not YAML", "a bracket left open", ("packages.yaml", "YAML"), "[toolz"),
        )
    ),
]  # fmt: skip
