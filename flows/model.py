"""Stage model: the base model as a normal model folder, data/models/base."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from protege.config import Params
from protege.policy.embedded import load_source
from tasks.progress import say
from tasks.settings import HOME
from tasks.stage import run_stage

OUT = Path("data/models/base")


@flow(name="model", validate_parameters=False)
def model(params: Params) -> None:
    load_source(params.model, OUT, HOME / "wheels")
    say("model", f"{params.model.source} -> {OUT}")


if __name__ == "__main__":
    run_stage("model", model)
