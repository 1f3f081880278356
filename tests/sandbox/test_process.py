from __future__ import annotations

import subprocess
import sys

import pytest

from protege.errors import SandboxUnavailable
from protege.sandbox import rootfs
from protege.sandbox.process import ProcessProvider, bubblewrap
from tests.sandbox.fixtures import PARAMS

needs_bwrap = pytest.mark.skipif(bubblewrap() is None, reason="bubblewrap does not work here")


@pytest.fixture
def plain(tiny, cache, monkeypatch):
    try:
        return ProcessProvider(PARAMS, tiny.testbeds, tiny.site, isolate=False)
    except SandboxUnavailable:
        monkeypatch.setattr("protege.sandbox.process.reachable_by_others", lambda path: True)
        return ProcessProvider(PARAMS, tiny.testbeds, tiny.site, isolate=False)


def test_plain_processes_say_what_they_do_not_protect(plain, tiny):
    assert "network" in plain.limits and "bubblewrap" in plain.limits
    with plain.open(tiny.instance) as sandbox:
        result = sandbox.exec("pwd; id -u; cat calc.py | head -1")
        assert result.output.splitlines()[0] == sandbox.workdir and result.output.splitlines()[1] != "0"
        sandbox.write("calc.py", sandbox.read("calc.py").replace(b"a - b", b"a + b"))
        sandbox.exec("rm -rf .git")
        assert "+    return a + b" in sandbox.diff()


def test_plain_processes_are_killed_wherever_they_go(plain, tiny):
    with plain.open(tiny.instance) as sandbox:
        result = sandbox.exec("(setsid sleep 311 &); sleep 312", timeout=1)
        assert result.timed_out
        sandbox.exec("(setsid sleep 313 > /dev/null 2>&1 &)")
        left = subprocess.run(["ps", "axo", "args"], capture_output=True, text=True).stdout
        assert not [line for line in left.splitlines() if line.startswith("sleep 31")]


def test_root_does_not_run_commands_as_root_without_isolation(tiny, cache, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("protege.sandbox.process.reachable_by_others", lambda path: False)
    with pytest.raises(SandboxUnavailable, match="bubblewrap"):
        ProcessProvider(PARAMS, tiny.testbeds, isolate=False)


@needs_bwrap
def test_the_digest_follows_the_archive(tiny, cache, tmp_path):
    import shutil

    shutil.copytree(tiny.testbeds, tmp_path / "beds")
    one, two = (ProcessProvider(PARAMS, folder, tiny.site) for folder in (tiny.testbeds, tmp_path / "beds"))
    assert one.image_digest(tiny.instance) == two.image_digest(tiny.instance)
    archive = tmp_path / "beds" / f"{tiny.instance.instance_id}.tar.gz"
    archive.write_bytes(archive.read_bytes() + b"\0")
    assert one.image_digest(tiny.instance) != two.image_digest(tiny.instance)


@needs_bwrap
def test_the_hosts_files_are_out_of_sight(make_provider, tiny):
    with make_provider("process").open(tiny.instance) as sandbox:
        names = set(sandbox.exec("ls -A /").output.split())
        assert names <= {*".protege bin dev etc home lib lib64 opt proc root run sbin sys testbed tmp usr var".split()}
        assert sandbox.exec("ls /root /home/agent /tmp /etc/shadow 2>/dev/null | grep -v ':$' | grep .").output == ""
        assert sandbox.exec("ps axo uid= | sort -u | wc -l").output.strip() in {"1", "2"}


@needs_bwrap
def test_folders_of_dead_owners_are_reaped(tiny, cache, make_provider):
    provider = make_provider("process")
    code = (
        "import os, pathlib; from protege.sandbox.process import ProcessProvider; from protege.sandbox.base import SandboxParams\n"
        "from protege.core.instance import Instance\n"
        f"p = ProcessProvider(SandboxParams(), pathlib.Path({str(tiny.testbeds)!r}))\n"
        f"s = p.open(Instance.model_validate_json({tiny.instance.model_dump_json()!r})); print(s._dir, flush=True); os._exit(9)"
    )
    folder = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    from pathlib import Path

    assert folder and Path(folder).is_dir()
    with provider.open(tiny.instance) as mine:
        make_provider("process")
        assert not Path(folder).exists() and mine.exec("true").exit_code == 0


def test_the_root_holds_no_third_party_package():
    digest, members = rootfs.host_root()
    assert len(digest) == 64
    names = {entry.name for entry in members}
    assert not [name for name in names if "site-packages/" in name or "dist-packages" in name]
    assert {"usr/bin/git", "usr/bin/patch", "usr/local/bin/python3", "etc/passwd"} <= names
