"""One row of the table of bad inputs, and what happens when it is given to the real entry point."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.helpers import write_settings

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "profiles/smoke.yaml"


@dataclass(frozen=True)
class Row:
    """``prepare`` writes the bad input into the current folder; then ``enter`` (a call) or ``command`` (arguments of
    ``protege``) meets it. The message must hold every one of ``names``: the file, the key or row, what it should be.
    ``env`` replaces the PROTEGE_ variables."""

    id: str
    given: str
    names: tuple[str, ...]
    enter: Callable[[], object] | None = None
    command: tuple[str, ...] = ()
    prepare: Callable[[], object] = lambda: None
    env: tuple[tuple[str, str], ...] = ()
    until: str = ""
    """The page shows the message up to here: what follows are words of a library that differ from machine to machine."""

    @property
    def entry(self) -> str:
        return f"`protege {' '.join(self.command)}`" if self.command else self.id.split(":")[0]


@dataclass(frozen=True)
class Outcome:
    message: str
    boundary: str
    exit_code: int
    stdout: str
    written: frozenset[str]


@contextlib.contextmanager
def environment(row: Row) -> Iterator[None]:
    """No PROTEGE_ variable but the row's, and no look-up on the hub."""
    before = dict(os.environ)
    for name in [n for n in os.environ if n.startswith("PROTEGE_")]:
        del os.environ[name]
    os.environ.update({"HF_HUB_OFFLINE": "1", **dict(row.env)})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def meet(row: Row) -> Outcome:
    """Prepare and enter in the current folder. What is not one of our errors is raised as it is."""
    from typer.testing import CliRunner

    from protege.cli.main import app
    from protege.errors import ProtegeError

    row.prepare()
    before = snapshot()
    with environment(row):
        if row.command:
            done = CliRunner().invoke(app, list(row.command))
            if done.exception and not isinstance(done.exception, SystemExit):
                raise done.exception
            changed = snapshot() ^ before
            return Outcome(done.stderr.rstrip("\n"), "", done.exit_code, done.stdout, frozenset(n for n, _ in changed))
        assert row.enter is not None
        try:
            row.enter()
        except ProtegeError as error:
            changed = snapshot() ^ before
            return Outcome(str(error), error.boundary, 1, "", frozenset(n for n, _ in changed))
    raise AssertionError(f"{row.id}: was accepted")


def snapshot() -> set[tuple[str, int]]:
    """Name and content of every file below the current folder."""
    return {(str(path), hash(path.read_bytes())) for path in Path().rglob("*") if path.is_file()}


def write(name: str, content: str | bytes) -> Callable[[], object]:
    def prepare() -> None:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def smoke(change: Callable[[dict], object]) -> Callable[[], object]:
    """params.yaml of profile smoke with ``change`` made to it."""

    def prepare() -> None:
        raw = yaml.safe_load(SMOKE.read_text())
        change(raw)
        write_settings(Path(), raw)

    return prepare


def plain(message: str, folder: Path, until: str = "") -> str:
    """The message as the page shows it: no path of this machine."""
    text = message.replace(str(folder), "…").replace(str(ROOT) + "/", "")
    head, found, _ = text.partition(until) if until else (text, "", "")
    return re.sub(r"\s+", " ", head + found + (" …" if found else ""))
