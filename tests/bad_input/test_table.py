"""Every row of the table: the error names the file, the key or row, and what it should be; nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_input.row import Row, meet, plain
from tests.bad_input.table import PAGE, ROWS, line


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_bad_input(row: Row, in_tmp: Path) -> None:
    outcome = meet(row)
    assert outcome.message
    for name in row.names:
        assert name in outcome.message
    assert "Traceback" not in outcome.message and "a-secret-key" not in outcome.message
    assert not outcome.written
    if row.command:
        assert outcome.exit_code == 1
        assert "\n" not in outcome.message, "one line on stderr"
        assert not outcome.stdout
    else:
        assert outcome.boundary == "input"
    shown = line(row, plain(outcome.message, in_tmp, row.until))
    assert shown in PAGE.read_text().splitlines(), "run python -m tests.bad_input.table"


def test_the_table_is_long_enough_and_the_page_holds_nothing_else() -> None:
    assert len(ROWS) >= 40
    assert len({row.id for row in ROWS}) == len(ROWS)
    rows = [text for text in PAGE.read_text().splitlines() if text.startswith("| ")]
    assert len(rows) == len(ROWS) + 1
