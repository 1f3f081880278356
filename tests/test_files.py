import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from protege.files import Store, digest, write_atomic


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = write_atomic(tmp_path / "x.json", "old")
    with pytest.raises(TypeError):
        write_atomic(target, None)
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["x.json"]


def test_a_reader_never_sees_half_a_file_when_the_writer_is_killed(tmp_path):
    script = textwrap.dedent(f"""
        from protege.files import write_atomic
        n = 0
        while True:
            n += 1
            write_atomic({str(tmp_path / "f")!r}, (str(n % 10) * 200_000))
    """)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", script])
        while not (tmp_path / "f").exists():
            time.sleep(0.01)
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        text = (tmp_path / "f").read_text()
        assert len(text) == 200_000 and len(set(text)) == 1


def test_store_treats_a_damaged_file_as_absent(tmp_path):
    store = Store(tmp_path)
    store.put("verdict", "abcd", {"resolved": True})
    assert store.get("verdict", "abcd") == {"resolved": True}
    store.path("verdict", "abcd").write_text('{"resolved": tr')
    assert store.get("verdict", "abcd") is None
    assert store.get("verdict", "ffff") is None


def test_digest_tells_content_apart():
    assert digest(["a"], "b") != digest("a", ["b"])
    assert digest({"x": 1.0}) != digest({"x": 1.5})
