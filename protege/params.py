"""params.yaml as one typed object: a section for each stage, after those that stages share."""

from __future__ import annotations

import difflib
import math
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protege.agent.loop import AgentParams, lifetime_problem
from protege.core.reward import RewardParams
from protege.desk.exercise_params import ExercisesParams
from protege.desk.params import InstancesParams
from protege.errors import BadParams
from protege.expert.oracle import OracleParams
from protege.expert.params import ApiParams, ExpertParams, JudgeParams
from protege.frontier.params import FrontierParams
from protege.policy.embedded import ModelParams
from protege.report import ReportParams
from protege.report.promotion import NightlyParams
from protege.runner import RunnerParams
from protege.sandbox.base import SandboxParams
from protege.train.grpo import RlParams
from protege.train.sft import SftParams
from protege.validation import ValidateParams

ExpertName = Literal["none", "oracle", "api"]
ModelName = Literal["base", "sft", "rl"]
Samples = Annotated[int, Field(ge=1)]


class TrajectoriesParams(BaseModel):
    """Section ``trajectories``. ``attempts`` is the number of rollouts for each sft instance; ``silence`` is the share of
    questions that get no answer, so that what to do then is in the training data."""

    model_config = ConfigDict(extra="forbid")

    seed: int = 11
    teacher: Literal["scripted", "api"] = "scripted"
    expert: ExpertName = "oracle"
    silence: float = Field(0.0, ge=0, lt=1)
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
    models: tuple[ModelName, ...] = Field(("base", "sft", "rl"), min_length=1)
    experts: tuple[ExpertName, ...] = Field(("none", "oracle"), min_length=1)
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
    runner: RunnerParams = RunnerParams()
    exercises: ExercisesParams = ExercisesParams()
    frontier: FrontierParams = FrontierParams()
    nightly: NightlyParams = NightlyParams()

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
        loader = _Loader(path.read_text(encoding="utf-8"))
        loader.name = str(path)
        raw = loader.get_single_data()
    except FileNotFoundError as error:
        raise BadParams(f"no {path} here; run in the project's folder, or copy one of profiles/ to it") from error
    except UnicodeDecodeError as error:
        raise BadParams(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise BadParams(
            f"{path} cannot be read ({error.strerror}); a file such as those of profiles/ is needed"
        ) from error
    except yaml.YAMLError as error:
        raise BadParams(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"holds a {type(raw).__name__}"
        raise BadParams(f"{path} {what}; it should hold sections, as the files of profiles/ do")
    if endless := [
        f"{key}: {value} is not a finite number" for key, value in _numbers(raw) if not math.isfinite(value)
    ]:
        raise BadParams(f"{path}: {'; '.join(endless)}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise BadParams(f"{path}: {'; '.join(said(error, Params))}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one section, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands twice; keep one of them", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _numbers(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield where, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(inner, f"{where}.{key}" if where else str(key))


def said(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Each thing that is wrong: the key, and what it should be, without the words of pydantic that help nobody."""
    found = error.errors()
    broken = {e["loc"][:-1] for e in found if e["type"] != "too_short"}
    lines = []
    for e in found:
        if e["type"] == "too_short" and e["loc"] in broken:  # counted after its wrong items were taken out
            continue
        key, text = ".".join(str(part) for part in e["loc"]), e["msg"]
        if e["type"] == "extra_forbidden":
            keys = _keys_at(model, e["loc"][:-1])
            near = difflib.get_close_matches(str(e["loc"][-1]), keys, n=1)
            text = "no such key" + (
                f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(keys)}" if keys else ""
            )
        elif e["type"] == "missing":
            text = "is missing"
        elif e["type"] in {"model_type", "dict_type"}:
            text = f"should be a section of keys, not {e['input']!r:.60}"
        elif e["type"] == "value_error":
            text = str(e["ctx"]["error"])
        lines.append(f"{key}: {text}" if key else text)
    return lines


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at ``location``; none where that is no section of a model."""
    for part in location:
        inner = next((f.annotation for name, f in model.model_fields.items() if part in {name, f.alias}), None)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]
