from __future__ import annotations

import ast

from protege.desk.testfiles import base_id, find_test, remove_tests

from .conftest import TESTS


def test_a_function_goes_with_its_decorators_and_the_comment_above_it():
    removal = remove_tests({"t.py": TESTS}, ["t.py::test_total[values0-6]", "t.py::test_label"])
    text = removal.files["t.py"]
    assert "test_total" not in text and "parametrize" not in text and "about names" not in text
    assert "test_other" in text and "TestLong" in text
    ast.parse(text)


def test_an_emptied_class_keeps_pass():
    text = remove_tests({"t.py": TESTS}, ["t.py::TestLong::test_cut"]).files["t.py"]
    node = next(n for n in ast.parse(text).body if isinstance(n, ast.ClassDef))
    assert [type(n) for n in node.body] == [ast.Pass]


def test_an_inherited_test_is_removed_from_its_base_in_another_file():
    mixin = "class Mixin:\n    def test_a(self):\n        assert 1\n\n    def test_b(self):\n        assert 2\n"
    child = "import unittest\nfrom . import Mixin\n\n\nclass A(unittest.TestCase, Mixin):\n    x = 1\n"
    sources = {"tests/__init__.py": mixin, "tests/test_a.py": child}
    removal = remove_tests(sources, ["tests/test_a.py::A::test_a"])
    assert list(removal.files) == ["tests/__init__.py"]
    assert "test_a" not in removal.files["tests/__init__.py"] and "test_b" in removal.files["tests/__init__.py"]
    assert find_test(sources, "tests/test_a.py::A::test_a")[0] == "tests/__init__.py"


def test_every_definition_of_the_name_goes():
    text = "def test_a():\n    assert 1\n\n\ndef test_b():\n    pass\n\n\ndef test_a():\n    assert 2\n"
    assert "test_a" not in remove_tests({"t.py": text}, ["t.py::test_a"]).files["t.py"]


def test_a_block_left_empty_still_parses():
    text = "import sys\nif sys.version_info > (3,):\n    def test_a():\n        assert 1\n"
    result = remove_tests({"t.py": text}, ["t.py::test_a"]).files["t.py"]
    assert "pass" in result and "test_a" not in result


def test_what_is_not_found_is_said():
    assert remove_tests({"t.py": TESTS}, ["t.py::test_gone", "t.py"]).missing == ("t.py", "t.py::test_gone")


def test_base_id_drops_the_parameters_only():
    assert base_id("a.py::T::test_x[a[1]-b]") == "a.py::T::test_x"
