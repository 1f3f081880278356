"""The image budget against the real engine, on throw-away images with a label of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protege.sandbox import budget, images

KB = 1000


class Box:
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

    def make(
        self, name: str, kilobytes: int = 100, parent: str = "", ours: bool = True, tag: str = "", touch: bool = True
    ) -> str:
        tag = tag or f"protege-budget-test:{self.run}-{name}"
        labels = dict([self.label.split("=")]) if ours else {}
        tar = images.make_tar({f"opt/{name}": os.urandom(kilobytes * KB)})
        self.tags.append(tag)
        found = images.build_layer(self.client, tag, parent or self.base, tar, labels=labels)
        if touch:
            budget.touch(found, tag, folder=self.folder)
        return tag

    def prune(self, budget_kb: float, keep: set[str] | frozenset[str] = frozenset()) -> set[str]:
        gone = budget.prune(self.client, budget_kb * KB, keep, label=self.label, folder=self.folder)
        return {tag.rpartition("-")[2] for item in gone for tag in item.tags}

    def usage(self) -> dict[str, budget.ImageUse]:
        return {tag: item for item in budget.usage(self.client, self.label, folder=self.folder) for tag in item.tags}

    def left(self) -> set[str]:
        return {tag.rpartition("-")[2] for tag in self.tags if images.has_image(self.client, tag)}

    def close(self) -> None:
        for tag in reversed(self.tags):
            if images.has_image(self.client, tag):
                self.client.images.remove(tag, force=True)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    opened = Box(tmp_path / "images")
    yield opened
    opened.close()
    assert opened.trespasses == []


def _touch_elsewhere(box: Box, tag: str, then: str = "") -> subprocess.Popen[str]:
    """Another process of ours uses the image; it says so once it has."""
    found = images.image_id(box.client, tag)
    code = (
        "import sys; from pathlib import Path; from protege.sandbox import budget\n"
        f"budget.touch({found!r}, {tag!r}, folder=Path({str(box.folder)!r})); print('used', flush=True); {then}"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "used\n"
    return process


@pytest.mark.docker
def test_the_least_recently_used_go_first_and_only_as_many_as_needed(box: Box) -> None:
    tags = {name: box.make(name) for name in ("a", "b", "c")}
    budget.touch(images.image_id(box.client, tags["a"]) or "", tags["a"], folder=box.folder)
    assert [tag.rpartition("-")[2] for tag in box.usage() if tag in box.tags] == ["b", "c", "a"]
    assert box.prune(250) == {"b"}
    assert box.left() == {"a", "c"}
    assert box.prune(250) == set()
    assert len(list(box.folder.iterdir())) == 2, "the journal forgets what is gone"


@pytest.mark.docker
def test_the_bytes_are_the_engines_own_and_shared_layers_count_once(box: Box) -> None:
    parent = box.make("parent", 300)
    children = [box.make(name, 100, parent) for name in ("x", "y")]
    found = box.usage()
    size = {tag: box.client.api.inspect_image(tag)["Size"] for tag in (parent, *children)}
    own = [size[child] - size[parent] for child in children]
    assert [found[child].unique_bytes for child in children] == own
    assert found[parent].unique_bytes == 0
    base = box.client.api.inspect_image(box.base)["Size"]
    assert budget.bytes_of_ours(list(found.values())) == size[parent] - base + sum(own)


@pytest.mark.docker
@pytest.mark.parametrize("state", ["created", "running", "exited"])
def test_an_image_with_a_container_stays(box: Box, state: str) -> None:
    tag = box.make("a")
    box.make("b")
    labels = {images.LABEL: "1", "protege.run": images.owner()}
    command = ["/bin/sleep", "60"] if state == "running" else ["/bin/true"]
    container = box.client.containers.create(tag, command, network_mode="none", labels=labels)
    try:
        if state != "created":
            container.start()
        if state == "exited":
            container.wait(timeout=60)
        assert box.usage()[tag].in_use
        assert box.prune(0) == {"b"}
        assert box.left() == {"a"}
    finally:
        container.remove(force=True)
    assert box.prune(0) == {"a"}


@pytest.mark.docker
def test_the_instances_of_the_running_stage_stay_and_so_does_the_agents_layer(box: Box) -> None:
    by_tag, by_id = box.make("a"), images.image_id(box.client, box.make("b")) or ""
    handed = box.make("c", parent=by_tag, tag=budget.agent_tag(images.image_id(box.client, by_tag) or ""))
    box.make("d")
    assert box.prune(0, keep={by_tag, by_id}) == {"d"}
    assert images.has_image(box.client, handed)
    assert {"a", "b"} <= box.left()


@pytest.mark.docker
def test_a_parent_stays_while_a_child_does_and_goes_after_it(box: Box) -> None:
    parent = box.make("parent")
    child = box.make("child", parent=parent)
    assert box.prune(0, keep={child}) == set()
    assert box.left() == {"parent", "child"}
    assert box.prune(0) == {"child", "parent"}


@pytest.mark.docker
def test_a_parent_is_as_recent_as_its_newest_child(box: Box) -> None:
    parent = box.make("parent")
    box.make("other")
    box.make("child", parent=parent)
    assert box.prune(250) == {"other"}
    found = box.usage()
    assert found[parent].last_used == max(found[tag].last_used for tag in box.tags if tag in found)
    assert box.prune(150) == {"child"}


@pytest.mark.docker
def test_a_users_images_are_never_touched(box: Box) -> None:
    mine = box.make("mine", ours=False, touch=False)
    parent = box.make("parent")
    built = box.make("built", parent=parent, tag=f"users-{box.run}:built")  # inherits the label
    tagged = box.make("tagged")
    box.client.images.get(tagged).tag(f"users-{box.run}", "tagged")
    box.tags.append(f"users-{box.run}:tagged")
    assert box.prune(0) == set()
    assert all(images.has_image(box.client, tag) for tag in (mine, parent, built, tagged, *box.tags))


@pytest.mark.docker
def test_what_we_pulled_is_ours_without_a_label(box: Box) -> None:
    tag = box.make("pulled", ours=False, touch=False, tag=f"sweb.eval.{box.run}:latest")
    found = images.image_id(box.client, tag) or ""
    budget.touch(found, tag.removesuffix(":latest"), folder=box.folder)
    assert box.prune(0) == set(), "used, but not brought by us"
    budget.touch(found, tag.removesuffix(":latest"), pulled=True, folder=box.folder)
    budget.touch(found, tag, folder=box.folder)
    assert [item.id for item in budget.prune(box.client, 0, label=box.label, folder=box.folder)] == [found]
    assert not images.has_image(box.client, tag)


@pytest.mark.docker
def test_images_of_another_living_process_stay_until_it_ends(box: Box) -> None:
    tag = box.make("a", touch=False)
    process = _touch_elsewhere(box, tag, "sys.stdin.read()")
    assert box.prune(0) == set()
    process.communicate()
    assert box.prune(0) == {"a"}


@pytest.mark.docker
def test_two_prunes_at_once_remove_no_more_than_one_would(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdef":
        box.make(name)
    plain: Callable[..., list[budget.ImageUse]] = budget.usage
    together = threading.Barrier(2)

    def both_have_looked(*args: object, **kwargs: object) -> list[budget.ImageUse]:
        found = plain(*args, **kwargs)
        together.wait(30)
        return found

    monkeypatch.setattr(budget, "usage", both_have_looked)
    removed: list[set[str]] = []
    threads = [threading.Thread(target=lambda: removed.append(box.prune(350))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(removed) == 2 and removed[0] | removed[1] == {"a", "b", "c"}
    assert box.left() == {"d", "e", "f"}


@pytest.mark.docker
def test_notes_of_ended_processes_are_dropped_but_for_the_last(box: Box) -> None:
    tag = box.make("a", touch=False)
    for _ in range(3):
        _touch_elsewhere(box, tag).communicate()
    assert len(list(box.folder.iterdir())) == 3
    before = box.usage()[tag].last_used
    box.prune(10**6)
    assert len(list(box.folder.iterdir())) == 1
    assert box.usage()[tag].last_used == before


@pytest.mark.docker
def test_a_broken_journal_costs_the_order_only(box: Box) -> None:
    box.make("a")
    for path in box.folder.iterdir():
        path.write_text('{"image": "sha2')
    assert box.prune(0) == {"a"}


def test_nothing_is_raised_without_an_engine_or_a_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import docker

    client = docker.DockerClient(base_url=f"unix://{tmp_path}/none.sock", version="1.41")
    assert budget.prune(client, 0, folder=tmp_path / "images") == []
    (tmp_path / "file").write_text("")
    budget.touch("sha256:00", "protege-x:1", folder=tmp_path / "file")
    assert "could not be pruned" in caplog.text and "could not be noted" in caplog.text


def test_two_checkouts_share_one_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROTEGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        found.add(budget.journal_folder())
    assert found == {tmp_path / "cache" / "protege" / "images"}
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "own"))
    assert budget.journal_folder() == tmp_path / "own" / "images"
