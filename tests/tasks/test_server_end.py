"""Why the Prefect server did not start, in one line: its database is of another version, its disk is full."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tasks.server import _why
from tests.helpers import start_server

ROOT = Path(__file__).parents[2]


def test_the_reason_is_taken_from_this_start_s_own_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Can't locate revision identified by 'old'\n")
    before = log.stat().st_size
    assert _why(log, before) == "it said nothing"
    for said, meant in (
        ("sqlite3.OperationalError: database or disk is full\nApplication startup failed\n", "the disk is full"),
        ("sqlite3.OperationalError: attempt to write a readonly database\n", "its database cannot be written"),
        ("one\n\nthe last line\n", "the last line"),
    ):
        log.write_text("Can't locate revision identified by 'old'\n" + said)
        assert _why(log, before) == meant


@pytest.mark.slow
def test_a_database_of_another_prefect_is_said_with_the_command_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / ".cache/protege/prefect/prefect.db"
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('deadbeef0000')")
    done = start_server(tmp_path, timeout=240)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "of another Prefect version" in done.stderr and f"mv {path} {path}.old" in done.stderr
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("deadbeef0000",)
    assert not (tmp_path / ".cache/protege/run/prefect.json").exists()
