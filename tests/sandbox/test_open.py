from __future__ import annotations

import logging

import pytest

from protege.config import SandboxParams
from protege.errors import SandboxUnavailable
from protege.sandbox.bubblewrap import problem
from protege.sandbox.open import open_provider


@pytest.fixture
def no_engine(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")


def test_docker_is_not_replaced_silently(no_engine):
    with pytest.raises(SandboxUnavailable):
        open_provider(SandboxParams(backend="docker"))


def test_auto_falls_back_and_says_so(no_engine, caplog, tmp_path):
    with caplog.at_level(logging.INFO):
        assert open_provider(SandboxParams(), tmp_path).backend == "bubblewrap"
    assert len(caplog.records) == 1 and "memory is limited for each process" in caplog.text


def test_with_neither_one_sentence_says_what_to_install(no_engine, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    problem.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="install bubblewrap, or install and start a Docker engine"):
            open_provider(SandboxParams(), tmp_path)
    finally:
        problem.cache_clear()


@pytest.mark.docker
def test_auto_takes_docker_where_it_answers():
    assert open_provider(SandboxParams()).backend == "docker"
