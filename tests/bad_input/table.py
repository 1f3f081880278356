"""The whole table, and the page that it is written out as: ``python -m tests.bad_input.table`` rewrites docs/bad-inputs.md."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.bad_input import commands, instances, models, params
from tests.bad_input.row import ROOT, Row, meet, plain

ROWS: list[Row] = [*instances.ROWS, *params.ROWS, *models.ROWS, *commands.ROWS]
PAGE = ROOT / "docs/bad-inputs.md"
HEAD = """# Bad inputs and what is said about them

Each row is given to the real entry point by `tests/bad_input`, which also requires that nothing is written, that no
traceback is shown, and that this page holds the very message. Commands exit with 1. After a change of a message:
`python -m tests.bad_input.table`.

| entry | what is given | what is said |
|---|---|---|
"""


def line(row: Row, message: str) -> str:
    cells = (row.entry, row.given, message.replace("|", "\\\\|"))
    return f"| {' | '.join(cells)} |"


def page(messages: Mapping[str, str]) -> str:
    return HEAD + "\n".join(line(row, messages[row.id]) for row in ROWS) + "\n"


def main() -> None:
    messages = {}
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            try:
                messages[row.id] = plain(meet(row).message, Path(folder), row.until)
            except BaseException as error:
                print(f"{row.id}: {type(error).__name__}: {str(error)[:300]}")
                continue
            missing = [name for name in row.names if name not in messages[row.id]]
            if missing:
                print(f"{row.id}: lacks {missing}: {messages[row.id][:400]}")
    if len(messages) == len(ROWS):
        PAGE.write_text(page(messages))
    print(f"{len(ROWS)} rows")


if __name__ == "__main__":
    main()
