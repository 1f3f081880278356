"""Stage sft: supervised fine-tuning of the base model on the validated trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import State, flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from protege.config import Params
from protege.files import write_json
from protege.train.launch import launch_sft
from protege.train.sft import train_sft
from tasks.progress import say
from tasks.settings import HOME
from tasks.stage import ended, run_stage

OUT = Path("data/models/sft")


@task(name="train", persist_result=False, cache_policy=NO_CACHE)
def train(params: Params) -> dict[str, Any]:
    """Not retried here: a killed training goes on from its last checkpoint when the stage runs again."""
    return (launch_sft if params.sft.accelerate else train_sft)(
        Path("data/models/base"),
        Path("data/sft/train.parquet"),
        OUT,
        params.sft,
        checkpoint_dir=HOME / "checkpoints" / "sft",
        dtype=params.model.dtype,
        progress=lambda line: say("sft", line),
    )


@flow(name="sft", validate_parameters=False)
def sft(params: Params) -> State[Any]:
    metrics = train(params)
    write_json("data/metrics/sft.json", metrics)
    lines = ["| metric | value |", "|---|---:|", *(f"| {name} | {value} |" for name, value in metrics.items())]
    create_markdown_artifact("\n".join(lines) + "\n", key="sft", description="Supervised fine-tuning")
    return ended("sft", f"loss {metrics['loss_first']:.3f} -> {metrics['loss_last']:.3f}")


if __name__ == "__main__":
    run_stage("sft", sft)
