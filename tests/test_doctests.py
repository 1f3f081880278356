"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

MODULES = ["files", "loops", "reward", "sandbox.images", "sandbox.patches", "expert.model_judge", "expert.spoken"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"protege.{name}"))
    assert result.attempted and not result.failed
