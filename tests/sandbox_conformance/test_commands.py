"""What ``exec`` promises, for every backend."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from protege.sandbox.base import ExecResult


def test_exit_codes(sandbox):
    assert sandbox.exec("true").exit_code == 0
    assert sandbox.exec("exit 7").exit_code == 7
    assert sandbox.exec("no-such-command").exit_code == 127
    assert sandbox.exec("kill -9 $$").exit_code == 137
    assert sandbox.exec("kill -15 $$").exit_code == 143
    assert sandbox.exec("if [").exit_code == 2


def test_streams_are_interleaved_in_order(sandbox):
    result = sandbox.exec("for i in 1 2 3; do echo out$i; echo err$i >&2; done")
    assert result.output == "out1\nerr1\nout2\nerr2\nout3\nerr3\n"
    assert not result.timed_out and result.dropped_bytes == 0 and 0 < result.seconds < 20


def test_starts_in_the_repository_every_time(sandbox):
    assert sandbox.exec("pwd").output.strip() == sandbox.workdir
    sandbox.exec("cd /tmp && export LEFT=over")
    assert sandbox.exec('pwd; echo "[$LEFT]"').output == f"{sandbox.workdir}\n[]\n"
    assert sandbox.exec("git log --oneline | wc -l; git status --porcelain").output.strip() == "1"


def test_environment(sandbox, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-ours")
    output = sandbox.exec("env", env={"GIVEN": "a b\n'c'"}).output
    assert "GIVEN=a b\n'c'" in output and "secret-of-ours" not in output
    assert sandbox.exec('echo "$LANG"; test -w "$HOME" && echo home').output == "C.UTF-8\nhome\n"


def test_stdin(sandbox):
    data = bytes(range(256)) * 4096  # 1 MiB: more than a pipe holds, both ways
    assert sandbox.exec("md5sum | cut -c1-32", stdin=data).output.strip() == __import__("hashlib").md5(data).hexdigest()
    assert sandbox.exec("cat", stdin=b"").output == ""
    assert sandbox.exec("cat; echo none").output == "none\n"  # no stdin: an end of file, not a wait
    assert sandbox.exec("exec <&-; sleep 0.3; echo fine", stdin=data).output == "fine\n"


def test_output_that_is_not_utf8(sandbox):
    result = sandbox.exec(r"printf 'caf\xe9 \xff\xfe ok é\n'")
    assert result.exit_code == 0 and "\ufffd" in result.output and result.output.endswith("ok é\n")


def test_huge_output_is_bounded_and_counted(sandbox):
    result = sandbox.exec("head -c 30000000 /dev/zero | tr '\\0' x; echo; echo end")
    assert result.exit_code == 0
    assert len(result.output) == sandbox.params.max_output_bytes
    assert result.dropped_bytes == 30_000_005 - sandbox.params.max_output_bytes


def test_endless_output_ends_by_its_timeout(sandbox):
    started = time.monotonic()
    result = sandbox.exec("yes", timeout=2)
    assert result.timed_out and result.exit_code == 124 and result.dropped_bytes > 0
    assert len(result.output) <= sandbox.params.max_output_bytes
    assert time.monotonic() - started < 60
    assert sandbox.exec("echo alive").output == "alive\n"


def test_a_timeout_kills_children_and_grandchildren_and_says_so(sandbox):
    started = time.monotonic()
    result = sandbox.exec(
        "echo before; sleep 301 & (setsid bash -c 'setsid sleep 302 & sleep 303' &) ; sleep 304", timeout=1.5
    )
    assert result.timed_out and result.exit_code == 124 and result.output == "before\n"
    assert time.monotonic() - started < 60
    assert sandbox.exec("ps axo args | grep -E '^sleep 30[1234]' | wc -l").output.strip() == "0"


def test_a_timeout_that_ignores_signals(sandbox):
    result = sandbox.exec("trap '' TERM INT HUP; while :; do sleep 1; done", timeout=1)
    assert result.timed_out
    assert sandbox.exec("ps axo args | grep -c '[d]o sleep 1'").output.strip() == "0"


def test_a_fork_bomb_leaves_a_usable_sandbox(sandbox):
    sandbox.exec("echo kept > kept.txt")
    result = sandbox.exec("f() { f | f & }; f; sleep 60", timeout=2)
    assert result.timed_out
    assert sandbox.exec("cat kept.txt").output == "kept\n"


def test_a_background_process_does_not_hold_the_command_up(sandbox):
    started = time.monotonic()
    result = sandbox.exec("sleep 300 & echo back")
    assert (result.exit_code, result.output, result.timed_out) == (0, "back\n", False)
    assert time.monotonic() - started < 60


def test_a_command_that_closes_its_output_keeps_its_exit_code(sandbox):
    started = time.monotonic()
    result = sandbox.exec("echo early; exec >&- 2>&-; sleep 1; exit 5")
    assert (result.exit_code, result.output, result.timed_out) == (5, "early\n", False)
    assert time.monotonic() - started >= 1


def test_a_daemon_leaves_the_command(sandbox):
    result = sandbox.exec("nohup setsid sleep 300 >/dev/null 2>&1 < /dev/null & echo started")
    assert (result.exit_code, result.output) == (0, "started\n")


def test_what_no_shell_could_take_is_a_result(sandbox):
    assert sandbox.exec("echo " + "x" * 200_000).exit_code == 126
    assert sandbox.exec("echo a\0b").exit_code == 126
    assert sandbox.exec("").exit_code == 0
    assert sandbox.exec("echo " + "x" * 90_000).output == "x" * 90_000 + "\n"


def test_python_and_pytest_are_there(sandbox):
    assert sandbox.exec("python3 -c 'import calc; print(calc.double(4))'").output == "8\n"
    result = sandbox.exec("python -m pytest -q tests")
    assert result.exit_code == 0 and "1 passed" in result.output
    assert "1 passed" in sandbox.exec("pytest -q tests").output


def test_not_root_and_no_way_up(sandbox):
    assert sandbox.exec("id -u").output.strip() not in ("0", "")
    assert sandbox.exec("touch /usr/bin/x || touch /etc/x || touch /.protege/x").exit_code != 0
    assert sandbox.exec("grep -E 'CapEff|CapBnd|CapPrm' /proc/self/status | grep -v 0000000000000000").output == ""
    assert sandbox.exec("grep NoNewPrivs /proc/self/status | cut -f2").output.strip() == "1"


def test_no_network(sandbox):
    script = "import socket\ntry:\n socket.create_connection(('1.1.1.1', 53), 2)\n print('connected')\nexcept OSError as e: print('none')"
    assert sandbox.exec("python3 -", stdin=script.encode()).output == "none\n"
    assert sandbox.exec("tail -n +3 /proc/net/dev | grep -v ' lo:' | grep -v 'lo:' | wc -l").output.strip() == "0"


def test_no_installed_copy_of_packages(sandbox):
    """The host's site-packages must not be importable: they may hold the fixed version of what is to be fixed."""
    code = "import importlib.util as u; print([m for m in ('torch', 'docker', 'pip', 'swebench', 'yaml') if u.find_spec(m)])"
    assert sandbox.exec(f'python3 -c "{code}"').output == "[]\n"


def test_memory_limit(sandbox):
    result = sandbox.exec("python3 -c 'x = bytearray(2 * 10**9); print(len(x))'")
    assert result.exit_code != 0 and "2000000000" not in result.output
    assert "memory" in result.output.lower()
    assert sandbox.exec("echo alive").output == "alive\n"


def test_out_of_memory_is_told_apart_from_a_failing_command(sandbox):
    if sandbox.backend == "bubblewrap":
        pytest.skip("limits each process by ulimit: there malloc fails, and nothing is killed")
    result = sandbox.exec("python3 -c 'x = bytearray(2 * 10**9); print(len(x))'")
    assert result.exit_code == 137 and result.out_of_memory
    result = sandbox.exec("echo Killed; kill -9 $$")
    assert result.exit_code == 137 and not result.out_of_memory and "memory" not in result.output
    assert not sandbox.exec("true").out_of_memory


def test_a_full_disk_stops_the_command_and_not_the_sandbox(provider, tiny, make_provider):
    with make_provider(provider.backend, provider.params.model_copy(update={"disk_mb": 64})).open(
        tiny.instance
    ) as sandbox:
        result = sandbox.exec("dd if=/dev/zero of=one bs=1M count=200 2>&1")
        assert result.disk_full or "File too large" in result.output  # whichever sees it first
        assert int(sandbox.exec("stat -c %s one; rm one").output) <= 64 * 2**20
        result = sandbox.exec("for i in $(seq 1 400); do head -c 8000000 /dev/zero > part$i; done", timeout=60)
        assert result.disk_full and not result.timed_out and "more than 64 MB" in result.output
        assert sandbox.exec("rm part*; echo some room > note; cat note").output == "some room\n"


def test_commands_side_by_side(sandbox):
    def run(number: int) -> ExecResult:
        together = "touch here$N; until [ $(ls here* | wc -l) = 6 ]; do sleep 0.05; done".replace("$N", str(number))
        return sandbox.exec(f"for i in $(seq 1 300); do echo {number}; done; {together}; echo end; exit {number}")

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(run, range(6)))
    for number, result in enumerate(results):
        assert result.exit_code == number and result.output == f"{number}\n" * 300 + "end\n"


def test_a_timeout_beside_other_commands_ends_its_own_alone(sandbox):
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(sandbox.exec, "echo start; sleep 3; echo end")
        time.sleep(0.5)
        result = sandbox.exec("(setsid sleep 321 &); sleep 322 & sleep 323", timeout=1)
        assert result.timed_out
        assert sandbox.exec("ps axo args | grep -cE '^sleep 32[123]'").output.strip() == "0"
        assert other.result().output == "start\nend\n" and not other.result().timed_out


def test_a_server_in_the_background_goes_on_though_its_command_is_over(sandbox):
    sandbox.exec("(while :; do echo noise; date +%s%N > next; mv next beat; sleep 0.05; done) &")
    first = sandbox.exec("sleep 0.3; cat beat").output
    assert first and sandbox.exec("sleep 0.3; cat beat").output not in ("", first)


def test_the_runner_is_out_of_the_agents_reach(sandbox):
    """Process 1 must survive whatever the agent's user can do to it, or its death be an error of the sandbox."""
    sandbox.exec("kill -9 1; kill -STOP 1; kill -TERM 1; kill -INT 1; kill -HUP 1; kill -CHLD 1; kill -SEGV 1")
    result = sandbox.exec(
        "cat /proc/1/environ /proc/1/maps /proc/1/fd/0 2>/dev/null | wc -c; ls /proc/1/fd 2>/dev/null | wc -l"
    )
    assert result.output.split() == ["0", "0"]
    code = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); print(libc.ptrace(16, 1, 0, 0), libc.ptrace(0x4206, 1, 0, 0))"
    assert sandbox.exec(f"python3 -c '{code}'").output == "-1 -1\n"
    assert sandbox.exec("kill -9 -1").exit_code in (0, 1, 137)
    assert sandbox.exec("echo alive").output == "alive\n"


def test_a_command_that_cannot_start_is_a_result(sandbox):
    sandbox.exec("chmod 000 .")
    result = sandbox.exec("echo never")
    assert result.exit_code == 126 and "never" not in result.output.replace("echo never", "")
    assert sandbox.diff() == "" and sandbox.empty_diff_reason


@pytest.mark.parametrize(
    "tool", ["git", "patch", "diff", "grep", "sed", "awk", "find", "tar", "gzip", "ps", "kill", "setsid", "timeout"]
)
def test_tools(sandbox, tool):
    assert sandbox.exec(f"command -v {tool}").exit_code == 0
