"""Images of the desk suite: one for each package, one thin layer for each instance, from the testbeds alone.

The package's image holds pytest and the files and git objects that *all* the package's testbeds have in common;
an instance's layer holds the rest of its own. So no layer of any image holds the correct version of the broken file
next to the broken one (nor the hidden tests): there is nothing to whiteout and nothing to dig up.
An instance's tag names the content of its testbed, which is the same however it is split into layers.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from protege.core.instance import Instance
from protege.desk.desk import image_tag, testbed_digest
from protege.desk.sources import CACHE_FOLDER, DESK_FOLDER, Package, ensure_site, load_packages
from protege.desk.testbed import AGENT_UID, TOP, members
from protege.desk.testrun import environment
from protege.errors import BadInput, ImageMissing
from protege.files import digest, digest_tree
from protege.sandbox import images

if TYPE_CHECKING:
    from docker import DockerClient

_lock = threading.Lock()
_Entries = dict[str, tuple[tarfile.TarInfo, bytes]]


def make_builder(
    client: DockerClient,
    testbeds: Path | str,
    *,
    desk: Path | str = DESK_FOLDER,
    cache: Path | str = CACHE_FOLDER,
) -> Callable[[Instance], None]:
    """A ``builder`` for ``open_provider``: makes the image of any desk instance from its testbed; leaves others alone."""
    packages = load_packages(Path(desk) / "packages.yaml")

    def builder(instance: Instance) -> None:
        package = packages.get(str((instance.model_extra or {}).get("package", "")))
        if package is not None and instance.image.startswith("protege-desk-"):
            site = ensure_site(Path(desk) / "requirements-desk.txt", cache)
            ensure_image(client, instance, Path(testbeds), package, site)

    return builder


def ensure_image(client: DockerClient, instance: Instance, testbeds: Path, package: Package, site: Path) -> str:
    """Build ``instance.image`` from ``testbeds`` when it is missing; returns the image's id.

    Raises:
        ImageMissing: the instance's testbed is not there.
        BadInput: the testbed is not the one that the row's image names.
        SandboxError: the engine failed.
    """
    with _lock:
        found = images.image_id(client, instance.image)
        if found:
            return found
        archive = testbeds / f"{instance.instance_id}.tar.gz"
        if not archive.exists():
            raise ImageMissing(
                f"{instance.image}: neither the image nor {archive} is here; `dvc pull` fetches the testbed"
            )
        kind = f"pristine-{package.name}" if instance.instance_id.endswith(".pristine") else package.name
        if image_tag(kind, testbed_digest(archive)) != instance.image:
            raise BadInput(
                f"{archive} is not the testbed that {instance.instance_id}'s image {instance.image} names; run `dvc checkout`"
            )
        common = _common(testbeds, instance.instance_id)
        parent = _package_image(client, package, site, common)
        own = _entries(archive)
        layer = {name: entry for name, entry in own.items() if name not in common or not entry[0].isfile()}
        folders = {str(parent_) for name in layer if layer[name][0].isfile() for parent_ in Path(name).parents}
        layer = {
            name: entry for name, entry in layer.items() if entry[0].isfile() or name in folders or name not in common
        }
        labels = {"protege.instance": instance.instance_id, "protege.package": package.name}
        return images.build_layer(client, instance.image, parent, _tar(layer), labels=labels)


def _entries(archive: Path) -> _Entries:
    return {info.name: (info, data) for info, data in members(archive.read_bytes())}


def _common(testbeds: Path, instance_id: str) -> _Entries:
    """What every testbed of the instance's package and version has alike; git's own state is each instance's own."""
    family = instance_id.split(".func_pm", 1)[0]
    archives = sorted(testbeds.glob(f"{family}.*.tar.gz"))
    own = _entries(testbeds / f"{instance_id}.tar.gz")
    shared = {name for name in own if not (name.startswith(f"{TOP}/.git/") and "/objects/" not in name)}
    for archive in archives:
        other = _entries(archive)
        shared &= {
            name
            for name in shared & other.keys()
            if "/.git/objects/" in name or (own[name][1] == other[name][1] and own[name][0].mode == other[name][0].mode)
        }
    return {name: own[name] for name in own if name in shared}


def _package_image(client: DockerClient, package: Package, site: Path, common: _Entries) -> str:
    base = images.base_image(client)
    content = [
        (name, info.mode, hashlib.sha256(data).hexdigest() if "/.git/objects/" not in name else "")
        for name, (info, data) in common.items()
    ]
    key = digest(images.image_id(client, base), content, digest_tree(site, ("**/*.py", "*.txt")), environment(package))
    tag = f"protege-desk-package-{package.name}:{key[:12]}"
    if images.has_image(client, tag):
        return tag
    dependencies = _site_image(client, base, site)
    images.build_layer(
        client, tag, dependencies, _tar(common), labels={"protege.package": package.name}, env=environment(package)
    )
    return tag


def _site_image(client: DockerClient, base: str, site: Path) -> str:
    """Base plus /opt/site with its byte code, which every package's image stands on: 16 MB once, not seven times."""
    tag = f"protege-desk-site:{digest(images.image_id(client, base), digest_tree(site, ('**/*.py', '*.txt')))[:12]}"
    if not images.has_image(client, tag):
        commands = ["python3 -m compileall -q --invalidation-mode unchecked-hash /opt/site"]
        images.build_layer(client, tag, base, _site_tar(site), commands=commands)
    return tag


def _site_tar(site: Path) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for path in sorted(site.rglob("*")):
            if "__pycache__" in path.parts or not path.is_file():
                continue
            info = tarfile.TarInfo(f"opt/site/{path.relative_to(site).as_posix()}")
            data = path.read_bytes()
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def _tar(entries: _Entries) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(entries):
            info, data = entries[name]
            info.uid = info.gid = AGENT_UID
            archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()
