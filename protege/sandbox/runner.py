"""Process 1 of a sandbox: starts commands, watches their time, output, memory and disk, and ends with its stdin.

This file runs inside (``link.py``, its other end, sends it and ``inside.py`` over as one): standard library
only, Python 3.8 or newer. docs/design/0004-runner.md says why it exists.

Frames, both ways: kind (1 byte), command id and payload length (4 bytes each, big endian), payload.
To here: ``R`` run (4 bytes of header length, a JSON header, stdin), ``L`` seconds left to live.
From here: ``H`` ready, ``O`` and ``S`` stdout and stderr, ``X`` how the command ended (JSON).
"""

import contextlib
import gc
import json
import os
import select
import signal
import struct
import sys
import time

from protege.sandbox.inside import family, harden, kill_all, oom_kills, raw, read, tree_bytes, undumpable, used_bytes

FRAME = struct.Struct(">cII")
LIFETIME_OVER = 98
"""Exit status of a runner whose time was up."""
_MB = 1024 * 1024
_RESET = (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT)
_STRAGGLERS_S = 0.1  # how long a pipe that outlives its command may stay quiet before the command counts as over


class Command:
    """One command that runs, and where its output goes."""

    def __init__(self, number, pid, header, pipes):
        self.number, self.pid, self.pipes = number, pid, pipes  # pipes: {fd: kind of frame}
        self.started = time.monotonic()
        self.deadline = self.started + header["timeout"]
        self.left = {b"O": header["limit"], b"S": 65536}
        self.dropped = 0
        self.status = None
        self.quiet_at = self.ended_at = 0.0
        self.note = {}


class Runner:
    """The loop. ``options``: uid, gid, places, disk_mb, lifetime, limits ({RLIMIT name: value})."""

    def __init__(self, options):
        self.options = options
        self.ends = time.monotonic() + options["lifetime"]
        self.commands = {}  # by number
        self.forgotten = set()  # pipes that background processes still write to; read and dropped
        self.feeding = {}  # stdin fd -> bytes left
        self.buffer = bytearray()
        self.poll = select.epoll()
        self.poll.register(0, select.EPOLLIN)
        self.wake, wake = os.pipe()
        for end in (self.wake, wake):
            os.set_blocking(end, False)
            os.set_inheritable(end, False)
        self.poll.register(self.wake, select.EPOLLIN)
        # from its own namespace, process 1 gets only the signals that it has handlers for: none but the harmless one
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.oom_kills = oom_kills()
        self.used = used_bytes()
        self.oom_score = None
        with contextlib.suppress(OSError):
            oom_score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            os.write(oom_score, b"0")
            self.oom_score = oom_score

    def send(self, kind, number, payload):
        data = memoryview(FRAME.pack(kind, number, len(payload)) + payload)
        while data:
            data = data[os.write(1, data) :]

    def loop(self):
        self.send(b"H", 0, json.dumps({"python": sys.version.split()[0], "pid": os.getpid()}).encode())
        while True:
            for fd, _ in self.poll.poll(self.pause()):
                if fd == 0:
                    self.receive()
                elif fd == self.wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.wake, 4096)
                elif fd in self.feeding:
                    self.feed(fd)
                else:
                    self.drain(fd)
            self.reap()
            self.look_after()

    def pause(self):
        """Seconds until something must be looked at."""
        now, until = time.monotonic(), self.ends
        for command in self.commands.values():
            until = min(until, command.quiet_at + _STRAGGLERS_S if command.status is not None else command.deadline)
            until = min(until, now + 0.5)  # the disk
        return max(0.0, until - now)

    def receive(self):
        data = os.read(0, 262144)
        if not data:
            kill_all(5)
            os._exit(0)
        self.buffer += data
        while len(self.buffer) >= FRAME.size:
            kind, number, length = FRAME.unpack_from(self.buffer)
            if len(self.buffer) < FRAME.size + length:
                return
            payload = bytes(self.buffer[FRAME.size : FRAME.size + length])
            del self.buffer[: FRAME.size + length]
            if kind == b"R":
                size = struct.unpack_from(">I", payload)[0]
                self.start(number, json.loads(payload[4 : 4 + size].decode()), payload[4 + size :])
            elif kind == b"L":
                self.ends = time.monotonic() + json.loads(payload.decode())

    def start(self, number, header, stdin):
        out, out_in = os.pipe()
        err, err_in = (None, out_in) if header["merged"] else os.pipe()
        feed_out, feed = os.pipe() if stdin else (os.open("/dev/null", os.O_RDONLY), None)
        note = {}
        try:
            try:
                pid = self.spawn(header, feed_out, out_in, err_in)
            except BlockingIOError:
                if self.commands:
                    raise
                # what runs in the background has left no room: it goes, the command stays
                kill_all(10)
                note = {"crowded": True}
                pid = self.spawn(header, feed_out, out_in, err_in)
        except OSError as error:
            for fd in {out, out_in, feed_out, err_in, err, feed}:
                if fd is not None:
                    os.close(fd)
            return self.send(b"X", number, json.dumps({"code": 126, "failed": str(error), "seconds": 0.0}).encode())
        for fd in {out_in, err_in, feed_out}:
            os.close(fd)
        pipes = {out: b"O"} if err is None else {out: b"O", err: b"S"}
        for fd in pipes:
            os.set_blocking(fd, False)
            self.poll.register(fd, select.EPOLLIN)
        if feed is not None:
            os.set_blocking(feed, False)
            self.feeding[feed] = memoryview(stdin)
            self.poll.register(feed, select.EPOLLOUT)
        command = self.commands[number] = Command(number, pid, header, pipes)
        command.note = note
        return None

    def spawn(self, header, stdin, out, err):
        """Start the command's process as the agent's user; raises OSError.

        A fork of this interpreter costs more than the whole of a short command, and what does without one
        (posix_spawn) cannot change the user. So process 1 takes the agent's ids for that moment, and keeps root as its
        saved id: the new process loses that, and every capability, when it begins. Nothing inside can use the
        moment: process 1 takes no signal from its own namespace and cannot be traced.
        """
        env = dict(os.environb)
        env.update((raw(name), raw(value)) for name, value in header["env"].items())
        actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate((stdin, out, err))]
        argv = [raw(part) for part in header["argv"]]
        uid, gid = self.options["uid"], self.options["gid"]
        become = uid is not None and not header["root"]
        self.kill_me_first(b"900")
        if become:
            os.setresgid(gid, gid, 0)
            os.setresuid(uid, uid, 0)
        try:
            os.chdir(header["cwd"])
            return os.posix_spawn(argv[0], argv, env, file_actions=actions, setsid=True, setsigdef=_RESET)
        finally:
            if become:
                os.setresuid(0, 0, 0)
                os.setresgid(0, 0, 0)
                undumpable()
            self.kill_me_first(b"0")

    def kill_me_first(self, score):
        """What the kernel's choice under memory pressure is; children inherit it."""
        if self.oom_score is not None:
            os.pwrite(self.oom_score, score, 0)

    def feed(self, fd):
        try:
            self.feeding[fd] = self.feeding[fd][os.write(fd, self.feeding[fd][:65536]) :]
        except BlockingIOError:
            return
        except OSError:  # the command has closed its stdin
            self.feeding[fd] = self.feeding[fd][:0]
        if not self.feeding[fd]:
            self.hang_up(fd)
            del self.feeding[fd]

    def hang_up(self, fd):
        self.poll.unregister(fd)
        os.close(fd)

    def drain(self, fd):
        """Move what a pipe holds; a slow reader outside must not cost the deadline, so one piece at a time."""
        if fd in self.forgotten:
            if not read(fd):
                self.forgotten.discard(fd)
                self.hang_up(fd)
            return
        for command in self.commands.values():
            if fd in command.pipes:
                data = read(fd)
                kind = command.pipes[fd]
                if data == b"":
                    del command.pipes[fd]
                    self.hang_up(fd)
                elif data:
                    keep = data[: command.left[kind]]
                    command.left[kind] -= len(keep)
                    command.dropped += len(data) - len(keep) if kind == b"O" else 0
                    command.quiet_at = time.monotonic()
                    if keep:
                        self.send(kind, command.number, keep)
                return

    def reap(self):
        """Collect every child that has ended, adopted ones too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for command in self.commands.values():
                if command.pid == pid:
                    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                    command.status = code
                    command.quiet_at = command.ended_at = time.monotonic()

    def look_after(self):
        if self.commands:
            self.watch_disk()  # first: what fills the disk and ends at once is not to be laid to the next command
        now = time.monotonic()
        for command in list(self.commands.values()):
            if command.status is not None:
                # what it wrote before it ended is in the pipe already; others may hold the pipe open for ever
                for fd in list(command.pipes):
                    self.drain(fd)
                quiet = now - command.quiet_at >= _STRAGGLERS_S or now - command.ended_at >= 1.0
                if not command.pipes or quiet or now >= command.deadline:
                    self.finish(command, command.status, False)
            elif now >= command.deadline:
                self.stop(command)
                self.finish(command, 124, True)
        if now >= self.ends:
            kill_all(5)
            os._exit(LIFETIME_OVER)

    def watch_disk(self):
        """Look closely only when the file system that holds us has filled by a good part of what is allowed."""
        allowed = self.options["disk_mb"] * _MB
        now_used = used_bytes()
        if now_used - self.used < max(16 * _MB, allowed // 8):
            self.used = min(self.used, now_used)
            return
        self.used = now_used
        if tree_bytes(self.options["places"]) > allowed:
            for command in list(self.commands.values()):
                command.note["disk_full"] = True
                self.stop(command)
                self.finish(command, 137, False)

    def stop(self, command):
        """Kill what the command started, and what it left behind; with no other command, whatever there is."""
        if len(self.commands) == 1 and os.getpid() == 1:
            kill_all(10)
            return
        others = {c.pid for c in self.commands.values()} - {command.pid}
        for _ in range(20):
            doomed = family(command.pid, others)
            if not doomed:
                return
            for pid in doomed:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
            self.reap()

    def finish(self, command, code, timed_out):
        for fd in list(command.pipes):
            if timed_out:
                for _ in range(64):  # a pipe's worth
                    if not self.more(command, fd):
                        break
            if fd in command.pipes:
                self.forgotten.add(fd)
        kills = oom_kills()
        result = {"code": code, "timed_out": timed_out, "dropped": command.dropped, "oom": kills > self.oom_kills}
        self.oom_kills = kills
        result["seconds"] = time.monotonic() - command.started
        result.update(command.note)
        del self.commands[command.number]
        self.send(b"X", command.number, json.dumps(result).encode())

    def more(self, command, fd):
        before = command.quiet_at
        if fd in command.pipes:
            self.drain(fd)
        return fd in command.pipes and command.quiet_at != before


def main():
    gc.disable()
    options = json.loads(sys.argv[1])
    harden(options["limits"])
    Runner(options).loop()


if __name__ == "__main__":
    main()
