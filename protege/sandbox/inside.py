"""What process 1 of a sandbox asks of the kernel: killing, counting, limits. Runs inside, as the first part of ``runner.py``."""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import time

_OOM_FILES = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
_LIBC = ctypes.CDLL(None, use_errno=True)


def raw(text):
    return text.encode("utf-8", "surrogateescape")


def read(fd):
    """Bytes, b"" at the end, None when there is nothing now."""
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def kill_all(seconds):
    """Kill whatever lives beside process 1 and wait until it is gone, at most ``seconds``."""
    if os.getpid() != 1:
        return
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def family(leader, others):
    """Live processes of the session and descent of ``leader``, and orphans younger than it that lead nothing else."""
    stats = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/" + name + "/stat") as file:
                fields = file.read().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    stats[int(name)] = (int(fields[1]), int(fields[3]), int(fields[19]))  # parent, session, start
    born = stats.get(leader, (0, 0, 0))[2]
    doomed = {pid for pid, (_, session, _) in stats.items() if session == leader}
    doomed |= {p for p, (parent, _, start) in stats.items() if parent == 1 and born and start >= born} - others
    while True:
        more = {pid for pid, (parent, _, _) in stats.items() if parent in doomed} - doomed
        if not more:
            return doomed - others
        doomed |= more


def oom_kills():
    """The kernel's count of processes killed for memory in this container."""
    for name in _OOM_FILES:
        with contextlib.suppress(OSError, ValueError), open(name) as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def used_bytes():
    info = os.statvfs("/testbed" if os.path.isdir("/testbed") else "/")
    # a file costs at least 4 KiB of what is allowed, so that many empty ones count too
    return max((info.f_blocks - info.f_bfree) * info.f_frsize, (info.f_files - info.f_ffree) * 4096)


def tree_bytes(places):
    """Bytes under ``places``. A tree deeper than any honest one counts as endless."""
    total, stack = 0, [(place, 0) for place in places]
    while stack:
        folder, depth = stack.pop()
        if depth > 300:
            return 1 << 62
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    info = entry.stat(follow_symlinks=False)
                    total += max(4096, info.st_blocks * 512)
                    if entry.is_dir(follow_symlinks=False):
                        stack.append((entry.path, depth + 1))
    return total


def undumpable():
    """Close process 1 to tracing and to /proc; the kernel forgets it at each change of user."""
    _LIBC.prctl(4, 0, 0, 0, 0)


def harden(limits):
    """Let no child ever hold a capability, gain a right, or pass a limit."""
    undumpable()
    _LIBC.prctl(38, 1, 0, 0, 0)  # no new privileges
    for capability in range(64):
        if _LIBC.prctl(24, capability, 0, 0, 0) != 0:  # drop from the bounding set
            if ctypes.get_errno() == errno.EPERM and os.geteuid() == 0:
                raise OSError("process 1 has no SETPCAP")
            break
    _LIBC.prctl(47, 4, 0, 0, 0)  # empty the ambient set, which an exec without root would keep
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if _LIBC.capget(header, sets) == 0:
        sets[2] = sets[5] = 0  # inheritable
        _LIBC.capset(header, sets)
    if os.geteuid() == 0:
        os.setgroups([])
    os.umask(0o022)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
