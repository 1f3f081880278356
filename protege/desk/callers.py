"""Runs inside the sandbox, as a pytest plugin; imports nothing of protege and only the standard library.

It notes which test functions called which functions under the working directory: {"tests": [base id, …], "calls":
{"path:qualified.name": [index into tests, …] or null}}. null: more tests than are worth telling apart, or called outside
of any test (on import, say), so that each of them may depend on it. What runs in a process of its own is not seen.
"""

import json
import os
import sys
import threading

OUT = os.environ.get("PROTEGE_PROBE_OUT", "/tmp/protege_callers.json")
MOST = 40
CODES: dict = {}  # by identity, since equal functions of two files have equal codes; held, so that none is reused
OUTSIDE: set = set()
TESTS: dict = {}
current = OUTSIDE


def note(frame, event, arg):
    if event == "call":
        code = frame.f_code
        if id(code) not in current:
            CODES[id(code)] = code
            current.add(id(code))


def watch():
    threading.setprofile(note)
    sys.setprofile(note)


def pytest_runtest_logstart(nodeid, location):
    global current
    current = TESTS.setdefault(nodeid.split("[")[0], set())
    watch()  # a test may have set a profile of its own


def pytest_runtest_logfinish(nodeid, location):
    global current
    current = OUTSIDE


def names(code):
    """Of the function and of those that it stands in: their text is its text, too."""
    parts = [part for part in code.co_qualname.split(".") if part[0] != "<"]
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def pytest_sessionfinish():
    sys.setprofile(None)
    threading.setprofile(None)
    root = os.path.realpath(os.getcwd()) + os.sep
    places = {}
    for key, code in CODES.items():
        path = os.path.realpath(code.co_filename)
        if path.startswith(root) and not code.co_filename.startswith("<"):  # <string>, <frozen importlib>
            places[key] = [f"{path[len(root) :]}:{name}" for name in names(code)]
    calls: dict = {}
    for index, seen in enumerate(TESTS.values()):
        for place in {place for key in seen for place in places.get(key, ())}:
            calls.setdefault(place, []).append(index)
    found = {place: tests if len(tests) <= MOST else None for place, tests in calls.items()}
    found.update({place: None for key in OUTSIDE for place in places.get(key, ())})
    with open(OUT, "w") as handle:
        json.dump({"tests": list(TESTS), "calls": found}, handle)


if __name__ == "protege_callers":  # its name in the sandbox
    watch()
