"""The Prefect server (its port, its version, its database) and the DVC remote, asked without importing either."""

from __future__ import annotations

import configparser
import json
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

from protege.cli.doctor.finding import CACHE, Finding, Place
from protege.ports import FIRST_PORT, PORTS, is_free

ANSWER_S = 2.0


def own_server(place: Place) -> str | None:
    """The API address that the project's server was last started at, or None."""
    try:
        return str(json.loads((place.root / CACHE / "run/prefect.json").read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ask(url: str) -> Any | None:
    """The JSON that ``url`` answers with, or None where nothing of the kind answers."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
            return json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        return None


def ports(place: Place) -> Iterator[Finding]:
    if is_free(FIRST_PORT):
        yield Finding("ports", "ok", f"{FIRST_PORT} is free for the Prefect server")
        return
    own = own_server(place)
    if own and f":{FIRST_PORT}/" in own and ask(f"{own}/health") is not None:
        yield Finding("ports", "ok", f"{FIRST_PORT} is held by this project's Prefect server")
        return
    free = next((port for port in range(FIRST_PORT + 1, FIRST_PORT + PORTS) if is_free(port)), None)
    holder = (
        "another Prefect server" if ask(f"http://127.0.0.1:{FIRST_PORT}/api/health") is not None else "another program"
    )
    if free is None:
        last = FIRST_PORT + PORTS - 1
        yield Finding(
            "ports",
            "fail",
            f"all of {FIRST_PORT} to {last} are taken",
            f"ss -ltnp 'sport >= {FIRST_PORT} and sport <= {last}'",
        )
    else:
        yield Finding("ports", "ok", f"{FIRST_PORT} is held by {holder}; the project's Prefect server takes {free}")


def prefect_server(place: Place) -> Iterator[Finding]:
    """The server that flows would speak to: does it answer, and in the installed version?"""
    name = "Prefect server"
    given = place.env.get("PREFECT_API_URL")
    url = given or own_server(place)
    if url is None:
        yield Finding(name, "ok", "none runs yet; every run starts it when needed")
        return
    if ask(f"{url}/health") is None:
        if given:
            yield Finding(name, "fail", f"none answers at PREFECT_API_URL ({given})", "unset PREFECT_API_URL")
        else:
            yield Finding(name, "ok", f"the one that was started at {url} has ended; every run starts it when needed")
        return
    theirs = ask(f"{url}/admin/version")
    try:
        ours = metadata.version("prefect")
    except metadata.PackageNotFoundError:
        ours = "not installed"
    if theirs == ours:
        yield Finding(name, "ok", f"{theirs} answers at {url}")
    else:
        fix = f"python -m pip install prefect=={theirs}" if given else "make down server"
        yield Finding(name, "fail", f"version {theirs} answers at {url}; installed is {ours}", fix)


def prefect_database(place: Place) -> Iterator[Finding]:
    """A database that a newer Prefect has migrated cannot be opened by an older one."""
    name = "Prefect database"
    home = Path(place.env.get("PREFECT_HOME") or place.root / CACHE / "prefect")
    path = home / "prefect.db"
    if place.env.get("PREFECT_API_DATABASE_CONNECTION_URL") or place.env.get("PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        yield Finding(name, "ok", "named by the environment; not opened")
        return
    if not path.is_file():
        yield Finding(name, "ok", f"none yet; the server makes {path}")
        return
    known = migrations()
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1) as connection:
            revisions = [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.Error as error:
        if "locked" in str(error):
            yield Finding(name, "ok", f"{path} is in use")
        else:
            yield Finding(name, "fail", f"{path} is not a Prefect database ({error})", f"mv {path} {path}.old")
        return
    strange = [revision for revision in revisions if known and revision not in known]
    if strange:
        found = f"{path} is of another Prefect (revision {', '.join(strange)}), which the installed one cannot open"
        yield Finding(name, "fail", found, f"mv {path} {path}.old")
    else:
        yield Finding(
            name, "ok", f"{path}, {path.stat().st_size / 1e6:.0f} MB, revision {', '.join(revisions) or 'none'}"
        )


def migrations() -> set[str]:
    """Revisions that the installed Prefect knows, read from its files; empty where it is not installed."""
    spec = util.find_spec("prefect")
    found: set[str] = set()
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).glob("server/database/_migrations/versions/sqlite/*.py"):
            found.update(re.findall(r"^revision[^=]*= *['\"](\w+)", path.read_text(), re.MULTILINE))
    return found


def dvc_remote(place: Place) -> Iterator[Finding]:
    """The default remote, as .dvc/config and .dvc/config.local name it. It is not contacted."""
    name = "DVC remote"
    config = configparser.ConfigParser()
    config.read([place.root / ".dvc/config", place.root / ".dvc/config.local"])
    remote = config.get("core", "remote", fallback="")
    if not remote:
        yield Finding(name, "ok", "none: data stay on this machine")
        return
    section = next((s for s in config.sections() if s.strip("'") == f'remote "{remote}"'), None)
    url = config.get(section, "url", fallback="") if section else ""
    if not url:
        yield Finding(
            name,
            "fail",
            f"core.remote is {remote!r}, but no address is given for it",
            f"dvc remote add --force {remote} URL",
        )
        return
    scheme = url.split("://")[0] if "://" in url else "file"
    if scheme == "file":
        folder = place.root / ".dvc" / url.removeprefix("file://")
        if folder.is_dir():
            yield Finding(name, "ok", f"{remote}: the folder {folder}")
        else:
            yield Finding(name, "fail", f"{remote}: the folder {folder} does not exist", f"mkdir -p {folder}")
        return
    packages = {"s3": "dvc-s3", "gs": "dvc-gs", "azure": "dvc-azure", "ssh": "dvc-ssh", "webhdfs": "dvc-webhdfs"}
    needed = packages.get(scheme)
    if needed and util.find_spec(needed.replace("-", "_")) is None:
        yield Finding(
            name,
            "fail",
            f"{remote} ({scheme}) needs the package {needed}",
            f"python -m pip install --constraint infra/constraints.txt {needed}",
        )
    else:
        yield Finding(name, "ok", f"{remote} ({scheme}), not contacted")
