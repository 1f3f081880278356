"""Push, lose everything, pull: through a folder, and through a local S3 server."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.dvcstages import TransferFailed, collect_garbage, remote_address, transfer
from tests.nightly.project import Project

PIPELINE = """
stages:
  one:
    cmd: mkdir -p data/one && echo hello > data/one/a && echo world > data/one/b
    outs: [data/one]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "project").mkdir()
    made = Project(tmp_path / "project", PIPELINE)
    made.run("dvc", "repro")
    monkeypatch.chdir(made.folder)
    return made


def lose(project: Project) -> None:
    shutil.rmtree(project.folder / "data/one")
    shutil.rmtree(project.folder / ".dvc/cache")


def test_a_folder_as_remote_gives_everything_back_and_lets_the_cache_shrink(project: Project, tmp_path: Path) -> None:
    remote = str(tmp_path / "remote")
    assert "pushed" in transfer("push", remote)
    lose(project)
    transfer("pull", remote)
    assert (project.folder / "data/one/b").read_text() == "world\n"
    (project.folder / "dvc.yaml").write_text(PIPELINE.replace("hello", "other"))
    project.run("dvc", "repro")
    cached = {p for p in (project.folder / ".dvc/cache/files").rglob("*") if p.is_file()}
    assert collect_garbage("never", True) == "kept"
    assert "pushed nothing" in collect_garbage("pushed", False)
    assert all(p.exists() for p in cached)
    collect_garbage("pushed", True)
    assert sum(not p.exists() for p in cached) == 2, "the first 'a' and its listing"
    shutil.rmtree(project.folder / "data/one")
    project.run("dvc", "checkout")
    assert (project.folder / "data/one/a").read_text() == "other\n", "what the workspace uses stays"


def test_a_remote_that_is_away_is_an_error_with_its_address(project: Project) -> None:
    with pytest.raises(TransferFailed, match="dvc push with /proc/nowhere failed"):
        transfer("push", "/proc/nowhere")


def test_the_environment_names_the_remote_before_params_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROTEGE_REMOTE", raising=False)
    assert remote_address("s3://a/b") == "s3://a/b"
    monkeypatch.setenv("PROTEGE_REMOTE", "/elsewhere")
    assert remote_address("s3://a/b") == "/elsewhere"


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a local server (moto), and an environment that reaches it."""
    pytest.importorskip("moto", reason="needs moto (the extra dev) ")
    pytest.importorskip("dvc_s3", reason="needs dvc-s3 (the extra s3)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                request = urllib.request.Request(f"{url}/bucket", method="PUT", headers={"Authorization": KEY})
                with urllib.request.urlopen(request, timeout=5):
                    break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "moto does not start"
                time.sleep(0.2)
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield url
    finally:
        server.kill()
        server.wait()


KEY = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


def test_an_s3_bucket_as_remote_gives_everything_back(project: Project, s3: str) -> None:
    address = "s3://bucket/project"
    assert "pushed" in transfer("push", address)
    lose(project)
    assert re.search(r"fetched|added", transfer("pull", address))
    assert (project.folder / "data/one/a").read_text() == "hello\n"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in (project.folder / ".dvc/config").read_text()
    with pytest.raises(TransferFailed, match="s3://no-such-bucket"):
        transfer("push", "s3://no-such-bucket/x")
