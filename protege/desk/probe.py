"""Runs inside the sandbox, next to the tests; imports nothing of protege and only the standard library.

As a pytest plugin (``-p protege_probe``) it notes, for each failing test, where in the test the failure is and what
the names there stood for. As a script it evaluates snippets (JSON on stdin) and says what each gave.
"""

import ast
import builtins
import json
import os
import sys
import types

OUT = os.environ.get("PROTEGE_PROBE_OUT", "/tmp/protege_probe.json")
RECORDS: list = []


def describe(value):
    """A literal's repr, or an importable name, or None."""
    if isinstance(value, types.ModuleType):
        return {"module": value.__name__}
    try:
        text = repr(value)
        if len(text) <= 400 and type(ast.literal_eval(text)) is type(value) and ast.literal_eval(text) == value:
            return {"literal": text}
    except Exception:
        pass
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and "<" not in name and module != "builtins":
        return {"module": module, "name": name}
    return None


def pytest_exception_interact(node, call, report):
    name = getattr(node, "originalname", None) or getattr(node, "name", "")
    entry = call.excinfo.tb
    found = None
    while entry is not None:
        if entry.tb_frame.f_code.co_name == name:
            found = entry
            break
        entry = entry.tb_next
    if found is None:
        return
    frame = found.tb_frame
    names = {}
    scope = dict(frame.f_globals)
    scope.update(frame.f_locals)
    for key, value in scope.items():
        if key.startswith("__") or hasattr(builtins, key) and getattr(builtins, key) is value:
            continue
        described = describe(value)
        if described is not None:
            names[key] = described
    owner = frame.f_locals.get("self")
    attributes = {}
    for cls in reversed(type(owner).__mro__) if owner is not None else ():
        if cls.__module__.startswith("unittest"):
            continue
        for key, value in vars(cls).items():
            if not key.startswith("_"):
                value = value.__func__ if isinstance(value, staticmethod) else value
                attributes[key] = describe(value)
    RECORDS.append(
        {
            "nodeid": node.nodeid,
            "file": frame.f_code.co_filename,
            "function": name,
            "line": found.tb_lineno,
            "locals": sorted(frame.f_locals),
            "names": names,
            "attributes": {k: v for k, v in attributes.items() if v},
            "exception": type(call.excinfo.value).__name__,
        }
    )


def pytest_sessionfinish():
    with open(OUT, "w") as handle:
        json.dump(RECORDS, handle)


def evaluate(snippet):
    """Run ``setup`` and then ``final``; what came out: {"value": repr} or {"exception": type, "message": str}."""
    import signal

    def too_long(signum, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(5)
    space = {"__name__": "__main__"}
    try:
        try:
            exec(compile("\n".join(snippet["setup"]), "<snippet>", "exec"), space)
        except (Exception, SystemExit) as error:
            return {"setup": False, "exception": type(error).__name__, "message": str(error)}
        try:
            code = compile(snippet["final"], "<snippet>", "eval")
        except SyntaxError:
            code = compile(snippet["final"], "<snippet>", "exec")
        value = eval(code, space)
        return {"value": repr(value), "type": type(value).__name__}
    except (Exception, SystemExit) as error:
        return {"exception": type(error).__name__, "message": str(error)}
    except KeyboardInterrupt:
        return {"exception": "", "message": "too long"}
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    real = sys.stdout
    sys.stdout = sys.stderr
    answers = [evaluate(snippet) for snippet in json.load(sys.stdin)]
    sys.stdout = real
    print("PROTEGE-PROBE " + json.dumps(answers))
