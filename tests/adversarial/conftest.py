from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from protege.core.trajectory import Verdict
from protege.grading.grade import grade
from tests.adversarial.attack import diff_of
from tests.sandbox.fixtures import cache, docker_image, make_provider, provider, sandbox, tiny  # noqa: F401


@pytest.fixture
def attack(provider, tiny, tmp_path: Path) -> Callable[..., Verdict]:  # noqa: F811
    """Grade what the files given (path -> text, None deletes) make of the tiny repository."""

    def run(files: dict[str, str | None]) -> Verdict:
        return grade(tiny.instance, diff_of(tiny, files), provider, log_dir=tmp_path)

    return run
