"""Section ``runner`` of params.yaml: where the attempts of a stage run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RunnerParams(BaseModel):
    """``kind``: "threads" of the stage's own process, or the processes of a "dask" cluster.

    ``address`` is the scheduler of a running cluster; without one a cluster of ``processes`` (0: one a core, at most
    one for each worker of the stage) is started for the stage. Decides no result.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["threads", "dask"] = "threads"
    address: str | None = None
    processes: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _only_dask_has_a_scheduler(self) -> RunnerParams:
        if self.kind == "threads" and (self.address is not None or self.processes):
            raise ValueError("address and processes belong to kind: dask")
        return self
