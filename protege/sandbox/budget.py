"""A budget for the disk that our images take: the least recently used go first, those in use never.

*Ours* is an image that carries the label ``protege=1`` or that the journal names as pulled by us, and all of whose
tags are ours: an image that a user built on one of ours inherits the label, and one that a user tagged is the user's.

The journal is a folder of small files, ``<image>.<process>.json``. Each has one writer, which replaces it atomically,
so any number of processes keep it without a lock: an image's last use is the newest of its files, and a file whose
process still lives is that process's claim on the image.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protege.errors import SandboxError
from protege.files import read_json, write_json
from protege.sandbox import images

if TYPE_CHECKING:
    from docker import DockerClient

GB = 1_000_000_000
CLAIM_S = 6 * 3600.0
"""For so long after its last use an image is left alone for another process that still lives."""
_OUR_TAGS = "protege-"
_EMPTY_LAYER = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"  # of a tar without entries
_log = logging.getLogger(__name__)
_layers_of: dict[str, dict[tuple[str, ...], int]] = {}


@dataclass(frozen=True)
class ImageUse:
    """One image of the engine. ``unique_bytes`` is what removing it alone would free; times are seconds since 1970."""

    id: str
    tags: tuple[str, ...]
    ours: bool
    in_use: bool
    last_used: float
    unique_bytes: int
    claimed: bool = False
    layers: dict[tuple[str, ...], int] = field(default_factory=dict, repr=False)
    parents: frozenset[str] = frozenset()


def journal_folder() -> Path:
    """``$PROTEGE_CACHE/images``, else one for each user: the checkouts of a machine share the engine's images."""
    cache = os.environ.get("PROTEGE_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(cache) if cache else home / "protege").resolve() / "images"


def touch(image_id: str, tag: str, pulled: bool = False, *, folder: Path | None = None) -> None:
    """Note that ``image_id`` (``sha256:…``), known here as ``tag``, is used now; ``pulled`` says that we brought it.

    Never raises: a note that cannot be written makes the image look older than it is.
    """
    try:
        path = _file(folder or journal_folder(), image_id, images.owner())
        pulled = pulled or (path.exists() and bool(read_json(path).get("pulled")))
        note = {"image": image_id, "tag": _full(tag), "pulled": pulled, "used": time.time(), "owner": images.owner()}
        write_json(path, note)
    except Exception as error:
        _log.warning("the use of image %s could not be noted: %s", tag, error)


def usage(client: DockerClient, label: str = "protege=1", *, folder: Path | None = None) -> list[ImageUse]:
    """Every image of the engine, the least recently used first; an image counts as used when one made from it is.

    Raises:
        SandboxError: the engine failed.
    """
    import docker.errors
    import requests.exceptions

    notes = _notes(folder or journal_folder())
    try:
        ours = {item["Id"] for item in client.api.images(filters={"label": label})}
        busy = {item["ImageID"] for item in client.api.containers(all=True)}
        listed = client.api.images()
        details = {item["Id"]: detail for item in listed if (detail := _detail(client, item["Id"])) is not None}
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise SandboxError(f"the Docker engine could not list its images: {error}") from error
    listed = [item for item in listed if item["Id"] in details]
    layers = {image: _layers(client, image, detail) for image, detail in details.items()}
    holders = Counter(chain for own in layers.values() for chain in own)
    parents = {item["Id"]: _parents(item["Id"], details) for item in listed}
    used = {
        item["Id"]: max([float(item["Created"]), *(n["used"] for n in notes.get(item["Id"], []))]) for item in listed
    }
    for child, above in parents.items():
        for parent in above:
            used[parent] = max(used[parent], used[child])
    found = []
    for item in listed:
        image, own = item["Id"], notes.get(item["Id"], [])
        tags = tuple(tag for tag in item["RepoTags"] or () if tag != "<none>:<none>")
        pulled = {note["tag"] for note in own if note["pulled"]}
        known = (image in ours or bool(pulled)) and all(tag.startswith(_OUR_TAGS) or tag in pulled for tag in tags)
        found.append(
            ImageUse(
                id=image,
                tags=tags,
                ours=known and bool(tags or own),  # an untagged build of a user's inherits the label too
                in_use=image in busy,
                last_used=used[image],
                unique_bytes=sum(size for chain, size in layers[image].items() if holders[chain] == 1),
                claimed=any(_claims(note) for note in own),
                layers=layers[image],
                parents=parents[image],
            )
        )
    # a parent is as recent as its newest child: the longer chain first, so that children go before it
    return sorted(found, key=lambda item: (item.last_used, -len(item.layers), item.id))


def bytes_of_ours(found: list[ImageUse]) -> int:
    """Bytes that would be free without our images: each layer once, those of a user's images not at all."""
    theirs = {chain for item in found if not item.ours for chain in item.layers}
    return sum(
        {
            chain: size for item in found if item.ours for chain, size in item.layers.items() if chain not in theirs
        }.values()
    )


def prune(
    client: DockerClient,
    budget_bytes: float,
    keep: set[str] | frozenset[str] = frozenset(),
    *,
    label: str = "protege=1",
    folder: Path | None = None,
) -> list[ImageUse]:
    """Remove our least recently used images until ours take ``budget_bytes`` at most; returns those removed.

    Left alone: images of which there is a container, running or not; ``keep`` (tags or ids) and the agent's layer
    above them; those that another living process used in the last :data:`CLAIM_S`; and whatever another image stands on.
    Never raises: what cannot be removed is logged, and tried again the next time.
    """
    removed: list[ImageUse] = []
    try:
        found = usage(client, label, folder=folder)
        kept = {_full(name) for name in keep} | set(keep)
        kept |= {agent_tag(item.id) for item in found if kept & {item.id, *item.tags}}
        holders = Counter(chain for item in found for chain in item.layers)
        total = bytes_of_ours(found)
        here = {item.id: item for item in found}
        for item in found:
            if total <= budget_bytes:
                break
            stands = any(item.id in other.parents for other in here.values())
            if not item.ours or item.in_use or item.claimed or stands or kept & {item.id, *item.tags}:
                continue
            outcome = _remove(client, item)
            if outcome == "refused":
                continue
            if outcome == "removed":
                removed.append(item)
            del here[item.id]  # gone by our hand or another's: its bytes are free either way
            holders.subtract(item.layers.keys())
            total -= sum(size for chain, size in item.layers.items() if holders[chain] == 0)
            _forget(item.id, folder or journal_folder())
        _compact(folder or journal_folder(), set(here))
        if removed:
            _log.info("removed %d images that were not used lately; ours take %.2f GB now", len(removed), total / GB)
        if total > budget_bytes:
            _log.warning(
                "our images take %.2f GB, over the budget of %.2f GB (sandbox.images_gb), and all of them are in use",
                total / GB,
                budget_bytes / GB,
            )
    except Exception as error:
        _log.warning("images could not be pruned: %s", error)
    return removed


def agent_tag(image_id: str) -> str:
    """Tag of the layer that hands /testbed of an official image to the agent (see DockerProvider.open)."""
    return f"protege-agent:{image_id.rpartition(':')[2][:12]}"


def _remove(client: DockerClient, item: ImageUse) -> str:
    """ "removed", "gone" (another process was first) or "refused" (in use since we looked)."""
    import docker.errors

    outcome = "gone"
    for name in item.tags or (item.id,):
        try:
            # never forced: the engine itself refuses what a container or another image has begun to use
            client.api.remove_image(name)
            outcome = "removed"
        except docker.errors.NotFound:
            continue
        except docker.errors.APIError as error:
            if error.status_code == 409 and "already in progress" not in str(error):
                _log.info("image %s is left: %s", name, error)
                return "refused"
            if error.status_code == 409:
                continue
            raise
    return outcome


def _detail(client: DockerClient, image: str) -> dict[str, Any] | None:
    import docker.errors

    try:
        return dict(client.api.inspect_image(image))
    except docker.errors.NotFound:
        return None


def _parents(image: str, details: dict[str, dict[str, Any]]) -> frozenset[str]:
    """The listed images that ``image`` stands on: by the engine's word, or by having all their layers and more."""
    own = _chain(details[image])
    found = set()
    for other, detail in details.items():
        chain = _chain(detail)
        if other != image and (
            (len(chain) < len(own) and own[: len(chain)] == chain) or details[image].get("Parent") == other
        ):
            found.add(other)
    return frozenset(found)


def _chain(detail: dict[str, Any]) -> tuple[str, ...]:
    return tuple((detail.get("RootFS") or {}).get("Layers") or ())


def _layers(client: DockerClient, image: str, detail: dict[str, Any]) -> dict[tuple[str, ...], int]:
    """Bytes of each layer by the chain of layers up to it, which is what the engine stores once.

    From the image's history and not from ``docker system df``, which walks the files of every container.
    """
    import docker.errors

    if image not in _layers_of:
        try:
            history = client.api.history(image)
        except docker.errors.NotFound:
            history = []
        sizes = [entry["Size"] for entry in reversed(history) if entry["Size"]]
        chain = _chain(detail)
        filled = [n for n, layer in enumerate(chain, 1) if layer != _EMPTY_LAYER]
        # where layers of empty files and folders make the lists differ, the sum still holds
        _layers_of[image] = {chain[:n]: size for n, size in zip(filled, sizes, strict=False)}
    return _layers_of[image]


def _file(folder: Path, image: str, owner: str) -> Path:
    return folder / f"{image.rpartition(':')[2]}.{hashlib.sha256(owner.encode()).hexdigest()[:12]}.json"


def _full(tag: str) -> str:
    return tag if tag.startswith("sha256:") or ":" in tag.rpartition("/")[2] else f"{tag}:latest"


def _claims(note: dict[str, Any]) -> bool:
    return (
        note["owner"] != images.owner()
        and time.time() - note["used"] < CLAIM_S
        and not images.owner_gone(note["owner"])
    )


def _notes(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The journal by image id. A file that is gone or does not parse counts as absent."""
    notes: dict[str, list[dict[str, Any]]] = {}
    for path in folder.glob("*.json"):
        try:
            note = read_json(path)
            note["used"] = float(note["used"])
            notes.setdefault(str(note["image"]), []).append({"tag": "", "pulled": False, "owner": "", **note})
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.info("the journal file %s is passed over: %s", path, error)
    return notes


def _compact(folder: Path, here: set[str]) -> None:
    """Drop the notes of processes that have ended, but for each image's newest and those that say it was pulled."""
    for image, own in _notes(folder).items():
        own.sort(key=lambda note: note["used"])
        for note in own if image not in here else own[:-1]:
            if images.owner_gone(note["owner"]) and (image not in here or not note["pulled"]):
                _file(folder, image, note["owner"]).unlink(missing_ok=True)


def _forget(image: str, folder: Path) -> None:
    for path in folder.glob(f"{image.rpartition(':')[2]}.*.json"):
        path.unlink(missing_ok=True)
