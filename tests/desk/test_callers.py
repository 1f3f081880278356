"""Which tests call a function, and what a proof saves by knowing it: the verdict is that of whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from protege.config import InstancesParams, SandboxParams
from protege.desk import desk, verify
from protege.desk.modifiers import Candidate
from protege.desk.sources import Package, ensure_site
from protege.desk.testrun import Callers, gold
from protege.desk.verify import Dropped, Verified
from protege.sandbox.bubblewrap import BubblewrapProvider
from tests.desk.conftest import FILES, write_sdist

ROOT = Path(__file__).parents[2]
CORE = '''"""Areas."""
import functools
import threading


def once():
    return 3


SIDES = once()


class Square:
    def __init__(self, side):
        self.side = side

    @property
    def area(self):
        return self.side * self.side

    def unused(self):
        return self.side + 1


def doubled(text):
    def twice(part):
        return part + part

    return "".join(map(twice, text))


def threaded(values):
    found = []
    one = threading.Thread(target=lambda: found.append(inner(values)))
    one.start()
    one.join()
    return found[0]


def inner(values):
    return len(values)


@functools.lru_cache
def cached(number):
    return number + SIDES
'''
TESTS = """import sys

import pytest

from pkg.core import Square, cached, doubled, threaded


@pytest.mark.parametrize("side", [1, 2])
def test_area(side):
    assert Square(side).area == side * side


def test_doubled():
    assert doubled("ab") == "aabb"
    sys.setprofile(None)


class TestMore:
    def test_threads(self):
        assert threaded([1]) == 1

    def test_doubled_too(self):
        assert doubled("x") == "xx"


def test_cached():
    assert cached(1) == 4


def test_wrong():
    assert doubled("") is None
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory):
    """verify(text of the function, text in its place) for a package of that code; and what its tests do without a bug."""
    tmp_path = tmp_path_factory.mktemp("pkg")
    path = tmp_path / "pkg-1.0.tar.gz"
    sha = write_sdist(path, {**FILES, "pkg/core.py": CORE, "tests/test_core.py": TESTS})
    package = Package(
        name="pkg", version="1.0", sdist=path.name, sha256=sha, repo="some/pkg", source="pkg", tests="tests"
    )
    prepared = desk.prepare(package, tmp_path / "cache", path)
    site = ensure_site(ROOT / "data/desk/requirements-desk.txt", ROOT / ".cache/protege")
    provider = BubblewrapProvider(SandboxParams(), prepared.testbeds, site)
    params = InstancesParams(splits={}, repeats=2)
    normal = gold(prepared, provider, params)

    def proved(entity: str, line: str, instead: str, modifier: str = "x", baseline=normal) -> Verified | Dropped:
        assert CORE.count(line) == 1
        buggy = CORE.replace(line, instead)
        candidate = Candidate("pkg__1.0.x__0", "pkg", "1.0", modifier, "pkg/core.py", entity, CORE, buggy, 2)
        return verify.verify(candidate, prepared, baseline, provider, params)

    return normal, proved


def test_the_tests_that_call_a_function_are_known(shop):
    normal, _ = shop
    test = "tests/test_core.py::{}".format

    def of(name: str) -> tuple[str, ...] | None:
        return normal.tests_of("pkg/core.py", name)

    assert of("Square.area") == (test("test_area"),), "of a parametrised test once, by its base id"
    assert of("Square.unused") == of("nothing") == ()
    both = (test("TestMore::test_doubled_too"), test("test_doubled"))
    assert of("doubled") == both, "also of the test after one that ends profiling; not of the one that fails anyway"
    assert of("doubled.twice") == both
    assert of("inner") == (test("TestMore::test_threads"),), "called in another thread"
    assert of("once") is None, "called on import: any test may depend on it"


def test_a_function_with_many_callers_is_not_told_apart():
    normal = {"passed": (), "unstable": ("c",), "broken": ("d",), "seconds": 1, "cpu_seconds": 1}
    callers = Callers(tests=("b", "a", "c", "d"), calls={"p.py:f": (0, 1, 2, 3), "p.py:g": None})
    gold = verify.Gold(**normal, callers=callers)
    assert gold.tests_of("p.py", "f") == ("a", "b") and gold.tests_of("p.py", "g") is None
    assert verify.Gold(**normal).tests_of("p.py", "f") is None


@pytest.mark.parametrize("known", [True, False])
def test_a_bug_is_proved_alike_with_and_without_knowing_its_callers(shop, known):
    normal, proved = shop
    baseline = normal if known else normal.model_copy(update={"callers": None})
    bug = proved("Square.area", "self.side * self.side", "self.side + self.side", baseline=baseline)
    assert isinstance(bug, Verified)
    assert bug.fail_to_pass == ("tests/test_core.py::test_area[1]",), "1 + 1 is not 1, but 2 + 2 is 4"
    assert "tests/test_core.py::test_area[2]" in bug.pass_to_pass and "Square(" in bug.problem_statement
    harmless = proved("doubled", "return part + part", "return 2 * part", baseline=baseline)
    assert isinstance(harmless, Dropped) and harmless.reason == "no_fail_to_pass"
    imported = proved("once", "return 3", "return 4", baseline=baseline)
    assert isinstance(imported, Verified) and imported.fail_to_pass == ("tests/test_core.py::test_cached",)
    broken = proved("doubled", "return part + part", "return part +* part", baseline=baseline)
    assert isinstance(broken, Dropped) and broken.reason == "crash"


def test_what_no_test_calls_costs_no_run(shop, monkeypatch):
    _, proved = shop
    monkeypatch.setattr(verify, "run_tests", lambda *_: pytest.fail("ran all tests"))
    dropped = proved("Square.unused", "self.side + 1", "self.side - 1")
    assert isinstance(dropped, Dropped) and "no test calls" in dropped.detail
    harmless = proved("doubled", "return part + part", "return 2 * part")
    assert isinstance(harmless, Dropped) and harmless.reason == "no_fail_to_pass"


def test_a_bug_of_a_class_is_judged_by_all_tests(shop):
    """Its base or a method taken away shows in tests that call nothing of its own."""
    _, proved = shop
    name = "    def unused(self):\n        return self.side + 1\n"
    dropped = proved("Square.unused", name, "", modifier="func_pm_class_rm_funcs")
    assert isinstance(dropped, Dropped) and "no test calls" not in dropped.detail
