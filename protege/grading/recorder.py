"""A pytest plugin that keeps its own record of what each test did. Put into the box in which a patch is graded.

It is copied there as text and may meet old interpreters: standard library only, no syntax after Python 3.5.
``@KEY@`` is replaced by the path of a file with a secret, which is read and removed before any code of the
repository runs; without it (a nested pytest, a worker) the plugin does nothing. What it writes to the log is signed
with that secret. See docs/design/0005-grading-trust.md for what this proves and what it does not.
"""

# ruff: noqa: UP004, UP031
# mypy: ignore-errors

import base64
import hashlib
import json
import os
import sys
import types
import zlib

import pytest

_WATCHED = ("_pytest", "pluggy")
_CORE = (
    "_pytest.runner",
    "_pytest.reports",
    "_pytest.skipping",
    "_pytest.unittest",
    "_pytest.python",
    "pluggy._callers",
)
_RANK = {"FAILED": 5, "ERROR": 4, "XFAIL": 3, "XPASS": 2, "PASSED": 1, "SKIPPED": 0}


def _function(value):
    """The plain function in a method, property or wrapper, else None."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    return value if isinstance(value, types.FunctionType) else None


def _snapshot():
    found = []
    for name, module in list(sys.modules.items()):
        if module is None or not (name.split(".")[0] in _WATCHED or name == "unittest.case"):
            continue
        for key, value in list(vars(module).items()):
            if _function(value) is not None:
                found.append((name, module, key, value, _function(value).__code__))
            elif isinstance(value, type) and value.__module__ == name:
                for part, inner in list(vars(value).items()):
                    if _function(inner) is not None:
                        found.append((name, value, part, inner, _function(inner).__code__))
    return found


def _changes(snapshot):
    for name, owner, key, value, code in snapshot:
        now = vars(owner).get(key)
        if now is not value or _function(now).__code__ is not code:
            function = _function(now)
            function = function if function is not None else getattr(now, "__func__", None)
            source = function.__code__.co_filename if isinstance(function, types.FunctionType) else "?"
            yield "%s.%s" % (getattr(owner, "__qualname__", name), key), source


class _Recorder(object):
    def __init__(self, secret, out):
        everything = _snapshot()
        core = [item for item in everything if item[0] in _CORE]
        status, raised, foreign, state = {}, {}, {}, {"exit": None}
        here = os.getcwd() + os.sep
        for _, owner, key, _, code in everything:  # replaced by what ran before us
            if code.co_filename.startswith(here):
                foreign["%s.%s" % (getattr(owner, "__name__", "?"), key)] = code.co_filename

        def sign(text):
            return hashlib.sha256(secret + text.encode("ascii")).hexdigest()

        def say(kind, text):
            data = ("\n~~record:%s %s %s .\n" % (kind, sign(kind + text), text)).encode("ascii")
            while data:
                data = data[os.write(out, data) :]

        def look(items):
            for what, source in _changes(items):
                foreign[what] = source

        def note(name, word):
            if _RANK[word] >= _RANK.get(status.get(name), -1):
                status[name] = word

        def call(name, error):
            raised[name] = error

        def report(rep):
            if type(rep).__name__ == "SubtestReport" or hasattr(rep, "context"):
                return
            expected = hasattr(rep, "wasxfail")
            if rep.outcome == "failed":
                note(rep.nodeid, "FAILED" if rep.when == "call" else "ERROR")
            elif rep.outcome == "skipped":
                note(rep.nodeid, "XFAIL" if expected else "SKIPPED")
            elif rep.outcome == "passed" and rep.when == "call":
                if raised.get(rep.nodeid):
                    foreign["report of " + rep.nodeid] = "?"
                    note(rep.nodeid, "FAILED")
                else:
                    note(rep.nodeid, "XPASS" if expected else "PASSED")

        def finish(config):
            look(everything)
            hooks = {}
            for caller in list(vars(config.pluginmanager.hook).values()):
                if hasattr(caller, "get_hookimpls"):
                    for impl in caller.get_hookimpls():
                        function = getattr(impl.function, "__func__", impl.function)
                        code = getattr(function, "__code__", None)
                        hooks[code.co_filename if code is not None else "?"] = impl.plugin_name
            data = {"status": status, "foreign": foreign, "hooks": hooks, "exit": state["exit"]}
            raw = zlib.compress(json.dumps(data).encode("utf-8"))
            say("end", base64.b64encode(raw).decode("ascii"))

        self.core, self.look, self.report, self.call, self.finish = core, look, report, call, finish
        self.state = state
        say("start", "-")


def _make():
    try:
        descriptor = os.open("@KEY@", os.O_RDONLY)
    except OSError:
        return None
    secret = os.read(descriptor, 256)
    os.close(descriptor)
    os.unlink("@KEY@")
    import unittest.case  # noqa: F401

    import _pytest.unittest  # noqa: F401

    return _Recorder(secret, os.dup(1))


_recorder = _make()

if _recorder is not None:

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_call(item):
        outcome = yield
        _recorder.look(_recorder.core)
        error = outcome.excinfo
        names = [base.__name__ for base in error[0].__mro__] if error else []
        skipped = {"Skipped", "SkipTest", "XFailed"}.intersection(names)
        _recorder.call(item.nodeid, bool(error) and not skipped)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(report):
        _recorder.report(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(session, exitstatus):
        _recorder.state["exit"] = int(exitstatus)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(config):
        _recorder.finish(config)
