"""The sandbox of a solve: a throw-away image or archive of the user's files, gone when the block ends."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protege.cli.solve.tree import Tree, agents, write_archive
from protege.config import SandboxParams
from protege.core.instance import Instance
from protege.errors import BadInput, SandboxError, SandboxUnavailable
from protege.files import storage_errors
from protege.sandbox import images
from protege.sandbox.base import WORKDIR
from protege.sandbox.bubblewrap import SITE, BubblewrapProvider
from protege.sandbox.docker import DockerProvider
from protege.sandbox.rootfs import HOME

if TYPE_CHECKING:
    from docker import DockerClient

_log = logging.getLogger(__name__)
_TOOLS = """for tool in bash git python3; do
  command -v $tool >/dev/null || { echo "the image has no $tool"; exit 9; }
done
rm -rf /testbed"""


@dataclass(frozen=True)
class Workspace:
    """Where the work is done. ``provider.open(instance)`` is a fresh copy of the user's files, as often as wanted."""

    provider: DockerProvider | BubblewrapProvider
    instance: Instance


def make_instance(tree: Tree, issue: str, instance_id: str = "solve", commit: str = "") -> Instance:
    """The issue as an instance without secrets: no gold patch, no tests, nothing to grade."""
    return Instance(
        instance_id=instance_id,
        repo=tree.root.name or "repository",
        base_commit=commit,
        problem_statement=issue,
        patch="",
        test_patch="",
        FAIL_TO_PASS=(),
        PASS_TO_PASS=(),
        image=f"protege-solve:{instance_id}",
        eval_script="",
        log_parser="",
    )


@contextlib.contextmanager
def open_workspace(
    tree: Tree,
    issue: str,
    params: SandboxParams,
    home: Path,
    *,
    image: str | None = None,
    site: Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Iterator[Workspace]:
    """Sandboxes on copies of ``tree``; image, archive and copies are removed at the end.

    ``image`` is a Docker image to start from instead of the base (bash, git and python3 are needed in it), ``site`` a
    folder of Python packages (``pip install --target``) that commands can import, ``home`` where caches go.

    Raises:
        BadInput: ``image`` or ``site`` cannot be used.
        SandboxUnavailable: the backend asked for is not here.
        SandboxError: the engine failed.
    """
    if site is not None and not site.is_dir():
        raise BadInput(f"--site {site} is no folder; make one with: pip install --target {site} PACKAGE ...")
    client = None
    if params.backend != "bubblewrap":
        try:
            client = images.docker_client(params.start_timeout_s)
        except SandboxUnavailable as error:
            if params.backend == "docker" or image is not None:
                raise
            note(f"no Docker engine answers, so commands run in bubblewrap ({error})")
    elif image is not None:
        raise BadInput(f"--image {image} needs a Docker engine, but the backend is bubblewrap; leave one of them out")
    scratch = Path(tempfile.mkdtemp(prefix="protege-solve-"))
    try:
        instance_id = f"solve-{secrets.token_hex(6)}"
        archive = scratch / f"{instance_id}.tar.gz"
        with storage_errors(archive):
            commit = write_archive(tree, archive)
        instance = make_instance(tree, issue, instance_id, commit)
        if client is None:
            with _caches_in(home):
                provider = BubblewrapProvider(params, scratch, site)
                note(f"sandbox: bubblewrap, {provider.limits}")
                yield Workspace(provider, instance)
        else:
            with _image(client, instance.image, archive, image, site, note):
                docker = DockerProvider(params, client=client)
                docker.check([instance])
                note(f"sandbox: a Docker container, {docker.limits}")
                yield Workspace(docker, instance)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _caches_in(home: Path) -> Iterator[None]:
    """Bubblewrap's root is unpacked into PROTEGE_CACHE, by default below the current folder: the user's, here."""
    before = os.environ.get("PROTEGE_CACHE")
    os.environ["PROTEGE_CACHE"] = str(home)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PROTEGE_CACHE", None)
        else:
            os.environ["PROTEGE_CACHE"] = before


@contextlib.contextmanager
def _image(
    client: DockerClient,
    tag: str,
    archive: Path,
    wanted: str | None,
    site: Path | None,
    note: Callable[[str], None],
) -> Iterator[None]:
    builder = images.docker_client(600.0)
    with contextlib.ExitStack() as removed:
        if wanted is None:
            note("sandbox: building its image")
            parent = images.base_image(builder)
        else:
            note(f"sandbox: building its image from {wanted}")
            parent = f"protege-solve-base:{tag.rpartition(':')[2]}"
            for name in (f"{parent}-plain", parent):
                removed.callback(_remove, client, name)
            _from_users(builder, wanted, parent)
        removed.callback(_remove, client, tag)
        # the copy comes before whatever the image has installed of it
        env = {"PYTHONPATH": ":".join([WORKDIR, f"{WORKDIR}/src", *([SITE] if site is not None else [])])}
        images.build_layer(builder, tag, parent, _with_extras(archive, site), env=env)
        yield


def _with_extras(archive: Path, site: Path | None) -> bytes:
    """The archive, the agent's home and the packages as one tar, so that they become one layer."""
    raw = io.BytesIO(archive.read_bytes())
    with tarfile.open(fileobj=raw, mode="a", format=tarfile.PAX_FORMAT) as tar:
        home = tarfile.TarInfo(HOME.lstrip("/"))
        home.type = tarfile.DIRTYPE
        tar.addfile(agents(home))
        if site is not None:
            tar.add(site, SITE.lstrip("/"), filter=_roots)
    return raw.getvalue()


def _roots(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A package's file as the root user's, so that the agent can only read it."""
    if "__pycache__" in info.name:
        return None
    info = agents(info)
    info.uid = info.gid = 0
    return info


def _from_users(client: DockerClient, wanted: str, tag: str) -> None:
    """``tag`` is made as the user's image without its entrypoint and its /testbed, over an image ``<tag>-plain``."""
    from docker.errors import DockerException

    if not images.has_image(client, wanted):
        raise BadInput(f"--image {wanted} is not on this machine; get it with: {images.how_to_get(wanted)}")
    repository, _, name = tag.partition(":")
    container = None
    try:
        container = client.containers.create(
            wanted,
            command=["true"],
            network_mode="none",
            labels={images.LABEL: "1", "protege.run": images.owner(), "protege.kind": "build"},
        )
        # not a build: it would leave an untagged image for each line of its Dockerfile; and a commit keeps the old
        # entrypoint where the new one is empty
        container.commit(
            repository,
            f"{name}-plain",
            changes=["USER root", 'ENTRYPOINT ["/usr/bin/env"]', f'LABEL {images.LABEL}=1 protege.run=""'],
        )
    except DockerException as error:
        raise SandboxError(f"building on --image {wanted} failed: {error}") from error
    finally:
        if container is not None:
            container.remove(force=True, v=True)
    try:
        images.build_layer(client, tag, f"{tag}-plain", commands=[_TOOLS])
    except SandboxError as error:
        if "the image has no" in str(error) or "/bin/sh" in str(error):
            raise BadInput(
                f"--image {wanted} cannot be used: bash, git and python3 are needed in it: {str(error)[-300:]}"
            ) from error
        raise


def _remove(client: DockerClient, tag: str) -> None:
    """Remove an image of ours and whatever container of it an interruption has left."""
    try:
        if not images.has_image(client, tag):
            return
        for item in client.api.containers(all=True, filters={"ancestor": tag, "label": f"{images.LABEL}=1"}):
            client.api.remove_container(item["Id"], force=True, v=True)
        client.images.remove(tag, noprune=True)
    except Exception as error:  # whatever the engine says, the budget for images takes it later
        _log.warning("image %s could not be removed (a later start will): %s", tag, error)
