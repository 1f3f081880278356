"""Files of SWE-bench rows (JSON, JSONL, Parquet), and how a dataset on the Hugging Face hub becomes one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protege.core.instance import Instance
from protege.errors import BadInput, BadRow
from protege.files import write_atomic

_SUFFIXES = {".json", ".jsonl", ".parquet"}


def load_instances(source: str | Path, split: str | None = None) -> list[Instance]:
    """All rows of ``source``, in order.

    ``source`` is a ``.json`` (a list of rows, or an object of rows by id), ``.jsonl`` or ``.parquet`` file; a dataset of
    the hub becomes one by :func:`fetch_rows`. ``split`` keeps the rows whose ``split`` field says so.

    Raises:
        BadRow: a row is unusable or an instance_id occurs twice; the message names the file and the row (from 1).
        BadInput: the source does not exist or cannot be read.
    """
    name = str(source)
    found: dict[str, Instance] = {}
    seen: dict[str, int] = {}
    for number, row in _rows(name):
        where = f"{name}, row {number}"
        if not isinstance(row, dict):
            raise BadRow(f"{where}: is {type(row).__name__}, not an object; a SWE-bench 5.x row is needed")
        instance = Instance.from_row(row, where)
        if instance.instance_id in seen:
            raise BadRow(
                f"{where}: instance_id '{instance.instance_id}' is already that of row {seen[instance.instance_id]}; keep one of them"
            )
        seen[instance.instance_id] = number
        if split is None or (instance.model_extra or {}).get("split", split) == split:
            found[instance.instance_id] = instance
    return list(found.values())


def _rows(name: str) -> Iterator[tuple[int, Any]]:
    path = Path(name)
    if path.suffix not in _SUFFIXES:
        raise BadInput(
            f"'{name}' is no .json, .jsonl or .parquet file; instances.source names one "
            "(`protege rows OWNER/NAME FILE` makes one of a dataset on the hub)"
        )
    try:
        if path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except json.JSONDecodeError as error:
                        raise BadRow(f"{name}, row {number}: not JSON: {error}") from error
        elif path.suffix == ".json":
            data = json.loads(path.read_text(encoding="utf-8"))
            yield from enumerate(
                data.values()
                if isinstance(data, dict) and "instance_id" not in data
                else data
                if isinstance(data, list)
                else [data],
                1,
            )
        else:
            import pyarrow.parquet as pq

            yield from enumerate(pq.read_table(path).to_pylist(), 1)
    except FileNotFoundError as error:
        raise BadInput(f"{name} does not exist; instances.source names it") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{name} is not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise BadInput(f"{name} is not JSON: {error}") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{name} cannot be read: {error}") from error


def fetch_rows(dataset: str, out: Path | str, split: str = "test") -> int:
    """Write split ``split`` of a hub dataset (``SWE-bench/SWE-bench_Verified``) to the JSONL file ``out``; how many rows.

    A file is followed by its content, which a hub id is not: the same id may give other rows tomorrow.

    Raises:
        BadInput: no such dataset or split, or ``out`` is no ``.jsonl``.
        BadRow: a row is unusable.
    """
    if dataset.count("/") != 1 or Path(out).suffix != ".jsonl":
        raise BadInput(f"rows of '{dataset}' to '{out}': a hub id (owner/name) and a .jsonl file are needed")
    from datasets import load_dataset

    try:
        data = load_dataset(dataset, split=split)
    except Exception as error:  # the hub's client raises many kinds, none of them ours to tell apart
        raise BadInput(
            f"the dataset '{dataset}' (split '{split}') could not be loaded from the hub: {error}"
        ) from error
    rows = [{key: value for key, value in row.items() if value is not None} for row in data]
    for number, row in enumerate(rows, 1):
        Instance.from_row(row, f"{dataset}, row {number}")
    write_atomic(out, "".join(json.dumps(row, default=str) + "\n" for row in rows))
    return len(rows)
