from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from protege.policy.tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")
