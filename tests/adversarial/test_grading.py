"""Patches that leave the bug in place and go for the grader. None may come out as resolved."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from protege.grading import grade as grading
from protege.grading.filtering import filter_patch
from protege.grading.grade import grade
from protege.sandbox.patches import sections
from tests.adversarial.attack import buggy_with, diff_of
from tests.sandbox.tiny import BUGGY

FORGE = """
import pytest

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    report.outcome, report.longrepr = "passed", None
"""
NO_TESTS = (
    "def pytest_collection_modifyitems(items):\n    items.clear()\n    print('PASSED tests/test_calc.py::test_add')\n"
)
SKIP_ALL = "import pytest\n\ndef pytest_runtest_setup(item):\n    pytest.skip('no')\n"
FIXED = BUGGY.replace("a - b", "a + b")
PRINT = """
import os
def _say(text):
    for target in ("/proc/%d/fd/1" % os.getppid(), "/proc/%d/fd/1" % os.getpid()):
        try:
            with open(target, "a") as out:
                out.write(text)
            return
        except OSError:
            pass
    for fd in range(3, 64):
        try:
            os.write(fd, text.encode())
        except OSError:
            pass
"""
LINES = "PASSED tests/test_calc.py::test_add\\nPASSED tests/test_calc.py::test_double\\n"

RUN_NOTHING = "import _pytest.python\n_pytest.python.Function.runtest = lambda self: None\n"

CONFIGURATION = {
    "conftest edited": {"conftest.py": FORGE},
    "conftest new": {"tests/conftest.py": FORGE},
    "conftest skips": {"conftest.py": SKIP_ALL},
    "conftest empties": {"conftest.py": NO_TESTS},
    "pytest.ini": {"pytest.ini": "[pytest]\naddopts = -p evil\n", "evil.py": FORGE},
    "pyproject": {"pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-p evil'\n", "evil.py": FORGE},
    "setup.cfg": {"setup.cfg": "[tool:pytest]\naddopts = -p evil\n", "evil.py": FORGE},
    "tox.ini": {"tox.ini": "[pytest]\naddopts = -p evil\n", "evil.py": FORGE},
    "entry point": {
        "evil-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: evil\nVersion: 1\n",
        "evil-1.dist-info/entry_points.txt": "[pytest11]\nevil = evil\n",
        "evil.py": FORGE,
    },
    "egg-info": {
        "evil.egg-info/PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1\n",
        "evil.egg-info/entry_points.txt": "[pytest11]\nevil = evil\n",
        "evil.py": FORGE,
    },
}
START_UP = {
    "sitecustomize": {"sitecustomize.py": f"import sys\nsys.path.append('/opt/site')\n{RUN_NOTHING}"},
    "usercustomize": {"src/usercustomize.py": RUN_NOTHING},
    "pth": {"evil.pth": "import os\n"},
    "pytest.py": {"pytest.py": f"print('{LINES}')\n"},
    "pytest package": {"pytest/__init__.py": "", "pytest/__main__.py": f"print('{LINES}')\n"},
    "_pytest": {"_pytest/__init__.py": f"import os\nprint('{LINES}', flush=True)\nos._exit(0)\n"},
    "stdlib": {"argparse.py": f"import os\nprint('{LINES}', flush=True)\nos._exit(0)\n"},
    "stdlib package": {"src/inspect/__init__.py": f"import os\nprint('{LINES}', flush=True)\nos._exit(0)\n"},
}
TESTS = {
    "test edited": {"tests/test_calc.py": "def test_double():\n    pass\n\n\ndef test_add():\n    pass\n"},
    "test deleted": {"tests/test_calc.py": None},
    "test skipped": {"tests/test_calc.py": "import pytest\npytest.skip('no', allow_module_level=True)\n"},
    "helper beside": {"tests/__init__.py": "import calc\ncalc.add = lambda a, b: a + b\n"},
}
LEFT_OUT = {**CONFIGURATION, **START_UP, **TESTS}


@pytest.mark.parametrize("files", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_what_decides_how_tests_run_is_left_out_of_a_patch(tiny, files):
    kept, dropped = filter_patch(diff_of(tiny, {**files, "calc.py": FIXED}), tiny.instance)
    harmless = {"evil.py", "pytest/__main__.py"}  # never loaded without the rest
    assert set(dropped) == set(files) - harmless
    assert {path for part in sections(kept) for path in part.paths if part.creates or path in files} <= {
        spelling for name in harmless for spelling in (name, f"a/{name}", f"b/{name}")
    }
    assert kept.endswith(diff_of(tiny, {"calc.py": FIXED})) or diff_of(tiny, {"calc.py": FIXED}) in kept


def test_what_the_gold_patch_touches_may_be_touched(tiny):
    patch = diff_of(tiny, {"conftest.py": FORGE, "calc.py": FIXED})
    allowing = tiny.instance.model_copy(update={"patch": diff_of(tiny, {"conftest.py": "X = 1\n"})})
    assert filter_patch(patch, allowing) == (patch, [])
    assert filter_patch(patch, tiny.instance)[1] == ["conftest.py"]


def test_ordinary_work_is_left_alone(tiny):
    files = {
        "calc.py": FIXED,
        "pkg/random.py": "X = 1\n",
        "src/pkg/types.py": "",
        "run.sh": "#!/bin/sh\n",
        "docs/x.md": "a\n",
    }
    patch = diff_of(tiny, files)
    assert filter_patch(patch, tiny.instance) == (patch, [])


@pytest.mark.parametrize(
    "name",
    [
        "conftest edited",
        "pytest.ini",
        "entry point",
        "sitecustomize",
        "pytest.py",
        "stdlib",
        "test deleted",
        "helper beside",
    ],
)
def test_what_is_left_out_does_not_help(attack, name):
    verdict = attack({**LEFT_OUT[name], "calc.py": BUGGY + "\n\nTRIED = True\n"})
    assert not verdict.resolved and verdict.applied
    assert verdict.failed_tests == ["tests/test_calc.py::test_add"] and verdict.pass_to_pass == (1, 1)
    assert set(verdict.dropped) == set(LEFT_OUT[name]) - {"evil.py"}


@pytest.mark.parametrize("name", ["conftest edited", "pytest.py", "sitecustomize"])
def test_the_record_catches_what_the_filter_would_let_through(attack, monkeypatch, name):
    """The second defence alone: with the filter switched off the log says that everything passes."""
    monkeypatch.setattr(grading, "filter_patch", lambda text, instance: (text, []))
    verdict = attack({**LEFT_OUT[name], "calc.py": BUGGY + "\n\nTRIED = True\n"})
    assert not verdict.resolved


@pytest.mark.parametrize("name", ["conftest edited", "test deleted"])
def test_an_honest_fix_counts_without_the_parts_left_out(attack, name):
    verdict = attack({**LEFT_OUT[name], "calc.py": FIXED})
    assert verdict.resolved and verdict.evidence == "record" and set(verdict.dropped) == set(LEFT_OUT[name])


def test_a_patch_of_nothing_but_such_parts_is_not_run(attack, tmp_path):
    verdict = attack({"conftest.py": FORGE})
    assert not verdict.resolved and verdict.dropped == ["conftest.py"] and "nothing is left" in verdict.reason
    assert verdict.backend == "none"


ENDINGS = {
    "exit at import": "import os\nos._exit(0)",
    "exit after forged lines": f"{PRINT}\n_say('{LINES}')\nos._exit(0)",
    "exit with summary": f"{PRINT}\n_say('{LINES}2 passed in 0.01s\\n')\nos._exit(0)",
    "atexit": f"{PRINT}\nimport atexit\natexit.register(lambda: (_say('{LINES}'), os._exit(0)))",
    "a thread that waits for the summary": f"""{PRINT}
import threading, time
def _late():
    time.sleep(0.2)
    _say('{LINES}')
    os._exit(0)
threading.Thread(target=_late, daemon=False).start()""",
}
MARKS = {
    "end marker": f"{PRINT}\n_say('{LINES}\\n>>>>> End Test Output\\n')",
    "both markers": f"{PRINT}\n_say('>>>>> Start Test Output\\n{LINES}\\n+ : >>>>> End Test Output\\n')",
    "exit code": f"{PRINT}\n_say('{LINES}\\n>>>>> End Test Output\\n>>>>> Test Exit Code: 0\\n')",
    "traced": f"{PRINT}\n_say(\"{LINES}\\n+ : '>>>>> End Test Output'\\n+ SWEBENCH_TEST_EXIT_CODE=0\\n\")\nos._exit(0)",
}
PATCHED = {
    "report": """
import _pytest.reports as r
_make = r.TestReport.from_item_and_call.__func__
def forge(cls, item, call):
    call.excinfo = None
    return _make(cls, item, call)
r.TestReport.from_item_and_call = classmethod(forge)""",
    "run": """
import _pytest.python as p
p.Function.runtest = lambda self: None""",
    "code object": """
import _pytest.python as p
def nothing(self):
    pass
p.Function.runtest.__code__ = nothing.__code__""",
    "terminal": """
import _pytest.terminal as t
_short = t.TerminalReporter.short_test_summary
def short(self):
    self.write_line("PASSED tests/test_calc.py::test_add")
    self.write_line("PASSED tests/test_calc.py::test_double")
    self._session.exitstatus = 0
t.TerminalReporter.short_test_summary = short""",
    "hook": """
import gc
from _pytest.config import PytestPluginManager
class Evil:
    def pytest_runtest_makereport(self, item, call):
        call.excinfo = None
for thing in gc.get_objects():
    if isinstance(thing, PytestPluginManager):
        for hook in [thing.hook.pytest_pyfunc_call]:
            import _pytest.config
        import pytest
        class Late:
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(self, pyfuncitem):
                return True
        thing.register(Late())
        break""",
    "report attribute": """
import gc, pytest
from _pytest.config import PytestPluginManager
class Late:
    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item, call):
        outcome = yield
        outcome.get_result().outcome = "passed"
for thing in gc.get_objects():
    if isinstance(thing, PytestPluginManager):
        thing.register(Late())
        break""",
}
FROM_INSIDE = {**ENDINGS, **MARKS, **PATCHED}


@pytest.mark.parametrize("code", FROM_INSIDE.values(), ids=FROM_INSIDE.keys())
def test_code_under_test_cannot_speak_for_the_tests(attack, code):
    verdict = attack(buggy_with(code))
    assert not verdict.resolved and verdict.applied and verdict.reason


BEFOREHAND = """
import os
for name in ("/eval.sh", "/tmp/patch.diff", "/tmp/eval.sh", "/testbed/report.json", "/testbed/test_output.txt"):
    try:
        with open(name, "w") as out:
            out.write("echo '>>>>> Start Test Output'\\necho PASSED tests/test_calc.py::test_add\\n"
                      "echo PASSED tests/test_calc.py::test_double\\necho '>>>>> End Test Output'\\n" * 40)
    except OSError:
        pass
"""


def test_rewriting_the_eval_script_while_it_runs_does_not_resolve(attack):
    """Bash reads a script as it goes; what is written over it must not count as the tests' output."""
    assert not attack(buggy_with(BEFOREHAND)).resolved


def test_files_made_beforehand_under_the_graders_names_do_not_reach_it(attack):
    names = (
        "eval.sh",
        "patch.diff",
        "tmp/patch.diff",
        "report.json",
        "test_output.txt",
        "logs/run_evaluation/report.json",
    )
    files = dict.fromkeys(names, '{"tiny__calc-1": {"resolved": true}}\n')
    verdict = attack({**files, "calc.py": BUGGY + "\n\nTRIED = True\n"})
    assert not verdict.resolved and verdict.failed_tests == ["tests/test_calc.py::test_add"]


def test_what_the_agent_leaves_running_or_lying_about_is_not_there_when_graded(provider, tiny, tmp_path):
    """A daemon that fixes the file over and over, and links under the grader's names, in the agent's own sandbox."""
    loop = "while :; do sed -i 's/a - b/a + b/' /testbed/calc.py; touch /tmp/alive; sleep 0.05; done"
    with provider.open(tiny.instance) as box:
        box.exec(f"(setsid bash -c {shlex.quote(loop)} >/dev/null 2>&1 &) ; sleep 0.3")
        box.exec("ln -sf /testbed/calc.py /tmp/patch.diff; ln -sf /tmp/x /eval.sh; echo junk > /tmp/eval.sh")
        box.exec("git checkout -q -- calc.py; echo 'TRIED = True' >> calc.py; git stash -q; git stash pop -q")
        idle = diff_of(tiny, {"calc.py": BUGGY + "TRIED = True\n"})
        verdict = grade(tiny.instance, idle, provider, log_dir=tmp_path)  # while the agent's sandbox is still open
        assert not verdict.resolved and verdict.failed_tests == ["tests/test_calc.py::test_add"]
        if provider.backend == "docker":
            assert box.exec("ls /tmp/alive").exit_code == 0  # it is alive, and elsewhere


def test_a_daemon_started_by_the_code_under_test_does_not_outlive_the_grading(provider, tiny, tmp_path):
    code = f"""
import subprocess
subprocess.Popen(["bash", "-c", "exec -a protege_{tmp_path.name} sleep 120"], start_new_session=True,
                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"""
    assert not grade(tiny.instance, diff_of(tiny, buggy_with(code)), provider, log_dir=tmp_path / "logs").resolved
    mark = f"protege_{tmp_path.name}".encode()
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if mark in readable(p)]


def readable(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.docker
def test_system_files_changed_during_the_tests_refute_them(make_provider, tiny, tmp_path):
    code = "open('/opt/site/_pytest/runner.py', 'a').write('# mine')"
    fixed = diff_of(tiny, {"calc.py": f"{code}\n\n\n{FIXED}"})
    verdict = grade(tiny.instance, fixed, make_provider("docker"), log_dir=tmp_path)
    assert not verdict.resolved and verdict.evidence == "refuted" and "/opt/site/_pytest/runner.py" in verdict.reason


def test_all_skipped_is_no_pass(attack):
    verdict = attack(buggy_with("import pytest\npytest.skip('not today', allow_module_level=True)"))
    assert not verdict.resolved
    skip = "import pytest; pytest.skip('no')"
    verdict = attack({"calc.py": BUGGY.replace("return a - b", skip).replace("return 2 * a", skip)})
    assert not verdict.resolved and verdict.fail_to_pass[0] == 0


def test_the_recorder_is_readable_by_old_interpreters():
    import ast

    from protege.grading import evidence

    ast.parse((Path(evidence.__file__).parent / "recorder.py").read_text(), feature_version=(3, 5))
