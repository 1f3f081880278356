"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

MODULES = [
    "protege.agent.normalise",
    "protege.core.loops",
    "protege.core.reward",
    "protege.expert.model_judge",
    "protege.expert.spoken",
    "protege.files",
    "protege.sandbox.images",
    "protege.sandbox.patches",
    "tests.schedule",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed
