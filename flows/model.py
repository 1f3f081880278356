"""Stage model: the base model as a normal model folder, data/models/base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import State, flow

from protege.config import Params
from protege.policy.embedded import load_source
from tasks.settings import HOME
from tasks.stage import ended, run_stage

OUT = Path("data/models/base")


@flow(name="model", validate_parameters=False)
def model(params: Params) -> State[Any]:
    load_source(params.model, OUT, HOME / "wheels")
    return ended("model", f"{params.model.source} -> {OUT}")


if __name__ == "__main__":
    run_stage("model", model)
