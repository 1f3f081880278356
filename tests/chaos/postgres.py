"""A PostgreSQL of a test's own, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protege.ports import is_free


def binaries() -> Path:
    """The folder of ``initdb`` and ``postgres``; Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    if path := shutil.which("initdb"):
        return Path(path).resolve().parent
    if os.environ.get("CI"):
        pytest.fail("CI needs PostgreSQL: apt-get install postgresql")
    pytest.skip("no PostgreSQL here: apt-get install postgresql")


@contextmanager
def postgres() -> Iterator[tuple[str, int]]:
    """Start one with an empty database ``prefect``; yield (its SQLAlchemy address, its port), and stop it."""
    bin_ = binaries()
    port = next(p for p in range(5433, 5533) if is_free(p))
    with tempfile.TemporaryDirectory(prefix="protege-postgres-") as name:
        folder, as_owner = Path(name), list[str]()
        if os.geteuid() == 0:  # it refuses to run as root
            as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres", "postgres")

        def run(program: str, *arguments: str) -> None:
            command = [*as_owner, str(bin_ / program), *arguments]
            subprocess.run(command, check=True, timeout=120, cwd=folder, stdout=subprocess.DEVNULL)

        data = str(folder / "data")
        run("initdb", "-D", data, "-U", "prefect", "--auth=trust", "-E", "UTF8", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "-D", data, "-l", str(folder / "log"), "-o", options, "-w", "start")
        try:
            run("createdb", "-h", str(folder), "-p", str(port), "-U", "prefect", "prefect")
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect", port
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
