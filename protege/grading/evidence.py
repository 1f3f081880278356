"""Whether a log that says "resolved" is to be believed: a second, signed record of the tests, and marks of tampering.

The official harness reads its verdict off text into which the code under test can write. What is found here
can only turn a "resolved" into an "unresolved", never the other way round.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import shlex
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protege.core.instance import Instance
from protege.sandbox.patches import sections

START, END, EXIT = ">>>>> Start Test Output", ">>>>> End Test Output", ">>>>> Test Exit Code"
_RECORD = re.compile(r"^~~record:(start|end) ([0-9a-f]{64}) (\S+) \.\n?", re.MULTILINE)
_SITES = """/opt/*/lib/python3*/site-packages /opt/*/envs/*/lib/python3*/site-packages /usr/lib/python3/dist-packages
/usr/lib/python3*/site-packages /usr/local/lib/python3*/site-packages /usr/local/lib/python3*/dist-packages
/testbed/.venv/lib/python3*/site-packages /testbed/venv/lib/python3*/site-packages /root/.venv/lib/python3*/site-packages
/root/.local/lib/python3*/site-packages /venv/lib/python3*/site-packages"""
_SYSTEM = re.compile(
    r"/(?:_pytest|pytest|pluggy|unittest)/.*\.py[co]?$|/(?:pytest|pluggy|py|sitecustomize|usercustomize)\.py$"
    r"|/lib/python3[^/]*/[^/]+\.py$|^/(?:usr/)?(?:local/)?s?bin/|^/lib(?:64)?/|^/etc/ld\.so|/bin/python[^/]*$"
)


@dataclass(frozen=True)
class Record:
    """What the recorder said. ``status`` is by pytest's node id; None where it never came to its end."""

    started: bool
    status: dict[str, str] | None = None
    foreign: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, str] = field(default_factory=dict)


class Recorder:
    """One run's recorder: the plugin under a name of its own, and the secret with which it signs."""

    def __init__(self, key_folder: str = "") -> None:
        self.module = f"_r{secrets.token_hex(8)}"
        self.key = f"{key_folder}/.{secrets.token_hex(8)}"
        self.secret = secrets.token_hex(32)
        source = (Path(__file__).parent / "recorder.py").read_text().replace("@KEY@", self.key)
        info = f"{self.module}-0.dist-info"
        self.files = {
            f"{self.module}.py": source,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {self.module}\nVersion: 0\n",
            f"{info}/entry_points.txt": f"[pytest11]\n{self.module} = {self.module}\n",
        }

    def install_script(self) -> str:
        """Bash that puts the plugin beside every installed pytest and prints a line for each; run before the patch is applied."""
        lines = [f"printf %s {self.secret} > {self.key}; chmod 600 {self.key}; shopt -s nullglob; IFS=$': \\t\\n'"]
        lines += [f"for d in $PYTHONPATH {' '.join(_SITES.split())}; do"]
        lines += ['case $d in /testbed|/testbed/src|/testbed/lib) continue;; esac; [ -d "$d/_pytest" ] || continue']
        for name, text in self.files.items():
            path = f'"$d/{name}"'
            lines += [f'mkdir -p {path[:-1].rpartition("/")[0]}"; printf %s {shlex.quote(text)} > {path} || continue']
        return "\n".join([*lines, 'echo "$d"', "done"])

    def read(self, output: str) -> Record:
        """The signed record in a log. Anything not signed with this run's secret is nothing."""
        started, ends = False, []
        for kind, signature, text in _RECORD.findall(output):
            if hashlib.sha256((self.secret + kind + text).encode()).hexdigest() != signature:
                continue
            if kind == "start":
                started = True
            else:
                ends.append(text)
        if len(ends) != 1:
            return Record(started)
        data = json.loads(zlib.decompress(base64.b64decode(ends[0])))
        return Record(True, data["status"], data["foreign"], data["hooks"])


def without_record(output: str) -> str:
    """The log as people want to read it."""
    return _RECORD.sub("", output)


def expects_pytest(instance: Instance) -> bool:
    """Whether the tests are started by a plain call of pytest, so that a record must be there."""
    command = instance.eval_script.partition(START)[2].partition(END)[0]
    off = "PYTEST_DISABLE_PLUGIN_AUTOLOAD" in instance.eval_script
    return not off and re.search(r"(?:^|[\s/])(?:pytest|py\.test)(?:\s|$)", command) is not None


def log_problem(instance: Instance, output: str) -> str:
    """Marks in the log alone that it was written to by the code under test, or ""."""
    for mark in (START, END):
        # `: 'mark'` is printed once by `set -x`; `echo 'mark'` once by `set -x` and once by itself
        lines = [line.strip() for line in instance.eval_script.splitlines() if mark in line]
        wanted = sum(2 if line.startswith("echo") else 1 for line in lines)
        found = output.count(mark)
        if lines and found != wanted:
            return f"the log was tampered with: the mark {mark!r} stands in it {found} times, not {wanted}"
    found = len(re.findall(rf"^{re.escape(EXIT)}:", output, re.MULTILINE))
    if found > 1:
        return f"the log was tampered with: it states {found} exit codes"
    tail = output.rpartition(END)[2]
    codes = re.findall(rf"^{re.escape(EXIT)}: (\d+)$", tail, re.MULTILINE)
    body = output.partition(START)[2].rpartition(END)[0]
    wanted_ids = {*instance.FAIL_TO_PASS, *instance.PASS_TO_PASS}
    failing = {
        line.split(" - ")[0].partition(" ")[2].strip() for line in body.splitlines() if line.startswith("FAILED ")
    }
    if contradicted := sorted(wanted_ids & failing):
        return f"the log was tampered with: it has {contradicted[0]} both as failed and as passed"
    if codes and int(codes[0]) > 1 and expects_pytest(instance):
        return f"pytest exited {codes[0]}, which it does not when the tests were run to their end"
    return ""


def record_problem(instance: Instance, spec: Any, record: Record, patch: str, workdir: str) -> str:
    """Why the signed record does not bear out a "resolved", or "" when it does."""
    if not record.started:
        return "the tests' own record was never begun: something ran in place of pytest"
    if record.status is None:
        return "the tests' own record has no end: the test process was ended from inside"
    if what := _tampered(record, patch, workdir):
        return f"the test run was tampered with: {what}"
    missing = _not_resolved(spec, record.status)
    if missing:
        return f"the log says that all deciding tests pass, the tests' own record says that {missing[0]} (and {len(missing) - 1} more) did not"
    return ""


def _tampered(record: Record, patch: str, workdir: str) -> str:
    touched = {path for part in sections(patch) for path in part.paths}

    def suspect(source: str) -> bool:
        if not source.startswith("/"):
            return True  # made at run time, or no function at all
        inside = source.removeprefix(workdir.rstrip("/") + "/")
        return inside != source and inside in touched

    for what, source in record.foreign.items():
        if suspect(source):
            return f"{what} of the test runner was replaced ({source})"
    for source, plugin in record.hooks.items():
        if source.startswith("/") and suspect(source):
            return f"a pytest plugin ({plugin}) came from a file of the patch ({source})"
        if source.startswith("<") and source != "<attrs generated>":
            return f"a pytest plugin ({plugin}) was made at run time"
    return ""


def _not_resolved(spec: Any, status: dict[str, str]) -> list[str]:
    """Deciding tests that do not pass when the official parser and rules read the record in place of the log."""
    from swebench.harness.constants import FAIL_TO_PASS, PASS_TO_PASS, EvalType
    from swebench.harness.grading import get_eval_tests_report
    from swebench.harness.log_parsers import PARSER_REGISTRY

    parse = PARSER_REGISTRY[spec.log_parser]
    shown = {name: word for name, word in status.items() if word not in {"SKIPPED", "XPASS"}}
    worst = sorted(shown.items(), key=lambda item: item[1] in {"FAILED", "ERROR"})  # the parsers let the last line win
    found = parse("\n".join(f"{word} {name}" for name, word in worst), spec)
    if not found:  # parsers of verbose logs
        found = parse("\n".join(f"{name} {word}" for name, word in worst), spec)
    gold = {FAIL_TO_PASS: spec.FAIL_TO_PASS, PASS_TO_PASS: spec.PASS_TO_PASS}
    report = get_eval_tests_report(found, gold, eval_type=EvalType(spec.eval_type))
    return [name for key in (FAIL_TO_PASS, PASS_TO_PASS) for name in report[key]["failure"]]


def changed_system_files(changes: Iterable[dict[str, Any]], ours: str) -> list[str]:
    """Of the engine's list of changes in a container: files of the interpreter, pytest or the system that are not as in the image."""
    found = []
    for change in changes:
        path, kind = str(change["Path"]), int(change["Kind"])
        if path.startswith(("/testbed", "/tmp", "/root", "/proc", "/dev")) or ours in path:
            continue
        fresh_cache = kind == 1 and "/__pycache__/" in path
        if _SYSTEM.search(path) and not fresh_cache:
            found.append(path)
    return sorted(found)
