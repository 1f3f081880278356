"""What an agent finds in its sandbox: no later history in git, no fixed copy of the package anywhere."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from protege.sandbox.copies import fixed_copies
from protege.sandbox.scrub import CHECK_GIT, ENSURE_GIT, SCRUB_GIT
from tests.adversarial.attack import ENV, git
from tests.sandbox.tiny import BUGGY

FIX = "return a + b  # the fix that nobody may see"


def bash(script: str, repo: Path) -> int:
    done = subprocess.run(
        ["bash", "-c", script.replace("/testbed", str(repo))], env=ENV, capture_output=True, check=False
    )
    return done.returncode


def contents(repo: Path) -> str:
    """Every object that the repository can still produce, and every file of its .git as text."""
    objects = git(repo, "cat-file", "--batch-all-objects", "--batch", "--buffer")
    files = "".join(p.read_bytes().decode(errors="replace") for p in (repo / ".git").rglob("*") if p.is_file())
    return objects + files


def fix(repo: Path, message: str = "later") -> str:
    (repo / "calc.py").write_text(BUGGY.replace("return a - b", FIX))
    git(repo, "commit", "-qam", message)
    return git(repo, "rev-parse", "HEAD")


def later_branch(repo: Path, start: str) -> None:
    git(repo, "branch", "next", fix(repo))
    git(repo, "reset", "-q", "--hard", start)


def tags(repo: Path, start: str) -> None:
    git(repo, "tag", "-a", "v2", "-m", FIX, fix(repo))
    git(repo, "reset", "-q", "--hard", start)


def reflog_only(repo: Path, start: str) -> None:
    fix(repo)
    git(repo, "reset", "-q", "--hard", start)


def dangling(repo: Path, start: str) -> None:
    reflog_only(repo, start)
    git(repo, "reflog", "expire", "--expire=now", "--all")
    for name in ("ORIG_HEAD", "COMMIT_EDITMSG"):
        (repo / ".git" / name).unlink(missing_ok=True)
    (repo / ".git" / "logs").rename(repo.parent / "logs-away")


def packed(repo: Path, start: str) -> None:
    tags(repo, start)
    git(repo, "gc", "-q")
    for pack in (repo / ".git" / "objects" / "pack").glob("*.pack"):
        pack.with_suffix(".keep").touch()


def stash(repo: Path, start: str) -> None:
    (repo / "calc.py").write_text(BUGGY.replace("return a - b", FIX))
    git(repo, "stash", "-q")


def remote(repo: Path, start: str) -> None:
    other = repo.parent / "other"
    git(repo, "clone", "-q", str(repo), str(other))
    fix(other)
    git(repo, "remote", "add", "origin", str(other))
    git(repo, "fetch", "-q", "origin")


def detached(repo: Path, start: str) -> None:
    fix(repo)
    git(repo, "checkout", "-q", start)


def alternates(repo: Path, start: str) -> None:
    other = repo.parent / "store"
    git(repo, "clone", "-q", "--bare", str(repo), str(other))
    work = repo.parent / "work"
    git(repo, "clone", "-q", str(other), str(work))
    fix(work)
    git(work, "push", "-q", "origin", "HEAD:refs/heads/next")
    (repo / ".git" / "objects" / "info" / "alternates").write_text(f"{other}/objects\n")


def notes(repo: Path, start: str) -> None:
    git(repo, "notes", "add", "-m", FIX, start)


WAYS = [later_branch, tags, reflog_only, dangling, packed, stash, remote, detached, alternates, notes]


@pytest.fixture
def repo(tmp_path: Path, tiny) -> Path:
    copy = tmp_path / "testbed"
    shutil.copytree(tiny.testbeds.parent / "testbed", copy)
    git(copy, "config", "core.logAllRefUpdates", "true")
    return copy


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_no_later_history_is_left(repo: Path, way) -> None:
    start = git(repo, "rev-parse", "HEAD")
    way(repo, start)
    assert FIX in contents(repo)
    assert bash(CHECK_GIT, repo) == 4
    assert bash(ENSURE_GIT, repo) == 0
    assert FIX not in contents(repo)
    assert git(repo, "rev-parse", "HEAD") == start == git(repo, "log", "--all", "--reflog", "--format=%H")
    assert git(repo, "fsck", "--full", "--unreachable", "--dangling", "--no-progress") == ""
    assert git(repo, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    assert (
        git(repo, "reflog")
        == git(repo, "remote")
        == git(repo, "stash", "list")
        == git(repo, "status", "--porcelain")
        == ""
    )
    assert bash(CHECK_GIT, repo) == 0


def test_a_clean_repository_is_left_alone(repo: Path) -> None:
    shutil.rmtree(repo / ".git" / "logs", ignore_errors=True)
    (repo / ".git" / "COMMIT_EDITMSG").unlink(missing_ok=True)
    before = {p: p.read_bytes() for p in (repo / ".git").rglob("*") if p.is_file()}
    assert bash(ENSURE_GIT, repo) == 0
    assert {p: p.read_bytes() for p in (repo / ".git").rglob("*") if p.is_file()} == before


def test_local_changes_and_the_index_survive(repo: Path) -> None:
    start = git(repo, "rev-parse", "HEAD")
    tags(repo, start)
    (repo / "staged.py").write_text("X = 1\n")
    git(repo, "add", "staged.py")
    (repo / "calc.py").write_text("changed\n")
    assert bash(SCRUB_GIT, repo) == 0
    assert git(repo, "status", "--porcelain") == "M calc.py\nA  staged.py"
    assert git(repo, "show", ":staged.py") == "X = 1"


def test_no_repository_is_said(tmp_path: Path) -> None:
    assert bash(ENSURE_GIT, tmp_path) == 3


def zipped(name: str, text: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return raw.getvalue()


def tarred(name: str, data: bytes) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


FIXED = BUGGY.replace("return a - b", "return a + b")
COPIES = {
    "installed": ("/home/agent/.local/lib/python3/site-packages/calc.py", FIXED.encode()),
    "build folder": ("build/lib/calc.py", FIXED.encode()),
    "wheel": ("/home/agent/.cache/pip/wheels/ab/calc-2-py3-none-any.whl", zipped("calc.py", FIXED)),
    "pip's http cache": (
        "/home/agent/.cache/pip/http-v2/a/b/abcdef.body",
        b"cc=4,header\r\n" + zipped("calc.py", FIXED),
    ),
    "egg": ("dist/calc-2.egg", zipped("calc.py", FIXED)),
    "source package": ("/tmp/calc-2.tar.gz", tarred("calc-2/src/calc.py", FIXED.encode())),
    "wheel in a tar": ("/tmp/all.tar.gz", tarred("calc-2.whl", zipped("calc.py", FIXED))),
    "stale byte code": ("__pycache__/calc.cpython-311.pyc", b"\xa7\r\r\n" + bytes(4) + b"\x01" * 8 + b"rest"),
}


def test_fixed_copies_are_found_and_a_clean_box_has_none(provider, tiny):
    with provider.open(tiny.instance) as box:
        assert fixed_copies(box, tiny.instance) == []
        for path, data in COPIES.values():
            box.write(path, data)
        box.write("/tmp/elsewhere/calc.py", BUGGY.encode())
        box.write("/tmp/other.whl", zipped("calc.py", BUGGY))
        found = fixed_copies(box, tiny.instance)
    wanted = [path if path.startswith("/") else f"/testbed/{path}" for path, _ in COPIES.values()]
    assert sorted({name.split("!")[0] for name in found}) == sorted(wanted)


def test_neither_backend_shows_later_history(make_provider, tiny, tmp_path, provider):
    """The whole way: an image (or archive) with the fix in a tag, a branch and the reflog, opened for an agent."""
    shutil.copytree(tiny.testbeds.parent / "testbed", tmp_path / "testbed")
    repo = tmp_path / "testbed"
    git(repo, "config", "core.logAllRefUpdates", "true")
    start = git(repo, "rev-parse", "HEAD")
    tags(repo, start)
    later_branch(repo, start)
    dirty = dirty_instance(provider, tiny, tmp_path)
    try:
        with dirty.open(tiny.instance) if provider.backend == "bubblewrap" else provider.open(dirty) as box:
            assert box.exec("git rev-list --all --reflog HEAD").output.split() == [start]
            assert FIX not in box.exec("git cat-file --batch-all-objects --batch").output
            assert box.exec("git fsck --unreachable --no-progress 2>&1; git tag; git reflog").output.strip() == ""
            assert FIX not in box.exec("git --git-dir=/.protege/git cat-file --batch-all-objects --batch").output
    finally:
        if provider.backend == "docker":
            provider.client.images.remove(dirty.image, force=True)


def dirty_instance(provider, tiny, folder: Path):
    if provider.backend == "bubblewrap":
        beds = folder / "beds"
        beds.mkdir()
        with tarfile.open(beds / f"{tiny.instance.instance_id}.tar.gz", "w:gz") as tar:
            tar.add(folder / "testbed", "testbed")
        return type(provider)(provider.params, beds, tiny.site)
    from protege.sandbox import images

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        tar.add(folder / "testbed", "testbed")
    name = f"{tiny.instance.image}-dirty"
    images.build_layer(provider.client, name, f"{tiny.instance.image}-site", raw.getvalue())
    return tiny.instance.model_copy(update={"image": name})
