"""Stage validate: the data expectations; a violation stops the pipeline with the rows named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact

from protege.config import Params
from protege.files import write_json
from protege.validation import token_counter
from protege.validation import validate as check
from tasks.stage import ended, run_stage

OUT = Path("data/validation")
TRAIN = Path("data/sft/train.parquet")


@flow(name="validate", validate_parameters=False)
def validate(params: Params) -> State[Any]:
    try:
        result = check(
            trajectory_dir=Path("data/trajectories/sft"),
            instances_dir=Path("data/instances"),
            out_dir=OUT,
            train_path=TRAIN,
            params=params.validate_,
            count_tokens=token_counter(Path("data/models/base")),
            max_length=params.sft.max_length,
            exercises_path=Path("data/trajectories/exercises.jsonl"),
        )
    finally:
        page = OUT / "validation.md"
        if page.is_file():  # the Data Docs need a browser with the files; the UI shows this
            create_markdown_artifact(page.read_text(), key="validation", description="Great Expectations")
    write_json("data/metrics/validate.json", result.metrics)
    return ended("validate", f"{len(result.checks)} expectations hold; {TRAIN} written")


if __name__ == "__main__":
    run_stage("validate", validate)
