from __future__ import annotations

import subprocess
import sys

import pytest

from protege.errors import SandboxUnavailable
from protege.sandbox import rootfs
from protege.sandbox.bubblewrap import BubblewrapProvider, problem
from tests.sandbox.fixtures import PARAMS


@pytest.mark.parametrize("installed", [False, True])
def test_without_bubblewrap_one_sentence_says_what_to_install(installed, tiny, cache, monkeypatch, tmp_path):
    """Absent, or present and not allowed to make namespaces: nothing runs unconfined."""
    if installed:
        (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    problem.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="docker.io") as caught:
            BubblewrapProvider(PARAMS, tiny.testbeds)
    finally:
        problem.cache_clear()
    assert ("userns" if installed else "apt-get install bubblewrap") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_digest_follows_the_archive(tiny, cache, tmp_path):
    import shutil

    shutil.copytree(tiny.testbeds, tmp_path / "beds")
    one, two = (BubblewrapProvider(PARAMS, folder, tiny.site) for folder in (tiny.testbeds, tmp_path / "beds"))
    assert one.image_digest(tiny.instance) == two.image_digest(tiny.instance)
    archive = tmp_path / "beds" / f"{tiny.instance.instance_id}.tar.gz"
    archive.write_bytes(archive.read_bytes() + b"\0")
    assert one.image_digest(tiny.instance) != two.image_digest(tiny.instance)


def test_the_hosts_files_are_out_of_sight(make_provider, tiny):
    with make_provider("bubblewrap").open(tiny.instance) as sandbox:
        names = set(sandbox.exec("ls -A /").output.split())
        assert names <= {*".protege bin dev etc home lib lib64 opt proc root run sbin sys testbed tmp usr var".split()}
        assert sandbox.exec("ls /root /home/agent /tmp /etc/shadow 2>/dev/null | grep -v ':$' | grep .").output == ""
        assert sandbox.exec("ps axo uid= | sort -u | wc -l").output.strip() in {"1", "2"}


def test_folders_of_dead_owners_are_reaped(tiny, cache, make_provider):
    provider = make_provider("bubblewrap")
    code = (
        "import os, pathlib; from protege.sandbox.bubblewrap import BubblewrapProvider; from protege.config import SandboxParams\n"
        "from protege.core.instance import Instance\n"
        f"p = BubblewrapProvider(SandboxParams(), pathlib.Path({str(tiny.testbeds)!r}))\n"
        f"s = p.open(Instance.model_validate_json({tiny.instance.model_dump_json()!r})); print(s._dir, flush=True); os._exit(9)"
    )
    folder = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    from pathlib import Path

    assert folder and Path(folder).is_dir()
    with provider.open(tiny.instance) as mine:
        make_provider("bubblewrap")
        assert not Path(folder).exists() and mine.exec("true").exit_code == 0


def test_the_root_holds_no_third_party_package():
    digest, members = rootfs.host_root()
    assert len(digest) == 64
    names = {entry.name for entry in members}
    assert not [name for name in names if "site-packages/" in name or "dist-packages" in name]
    assert {"usr/bin/git", "usr/bin/patch", "usr/local/bin/python3", "etc/passwd"} <= names
