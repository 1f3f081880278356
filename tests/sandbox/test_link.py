"""The connection to a runner, without a sandbox around it."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protege.sandbox import link as module
from protege.sandbox.link import Link, LinkBroken, command_line
from protege.sandbox.runner import FRAME
from tests.helpers import by


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def live(ends, tmp_path):
    """A link to the real runner as an ordinary process of ours."""
    ours, theirs = ends
    options = {"uid": None, "gid": None, "places": [], "disk_mb": 1000, "lifetime": 60, "limits": {}}
    argv = command_line(options)
    # the interpreter of the tests: the runner's own list names those of images
    argv[2] = f'exec {sys.executable} -ISB -c "$1" "$2" "$3"'
    process = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno(), cwd=tmp_path)
    theirs.close()
    link = Link(ours, multiplexed=False)
    link.wait_ready(30)
    yield link
    link.close()
    assert process.wait(60) == 0  # it ends with its stdin


def answer(number: int, output: bytes, **outcome: object) -> bytes:
    done = {"code": 0, "timed_out": False, "dropped": 0, "oom": False, "seconds": 0.1, **outcome}
    text = json.dumps(done).encode()
    return FRAME.pack(b"O", number, len(output)) + output + FRAME.pack(b"X", number, len(text)) + text


@given(st.data())
def test_an_answer_survives_any_cut(data):
    """The engine cuts the stream where it likes, and wraps it in headers of its own."""
    whole = answer(7, b"never asked") + answer(1, b"x" * 50) + answer(1, b"too late")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    multiplexed = data.draw(st.booleans())
    stream = b""
    for part in parts:
        stream += struct.pack(">BxxxL", 1, len(part)) + part if multiplexed else part
        if multiplexed and data.draw(st.booleans()):
            stream += struct.pack(">BxxxL", 2, 5) + b"noise"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Link(ours, multiplexed=multiplexed)
        step = data.draw(st.integers(5, 60))  # many tiny pieces would fill the socket
        for start in range(0, len(stream), step):
            theirs.sendall(stream[start : start + step])
        assert link.run(["a"], cwd="/", timeout=5, limit=20).stdout == b"x" * 20


def test_a_runner_that_says_nothing_breaks_the_link_and_not_the_caller(ends, monkeypatch):
    monkeypatch.setattr(module, "_GRACE_S", 0.2)
    link = Link(ends[0], multiplexed=False)
    with pytest.raises(LinkBroken, match="did not answer"):
        link.run(["a"], cwd="/", timeout=0.1, limit=10)
    with pytest.raises(LinkBroken, match="did not answer"):
        link.run(["a"], cwd="/", timeout=0.1, limit=10)


def test_a_runner_that_never_comes_up(ends):
    link = Link(ends[0], multiplexed=False)
    with pytest.raises(LinkBroken, match="did not come up"):
        link.wait_ready(0.3)


def test_the_last_words_of_a_runner_are_told(ends):
    link = Link(ends[0], multiplexed=True)
    ends[1].sendall(struct.pack(">BxxxL", 2, 20) + b"MemoryError at line ")
    ends[1].close()
    with pytest.raises(LinkBroken, match="MemoryError at line"):
        link.wait_ready(5)


def test_whoever_waits_is_told_when_another_thread_sees_the_end(ends):
    link = Link(ends[0], multiplexed=False)
    failures = []

    def run() -> None:
        try:
            link.run(["a"], cwd="/", timeout=30, limit=10)
        except LinkBroken as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    ends[1].close()
    for thread in threads:
        thread.join(60)
    assert len(failures) == 4


def test_the_real_runner(live, tmp_path):
    raw = live.run(
        ["/bin/sh", "-c", "cat; echo err >&2; exit 3"], cwd=str(tmp_path), timeout=20, limit=100, stdin=b"in"
    )
    assert (raw.exit_code, raw.stdout, raw.stderr, raw.timed_out) == (3, b"in", b"err\n", False)
    raw = live.run(
        ["/bin/sh", "-c", "echo $A; pwd"], cwd=str(tmp_path), timeout=20, limit=100, env={"A": "é"}, merged=True
    )
    assert raw.stdout == f"é\n{os.path.realpath(tmp_path)}\n".encode()
    raw = live.run(["/nowhere/at/all"], cwd="/", timeout=20, limit=100)
    assert raw.exit_code == 126 and b"nowhere" in raw.stderr
    raw = live.run(["/bin/sh", "-c", "echo a; sleep 60"], cwd="/", timeout=2, limit=100)
    assert raw.timed_out and raw.exit_code == 124 and raw.stdout == b"a\n"


def test_no_descriptor_is_left_behind(live):
    def count() -> int:
        raw = live.run(["/bin/sh", "-c", "ls /proc/$PPID/fd | wc -l"], cwd="/", timeout=20, limit=100)
        return int(raw.stdout)

    before = count()
    for _ in range(5):
        live.run(
            ["/bin/sh", "-c", "cat > /dev/null; echo x; echo y >&2"], cwd="/", timeout=20, limit=1, stdin=b"z" * 100_000
        )
        live.run(["/nowhere"], cwd="/", timeout=20, limit=1, stdin=b"z" * 100_000)
        live.run(["/bin/sh", "-c", "sleep 9"], cwd="/", timeout=0.1, limit=1, stdin=b"z" * 1_000_000)
    assert by(30, lambda: count() <= before)
