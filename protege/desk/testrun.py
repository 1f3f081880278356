"""Running a package's tests in a sandbox, with the command that grading uses, and what they do without a bug.

A run may be limited in CPU time, which what else the machine does hardly changes, as it does the time on the clock.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import signal
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from protege.config import InstancesParams
from protege.core.instance import Instance
from protege.desk.sources import Package
from protege.desk.testfiles import base_id
from protege.errors import SandboxError
from protege.sandbox.base import WORKDIR, Sandbox, SandboxProvider

PASSING = {"PASSED", "XFAIL"}
_CPU = "PROTEGE-CPU"
_COLLECTIONS = 5
"""Collections in which a parametrised id must be the same: ids that come from a set's order are then hardly missed."""


@dataclass(frozen=True)
class Prepared:
    """A package ready to be broken: its files by path, and the pristine instance that sandboxes are opened from."""

    package: Package
    tree: Path
    files: dict[str, bytes]
    executables: frozenset[str]
    pristine: Instance
    testbeds: Path

    @property
    def tests(self) -> dict[str, str]:
        """Text of the Python files under the package's tests, by path."""
        root = self.package.tests.rstrip("/")
        found = {
            p: data for p, data in self.files.items() if p.endswith(".py") and (p == root or p.startswith(f"{root}/"))
        }
        return {path: data.decode("utf-8") for path, data in found.items()}


class Callers(BaseModel):
    """Which tests call which functions, as callers.py notes it: ``calls`` has indices into ``tests`` by "path:name"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tests: tuple[str, ...]
    calls: dict[str, tuple[int, ...] | None]


class Gold(BaseModel):
    """What the package's tests do without a bug.

    ``passed``: ids that pass in every run; ``unstable``: base ids of tests that do not behave alike, or whose
    parametrised ids are not the same in every collection; ``broken``: base ids that fail in every run. ``seconds`` is
    the longest run on the clock, ``cpu_seconds`` that of the processor. ``callers`` is None where it could not be noted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    passed: tuple[str, ...]
    unstable: tuple[str, ...]
    broken: tuple[str, ...]
    seconds: float
    cpu_seconds: float
    callers: Callers | None = None

    def tests_of(self, path: str, name: str) -> tuple[str, ...] | None:
        """Base ids of the passing tests that call a function; None where that is not known or nearly all may."""
        if self.callers is None:
            return None
        found = self.callers.calls.get(f"{path}:{name}", ())
        if found is None:
            return None
        useless = {*self.unstable, *self.broken}
        return tuple(sorted({self.callers.tests[index] for index in found} - useless))


@dataclass(frozen=True)
class Run:
    """``timed_out``: ended by a limit, of the clock or of the processor."""

    status: dict[str, str]
    failing: frozenset[str]
    exit_code: int
    timed_out: bool
    seconds: float
    cpu_seconds: float
    dropped: int = 0


def environment(package: Package) -> dict[str, str]:
    """Variables under which the package's tests run, in the image and in the eval script alike."""
    inside = WORKDIR if package.python_path in {"", "."} else f"{WORKDIR}/{package.python_path}"
    return {"PYTHONPATH": f"{inside}:/opt/site", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}


def setup_lines(package: Package) -> list[str]:
    """Shell lines that set :func:`environment`, keeping what PYTHONPATH already holds (a sandbox's own site folder)."""
    return [
        f"export {name}={value}{'${PYTHONPATH:+:$PYTHONPATH}' if name == 'PYTHONPATH' else ''}"
        for name, value in environment(package).items()
    ]


def test_command(package: Package) -> str:
    return f"python -m pytest -rA -p no:cacheprovider --tb=short --color=no {shlex.quote(package.tests)}"


def script(sandbox: Sandbox, package: Package, command: str) -> str:
    return "\n".join([*setup_lines(package), command]).replace(WORKDIR, sandbox.workdir)


def run_tests(sandbox: Sandbox, package: Package, timeout: float, cpu_limit: float = 0) -> Run:
    """The package's tests within ``timeout`` seconds on the clock and ``cpu_limit`` of the processor (0: no limit).

    The limit is each process's own and is rounded up to whole seconds, as the kernel counts it.
    """
    from swebench.harness.log_parsers import PARSER_REGISTRY

    command = f"TIMEFORMAT='{_CPU} %U %S'; {_limit(cpu_limit)}time {test_command(package)}"
    result = sandbox.exec(script(sandbox, package, command), timeout=timeout)
    took = re.findall(rf"^{_CPU} ([\d.]+) ([\d.]+)$", result.output, re.MULTILINE)
    status: dict[str, str] = PARSER_REGISTRY["parse_log_pytest"](result.output, None)
    status = {name: value for name, value in status.items() if "::" in name or value == "ERROR"}
    words = (line.split() for line in result.output.splitlines() if line.startswith(("FAILED ", "ERROR ")))
    failing = frozenset(base_id(parts[1]) for parts in words if len(parts) > 1 and "::" in parts[1])
    return Run(
        status,
        failing,
        result.exit_code,
        result.timed_out or result.exit_code == 128 + signal.SIGXCPU,
        result.seconds,
        sum(map(float, took[-1])) if took else result.seconds,
        result.dropped_bytes,
    )


def _limit(cpu_seconds: float) -> str:
    """Soft only: at the hard limit the kernel sends SIGKILL, which would look like a lack of memory."""
    return f"ulimit -S -t {math.ceil(cpu_seconds)}; " if cpu_seconds else ""


def whole_id(test: str) -> bool:
    """False for a parametrised id that the parser has cut at a space: it may stand for several tests."""
    return test.count("[") == test.count("]")


def gold(prepared: Prepared, provider: SandboxProvider, params: InstancesParams) -> Gold:
    """Run the package's own tests without a bug, ``params.repeats`` times; once for each package.

    Raises:
        SandboxError: the tests cannot be run here at all (the message has the end of their output).
    """
    with provider.open(prepared.pristine) as sandbox:
        runs = [run_tests(sandbox, prepared.package, params.test_timeout_s) for _ in range(params.repeats)]
        if runs[0].timed_out or runs[0].exit_code not in (0, 1) or not runs[0].status:
            again = sandbox.exec(
                script(sandbox, prepared.package, test_command(prepared.package)), timeout=params.test_timeout_s
            )
            raise SandboxError(
                f"{prepared.package.name}: its own tests do not run in the sandbox:\n{again.output[-1500:]}"
            )
        # parameters taken from a set come in an order of their own each time, and so do their ids
        collections = [_collect(sandbox, prepared.package, params.test_timeout_s) for _ in range(_COLLECTIONS)]
        callers = _callers(sandbox, prepared.package, params.test_timeout_s)
    names: set[str] = set().union(*(run.status for run in runs))
    unstable = {base_id(n) for n in names if len({run.status.get(n) for run in runs}) > 1}
    unstable |= {base_id(n) for n in collections[0].union(*collections) - collections[0].intersection(*collections)}
    passed = {n for n in names if all(run.status.get(n) in PASSING for run in runs) and base_id(n) not in unstable}
    broken = set(runs[0].failing).intersection(*(run.failing for run in runs)) - unstable
    return Gold(
        passed=tuple(sorted(passed)),
        unstable=tuple(sorted(unstable)),
        broken=tuple(sorted(broken)),
        seconds=max(run.seconds for run in runs),
        cpu_seconds=max(run.cpu_seconds for run in runs),
        callers=callers,
    )


_INSIDE = {"probe": Path(__file__).with_name("probe.py"), "callers": Path(__file__).with_name("callers.py")}
"""What runs in the sandbox, beside the tests."""


def plugin(sandbox: Sandbox, name: str) -> str:
    """Put protege/desk/<name>.py beside the sandbox's temporary files as protege_<name>.py; returns the folder."""
    folder = "/tmp" if sandbox.workdir == WORKDIR else str(Path(sandbox.workdir).parent / "tmp")
    sandbox.write(f"{folder}/protege_{name}.py", _INSIDE[name].read_bytes())
    return folder


def run_plugin(sandbox: Sandbox, package: Package, name: str, tests: str, timeout: float, cpu_limit: float = 0) -> Any:
    """(pytest's exit code, what the plugin wrote or None) of a run of ``tests``, a shell text; limits as for run_tests."""
    folder = plugin(sandbox, name)
    command = textwrap.dedent(f"""\
        export PYTHONPATH={folder}:$PYTHONPATH PROTEGE_PROBE_OUT={folder}/protege_{name}.json
        rm -f "$PROTEGE_PROBE_OUT"
        ({_limit(cpu_limit)}python -m pytest -q -p no:cacheprovider -p protege_{name} --tb=no --color=no {tests}) >/dev/null 2>&1
        status=$?
        cat "$PROTEGE_PROBE_OUT"
        exit $status
        """)
    result = sandbox.exec(script(sandbox, package, command), timeout=timeout)
    try:
        return result.exit_code, json.loads(result.output)
    except json.JSONDecodeError:
        return result.exit_code, None


def _callers(sandbox: Sandbox, package: Package, timeout: float) -> Callers | None:
    # profiled, functions take several times as long to call
    _, found = run_plugin(sandbox, package, "callers", shlex.quote(package.tests), 5 * timeout)
    return Callers.model_validate(found) if found else None


def _collect(sandbox: Sandbox, package: Package, timeout: float) -> set[str]:
    command = f"python -m pytest -p no:cacheprovider --collect-only -q --color=no {shlex.quote(package.tests)}"
    output = sandbox.exec(script(sandbox, package, command), timeout=timeout).output
    return {line for line in output.splitlines() if "::" in line}
