"""The Prefect server and its port, and the DVC remote, asked without importing either package."""

from __future__ import annotations

import configparser
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import util
from typing import Any

from protege.cli.doctor.finding import CACHE, Finding, Place
from protege.cli.doctor.packages import PIP, installed
from protege.ports import FIRST_PORT, PORTS, is_free

ANSWER_S = 2.0


def own_server(place: Place) -> str | None:
    """The API address that the project's server was last started at, or None."""
    try:
        return str(json.loads((place.root / CACHE / "run/prefect.json").read_text(encoding="utf-8"))["url"])
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
    free = next((port for port in range(FIRST_PORT, FIRST_PORT + PORTS) if is_free(port)), None)
    last, own = FIRST_PORT + PORTS - 1, own_server(place)
    if free is None:
        show = f"ss -ltnp 'sport >= {FIRST_PORT} and sport <= {last}'"
        yield Finding("ports", "fail", f"all of {FIRST_PORT} to {last} are taken", show)
    elif free == FIRST_PORT:
        yield Finding("ports", "ok", f"{FIRST_PORT} is free for the Prefect server")
    elif own and f":{FIRST_PORT}/" in own and ask(f"{own}/health") is not None:
        yield Finding("ports", "ok", f"{FIRST_PORT} is held by this project's Prefect server")
    else:
        other = ask(f"http://127.0.0.1:{FIRST_PORT}/api/health") is not None
        holder = "another Prefect server" if other else "another program"
        yield Finding("ports", "ok", f"{FIRST_PORT} is held by {holder}; the project's Prefect server takes {free}")


def prefect_server(place: Place) -> Iterator[Finding]:
    """The server that flows would speak to: does it answer, and in the installed version?"""
    name = "Prefect server"
    given = place.env.get("PREFECT_API_URL")
    url = given or own_server(place)
    if url is None:
        yield Finding(name, "ok", "none runs yet; every run starts it when needed")
    elif ask(f"{url}/health") is not None:
        theirs, ours = ask(f"{url}/admin/version"), installed().get("prefect", "not installed")
        if theirs == ours:
            yield Finding(name, "ok", f"{theirs} answers at {url}")
        else:
            fix = f"python -m pip install prefect=={theirs}" if given else "make down server"
            yield Finding(name, "fail", f"version {theirs} answers at {url}; installed is {ours}", fix)
    elif given:
        yield Finding(name, "fail", f"none answers at PREFECT_API_URL ({given})", "unset PREFECT_API_URL")
    else:
        yield Finding(name, "ok", f"the one that was started at {url} has ended; every run starts it when needed")


def dvc_remote(place: Place) -> Iterator[Finding]:
    """The default remote, as .dvc/config and .dvc/config.local name it. It is not contacted."""
    name = "DVC remote"
    config = configparser.ConfigParser()
    config.read([place.root / ".dvc/config", place.root / ".dvc/config.local"], encoding="utf-8")
    remote = config.get("core", "remote", fallback="")
    section = next((s for s in config.sections() if s.strip("'") == f'remote "{remote}"'), "")
    url = config.get(section, "url", fallback="")
    scheme, _, path = url.rpartition("://")
    if not remote:
        yield Finding(name, "ok", "none: data stay on this machine")
    elif not url:
        found = f"core.remote is {remote!r}, but no address is given for it"
        yield Finding(name, "fail", found, f"dvc remote add --force {remote} URL")
    elif scheme in {"", "file"}:
        folder = place.root / ".dvc" / path
        if folder.is_dir():
            yield Finding(name, "ok", f"{remote}: the folder {folder}")
        else:
            yield Finding(name, "fail", f"{remote}: the folder {folder} does not exist", f"mkdir -p {folder}")
    elif scheme in {"s3", "gs", "azure", "ssh", "webhdfs"} and util.find_spec(f"dvc_{scheme}") is None:
        found = f"{remote} ({scheme}) needs the package dvc-{scheme}"
        yield Finding(name, "fail", found, f"{PIP} dvc-{scheme}")
    else:
        yield Finding(name, "ok", f"{remote} ({scheme}), not contacted")
