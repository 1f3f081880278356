"""A budget for the disk that our images take: the least recently used go first, those in use never.

*Ours* is an image that carries the label ``protege=1`` and has tags of ours alone: an image that a user built on one
of ours inherits the label, one that a user tagged is the user's, and untagged ones are left to ``docker image prune``.

When an image was last used is the engine's ``LastTagTime``, which tagging it again sets. Which images a living process
is working with says a file of that process (``claim``).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protege.errors import SandboxError
from protege.files import write_atomic
from protege.sandbox import images

if TYPE_CHECKING:
    from docker import DockerClient

GB = 1_000_000_000
CLAIM_S = 6 * 3600.0
"""A claim lapses so long after its process last used an image."""
_OUR_TAGS = "protege-"
_EMPTY_LAYER = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"  # of a tar without entries
_log = logging.getLogger(__name__)
_layers_of: dict[str, dict[tuple[str, ...], int]] = {}
_claimed: set[str] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class ImageUse:
    """One image of the engine. ``last_used`` is seconds since 1970; ``layers`` are bytes by the chain up to each."""

    id: str
    tags: tuple[str, ...]
    ours: bool
    in_use: bool
    last_used: float
    layers: dict[tuple[str, ...], int] = field(repr=False)

    def stands_on(self, other: ImageUse) -> bool:
        """Whether this image has all layers of ``other`` and more."""
        return other.layers.keys() < self.layers.keys()


def touch(client: DockerClient, tag: str) -> None:
    """Note that the image known as ``tag`` is used now. Never raises: without the note it looks older than it is."""
    from docker.utils import parse_repository_tag

    try:
        if "@" not in tag:  # a name by digest is no tag, and none of ours
            repository, name = parse_repository_tag(tag)
            client.api.tag(tag, repository, name or "latest")
    except Exception as error:
        _log.warning("the use of image %s could not be noted: %s", tag, error)


def claims_folder() -> Path:
    """``$PROTEGE_CACHE/images``, else one for each user: the checkouts of a machine share the engine's images."""
    cache = os.environ.get("PROTEGE_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(cache) if cache else home / "protege").resolve() / "images"


def claim(tags: Iterable[str], *, folder: Path | None = None) -> None:
    """Keep other processes from removing these images while this one lives and goes on to use some. Never raises."""
    path = (folder or claims_folder()) / hashlib.sha256(images.owner().encode()).hexdigest()[:12]
    with _lock:
        _claimed.update(map(_full, tags))
        try:
            write_atomic(path, "\n".join([images.owner(), *sorted(_claimed)]))
        except Exception as error:
            _log.warning("the use of images could not be noted: %s", error)


def _claimed_by_others(folder: Path) -> set[str]:
    """Tags that other living processes claim; the files of ended ones are removed."""
    found: set[str] = set()
    for path in folder.glob("*"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            owner, *tags = path.read_text(encoding="utf-8").split("\n")
            # whether a process of another machine or container has ended cannot be seen from here
            if images.owner_gone(owner) or time.time() - path.stat().st_mtime > CLAIM_S:
                path.unlink()
            elif owner != images.owner():
                found |= set(tags)
    return found


def usage(client: DockerClient, label: str = "protege=1") -> list[ImageUse]:
    """Every image of the engine, the least recently used first; an image counts as used when one made from it is.

    Raises:
        SandboxError: the engine failed.
    """
    import docker.errors
    import requests.exceptions

    try:
        ours = {item["Id"] for item in client.api.images(filters={"label": label})}
        busy = {item["ImageID"] for item in client.api.containers(all=True)}
        found = []
        for image in [item["Id"] for item in client.api.images()]:
            with contextlib.suppress(docker.errors.NotFound):  # removed since
                detail = client.api.inspect_image(image)
                tags = tuple(detail["RepoTags"] or ())
                mine = image in ours and bool(tags) and all(tag.startswith(_OUR_TAGS) for tag in tags)
                tagged = datetime.fromisoformat(detail["Metadata"]["LastTagTime"]).timestamp()
                found.append(ImageUse(image, tags, mine, image in busy, tagged, _layers(client, image, detail)))
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise SandboxError(f"the Docker engine could not list its images: {error}") from error
    last = {item.id: max(i.last_used for i in found if i is item or i.stands_on(item)) for item in found}
    found = [replace(item, last_used=last[item.id]) for item in found]
    # a parent is as recent as its newest child: the longer chain first, so that children go before it
    return sorted(found, key=lambda item: (item.last_used, -len(item.layers), item.id))


def bytes_of_ours(found: list[ImageUse]) -> int:
    """Bytes that would be free without our images: each layer once, those of a user's images not at all."""
    theirs = {chain for item in found if not item.ours for chain in item.layers}
    ours = {chain: size for item in found if item.ours for chain, size in item.layers.items()}
    return sum(size for chain, size in ours.items() if chain not in theirs)


def prune(
    client: DockerClient,
    budget_bytes: float,
    keep: set[str] | frozenset[str] = frozenset(),
    *,
    label: str = "protege=1",
    folder: Path | None = None,
) -> list[ImageUse]:
    """Remove our least recently used images until ours take ``budget_bytes`` at most; returns those removed.

    Left alone: images of which there is a container, running or not; ``keep`` (tags or ids) and what other living
    processes claim, with the agent's layer above them; and whatever another image stands on.
    Never raises: what cannot be removed is logged, and tried again the next time.
    """
    removed: list[ImageUse] = []
    try:
        found = usage(client, label)
        kept = {_full(name) for name in keep} | _claimed_by_others(folder or claims_folder())
        kept |= {agent_tag(item.id) for item in found if kept & {item.id, *item.tags}}
        holders = Counter(chain for item in found for chain in item.layers)
        total = bytes_of_ours(found)
        here = {item.id: item for item in found}
        for item in found:
            if total <= budget_bytes:
                break
            parent = any(other.stands_on(item) for other in here.values())
            if not item.ours or item.in_use or parent or kept & {item.id, *item.tags}:
                continue
            outcome = _remove(client, item)
            if outcome == "refused":
                continue
            if outcome == "removed":
                removed.append(item)
            del here[item.id]  # gone by our hand or another's: its bytes are free either way
            holders.subtract(item.layers.keys())
            total -= sum(size for chain, size in item.layers.items() if holders[chain] == 0)
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
    for name in item.tags:
        try:
            # never forced: the engine itself refuses what a container or another image has begun to use
            client.api.remove_image(name)
            outcome = "removed"
        except docker.errors.NotFound:
            continue
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise
            if "already in progress" not in str(error):
                _log.info("image %s is left: %s", name, error)
                return "refused"
    return outcome


def _layers(client: DockerClient, image: str, detail: dict[str, Any]) -> dict[tuple[str, ...], int]:
    """Bytes of each layer by the chain of layers up to it, which is what the engine stores once.

    From the image's history and not from ``docker system df``, which walks the files of every container.
    """
    if image not in _layers_of:
        sizes = [entry["Size"] for entry in reversed(client.api.history(image)) if entry["Size"]]
        chain = tuple((detail.get("RootFS") or {}).get("Layers") or ())
        filled = [n for n, layer in enumerate(chain, 1) if layer != _EMPTY_LAYER]
        # where layers of empty files and folders make the lists differ, the sum still holds
        _layers_of[image] = {chain[:n]: size for n, size in zip(filled, sizes, strict=False)}
    return _layers_of[image]


def _full(tag: str) -> str:
    return tag if tag.startswith("sha256:") or ":" in tag.rpartition("/")[2] else f"{tag}:latest"
