"""params.yaml as one typed object: a section for each stage, after those that stages share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protege.agent import AgentParams, lifetime_problem
from protege.errors import BadParams
from protege.expert.oracle import OracleParams
from protege.expert.params import ApiParams, ExpertParams, JudgeParams
from protege.instances.params import InstancesParams
from protege.report import ReportParams
from protege.reward import RewardParams
from protege.sandbox.base import SandboxParams
from protege.train.embedded import ModelParams
from protege.train.grpo import RlParams
from protege.train.sft import SftParams
from protege.validation import ValidateParams

ExpertName = Literal["none", "oracle", "api"]
ModelName = Literal["base", "sft", "rl"]
Samples = Annotated[int, Field(ge=1)]


class TrajectoriesParams(BaseModel):
    """Section ``trajectories``. ``attempts`` is the number of rollouts for each sft instance."""

    model_config = ConfigDict(extra="forbid")

    seed: int = 11
    teacher: Literal["scripted", "api"] = "scripted"
    expert: ExpertName = "oracle"
    attempts: int = Field(1, ge=1)
    workers: int = Field(4, ge=1)
    retries: int = Field(2, ge=0)


class EvaluateParams(BaseModel):
    """Section ``evaluate``: every model with every expert on the eval split, ``workers`` rollouts at once.

    ``samples``: rollouts of each instance for each model; one number, or one for each model. More than one needs a
    temperature above 0.
    """

    model_config = ConfigDict(extra="forbid")

    seed: int = 13
    models: tuple[ModelName, ...] = ("base", "sft", "rl")
    experts: tuple[ExpertName, ...] = ("none", "oracle")
    temperature: float = Field(0.0, ge=0)
    samples: Samples | dict[ModelName, Samples] = 1
    workers: int = Field(8, ge=1)
    retries: int = Field(2, ge=0)

    def samples_of(self, model: ModelName) -> int:
        return self.samples if isinstance(self.samples, int) else self.samples[model]

    @model_validator(mode="after")
    def _samples_for_every_model(self) -> EvaluateParams:
        if isinstance(self.samples, dict) and (missing := [m for m in self.models if m not in self.samples]):
            raise ValueError(f"samples names no number for {', '.join(missing)}")
        if self.temperature == 0 and any(self.samples_of(model) > 1 for model in self.models):
            raise ValueError("samples above 1 are all the same at temperature 0; set temperature, or samples: 1")
        return self


class Params(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid")

    profile: str
    model: ModelParams
    agent: AgentParams
    sandbox: SandboxParams
    instances: InstancesParams
    trajectories: TrajectoriesParams
    validate_: ValidateParams = Field(alias="validate")
    sft: SftParams
    rl: RlParams
    evaluate: EvaluateParams
    report: ReportParams
    expert: ExpertParams = ExpertParams()
    oracle: OracleParams = OracleParams()
    judge: JudgeParams = JudgeParams()
    api: ApiParams = ApiParams()
    reward: RewardParams = RewardParams()

    @model_validator(mode="after")
    def _sandboxes_outlive_rollouts(self) -> Params:
        if problem := lifetime_problem(self.agent.time_limit_s, self.sandbox.lifetime_s):
            raise ValueError(problem)
        return self


def load(path: Path | str = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        BadParams: the file is missing or is not YAML, or a key is missing, unknown or of the wrong kind; the
            message names every such key.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise BadParams(f"no {path} here; run in the project's folder, or copy one of profiles/ to it") from error
    except yaml.YAMLError as error:
        raise BadParams(f"{path} is not YAML: {error}") from error
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        wrong = "; ".join(f"{_key(e['loc'])}: {e['msg']}" for e in error.errors())
        raise BadParams(f"{path}: {wrong}") from error


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "the file"
