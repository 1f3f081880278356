"""The image budget against the real engine, on throw-away images with a label of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protege.sandbox import budget, images

KB = 1000


class Images:
    """Builds small images under one label and removes them, whatever the test did."""

    def __init__(self, folder: Path) -> None:
        self.client = images.docker_client()
        self.run = uuid.uuid4().hex[:10]
        self.label = f"protege.budget-test={self.run}"
        self.folder = folder
        self.base = images.base_image(self.client, "host")
        self.tags: list[str] = []
        self.trespasses: list[str] = []
        self._plain_remove = self.client.api.remove_image
        self.client.api.remove_image = self._remove_own  # type: ignore[method-assign]

    def _remove_own(self, name: str, **kwargs: object) -> object:
        """The engine is shared: a fault in what is tested must not reach images that this test did not make."""
        if name not in self.tags:
            self.trespasses.append(name)
            raise AssertionError(f"the test tried to remove {name}, which is not its own")
        return self._plain_remove(name, **kwargs)

    def make(self, name: str, kilobytes: int = 100, parent: str = "", ours: bool = True, tag: str = "") -> str:
        tag = tag or f"protege-budget-test:{self.run}-{name}"
        labels = dict([self.label.split("=")]) if ours else {}
        tar = images.make_tar({f"opt/{name}": os.urandom(kilobytes * KB)})
        self.tags.append(tag)
        images.build_layer(self.client, tag, parent or self.base, tar, labels=labels)
        return tag

    def prune(self, budget_kb: float, keep: set[str] | frozenset[str] = frozenset()) -> set[str]:
        gone = budget.prune(self.client, budget_kb * KB, keep, label=self.label, folder=self.folder)
        return {tag.rpartition("-")[2] for item in gone for tag in item.tags}

    def usage(self) -> dict[str, budget.ImageUse]:
        return {tag: item for item in budget.usage(self.client, self.label) for tag in item.tags}

    def left(self) -> set[str]:
        return {tag.rpartition("-")[2] for tag in self.tags if images.has_image(self.client, tag)}

    def close(self) -> None:
        for tag in reversed(self.tags):
            if images.has_image(self.client, tag):
                self.client.images.remove(tag, force=True)


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Images]:
    opened = Images(tmp_path / "images")
    yield opened
    opened.close()
    assert opened.trespasses == []


def _claim_in_another_process(ours: Images, tag: str, then: str = "") -> subprocess.Popen[str]:
    """Another process of ours works with the image; it says so once it does."""
    code = (
        "import sys; from pathlib import Path; from protege.sandbox import budget\n"
        f"budget.claim([{tag!r}], folder=Path({str(ours.folder)!r})); print('claimed', flush=True); {then}"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "claimed\n"
    return process


@pytest.mark.docker
def test_the_least_recently_used_go_first_and_only_as_many_as_needed(ours: Images) -> None:
    tags = {name: ours.make(name) for name in ("a", "b", "c")}
    budget.touch(ours.client, tags["a"])
    assert [tag.rpartition("-")[2] for tag in ours.usage() if tag in ours.tags] == ["b", "c", "a"]
    assert ours.prune(250) == {"b"}
    assert ours.left() == {"a", "c"}
    assert ours.prune(250) == set()


@pytest.mark.docker
def test_the_bytes_are_the_engines_own_and_shared_layers_count_once(ours: Images) -> None:
    parent = ours.make("parent", 300)
    children = [ours.make(name, 100, parent) for name in ("x", "y")]
    found = ours.usage()
    size = {tag: ours.client.api.inspect_image(tag)["Size"] for tag in (parent, *children)}
    own = [size[child] - size[parent] for child in children]
    assert [sum(found[child].layers.values()) - sum(found[parent].layers.values()) for child in children] == own
    base = ours.client.api.inspect_image(ours.base)["Size"]
    assert budget.bytes_of_ours(list(found.values())) == size[parent] - base + sum(own)


@pytest.mark.docker
@pytest.mark.parametrize("state", ["created", "running", "exited"])
def test_an_image_with_a_container_stays(ours: Images, state: str) -> None:
    tag = ours.make("a")
    ours.make("b")
    labels = {images.LABEL: "1", "protege.run": images.owner()}
    command = ["/bin/sleep", "60"] if state == "running" else ["/bin/true"]
    container = ours.client.containers.create(tag, command, network_mode="none", labels=labels)
    try:
        if state != "created":
            container.start()
        if state == "exited":
            container.wait(timeout=60)
        assert ours.usage()[tag].in_use
        assert ours.prune(0) == {"b"}
        assert ours.left() == {"a"}
    finally:
        container.remove(force=True)
    assert ours.prune(0) == {"a"}


@pytest.mark.docker
def test_the_instances_of_the_running_stage_stay_and_so_does_the_agents_layer(ours: Images) -> None:
    by_tag, by_id = ours.make("a"), images.image_id(ours.client, ours.make("b")) or ""
    handed = ours.make("c", parent=by_tag, tag=budget.agent_tag(images.image_id(ours.client, by_tag) or ""))
    ours.make("d")
    assert ours.prune(0, keep={by_tag, by_id}) == {"d"}
    assert images.has_image(ours.client, handed)
    assert {"a", "b"} <= ours.left()


@pytest.mark.docker
def test_a_parent_stays_while_a_child_does_and_goes_after_it(ours: Images) -> None:
    parent = ours.make("parent")
    child = ours.make("child", parent=parent)
    assert ours.prune(0, keep={child}) == set()
    assert ours.left() == {"parent", "child"}
    assert ours.prune(0) == {"child", "parent"}


@pytest.mark.docker
def test_a_parent_is_as_recent_as_its_newest_child(ours: Images) -> None:
    parent = ours.make("parent")
    ours.make("other")
    ours.make("child", parent=parent)
    assert ours.prune(250) == {"other"}
    found = ours.usage()
    assert found[parent].last_used == max(found[tag].last_used for tag in ours.tags if tag in found)
    assert ours.prune(150) == {"child"}


@pytest.mark.docker
def test_a_users_images_are_never_touched(ours: Images) -> None:
    mine = ours.make("mine", ours=False)
    parent = ours.make("parent")
    built = ours.make("built", parent=parent, tag=f"users-{ours.run}:built")  # inherits the label
    tagged = ours.make("tagged")
    ours.client.images.get(tagged).tag(f"users-{ours.run}", "tagged")
    ours.tags.append(f"users-{ours.run}:tagged")
    assert ours.prune(0) == set()
    assert all(images.has_image(ours.client, tag) for tag in (mine, parent, built, tagged, *ours.tags))


@pytest.mark.docker
def test_images_of_another_living_process_stay_until_it_ends(ours: Images) -> None:
    tag = ours.make("a")
    process = _claim_in_another_process(ours, tag, "sys.stdin.read()")
    assert ours.prune(0) == set()
    process.communicate()
    assert ours.prune(0) == {"a"}


@pytest.mark.docker
def test_a_claim_from_another_machine_lapses(ours: Images) -> None:
    tag = ours.make("a")
    ours.folder.mkdir()
    (ours.folder / "there").write_text(f"1.2@another-machine/pid:[3]\n{tag}", encoding="utf-8")
    assert ours.prune(0) == set()
    old = time.time() - budget.CLAIM_S - 1
    os.utime(ours.folder / "there", (old, old))
    assert ours.prune(0) == {"a"}


@pytest.mark.docker
def test_two_prunes_at_once_remove_no_more_than_one_would(ours: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdef":
        ours.make(name)
    plain: Callable[..., list[budget.ImageUse]] = budget.usage
    together = threading.Barrier(2)

    def both_have_looked(*args: object, **kwargs: object) -> list[budget.ImageUse]:
        found = plain(*args, **kwargs)
        together.wait(30)
        return found

    monkeypatch.setattr(budget, "usage", both_have_looked)
    removed: list[set[str]] = []
    threads = [threading.Thread(target=lambda: removed.append(ours.prune(350))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(removed) == 2 and removed[0] | removed[1] == {"a", "b", "c"}
    assert ours.left() == {"d", "e", "f"}


@pytest.mark.docker
def test_claims_of_ended_processes_are_dropped(ours: Images) -> None:
    tag = ours.make("a")
    for _ in range(3):
        _claim_in_another_process(ours, tag).communicate()
    assert len(list(ours.folder.iterdir())) == 3
    ours.prune(10**6)
    assert list(ours.folder.iterdir()) == []


@pytest.mark.docker
def test_a_broken_claim_protects_nothing(ours: Images) -> None:
    ours.make("a")
    ours.folder.mkdir()
    (ours.folder / "half").write_bytes(b"\xff\xfe123")
    assert ours.prune(0) == {"a"}


@pytest.mark.docker
def test_a_use_moves_no_tag(ours: Images) -> None:
    """Tagging again must not bring a tag back that another process has given to a newer image since."""
    tag = ours.make("a")
    newer = images.image_id(ours.client, ours.make("b")) or ""
    ours.client.api.tag(newer, *tag.split(":"), force=True)
    before = ours.client.api.inspect_image(newer)["Metadata"]["LastTagTime"]
    budget.touch(ours.client, tag)
    assert images.image_id(ours.client, tag) == newer
    assert ours.client.api.inspect_image(newer)["Metadata"]["LastTagTime"] > before


def test_nothing_is_raised_without_an_engine_or_a_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import docker

    client = docker.DockerClient(base_url=f"unix://{tmp_path}/none.sock", version="1.41")
    assert budget.prune(client, 0, folder=tmp_path / "images") == []
    (tmp_path / "file").write_text("")
    budget.touch(client, "protege-x:1")
    budget.claim(["protege-x:1"], folder=tmp_path / "file")
    assert "could not be pruned" in caplog.text and caplog.text.count("could not be noted") == 2


def test_two_checkouts_see_each_others_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROTEGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        found.add(budget.claims_folder())
    assert found == {tmp_path / "cache" / "protege" / "images"}
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "own"))
    assert budget.claims_folder() == tmp_path / "own" / "images"
