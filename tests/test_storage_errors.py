"""Full disks, read-only disks, a file where a folder belongs: a clear error, and what was there is still there."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from protege.errors import StorageError
from protege.files import Store, read_json, storage_errors, write_atomic, write_json
from tests.helpers import start_server

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_the_old_file_stays(small_disk: Path) -> None:
    path = write_json(small_disk / "store/value.json", {"old": True})
    with pytest.raises(StorageError, match="disk is full") as caught:
        write_atomic(path, b"x" * 2_000_000)
    assert str(path) in str(caught.value) and "df -h" in str(caught.value)
    assert caught.value.errno == errno.ENOSPC and not caught.value.retryable and caught.value.boundary == "input"
    assert read_json(path) == {"old": True}
    assert [p.name for p in path.parent.iterdir()] == ["value.json"], "no half-written file is left"
    write_json(path, {"old": False})  # once there is room again
    assert read_json(path) == {"old": False}


def test_a_read_only_cache_is_said_and_can_still_be_read(small_disk: Path) -> None:
    store = Store(small_disk)
    store.put("verdict", "ab12", {"resolved": True})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match="read-only"):
        store.put("verdict", "cd34", {})
    assert store.get("verdict", "ab12") == {"resolved": True}


def test_a_file_where_a_folder_belongs(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError, match="a file stands where a folder belongs"):
        write_json(tmp_path / "cache/protege/value.json", {})


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(FileNotFoundError), storage_errors("x"):
        raise FileNotFoundError(errno.ENOENT, "gone")
    with pytest.raises(StorageError) as caught, storage_errors("outer"), storage_errors("inner"):
        raise OSError(errno.ENOSPC, "full")
    assert "inner" in str(caught.value), "the innermost path is the one that is named"


@pytest.mark.parametrize("spoil", ["file", "read-only"])
def test_a_cache_that_cannot_be_written_ends_the_server_s_start_in_one_line(spoil: str, small_disk: Path) -> None:
    if spoil == "file":
        (small_disk / ".cache").write_text("")
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = start_server(small_disk, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("prefect: .cache/protege/") and "cannot be written" in done.stderr
