"""params.yaml and machine.yaml as one typed object: a section for each stage, after those that stages share."""

from __future__ import annotations

import difflib
import functools
import math
import shutil
import subprocess
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from protege.errors import BadParams

MACHINE = "machine.yaml"


def how(default: Any, **checks: Any) -> Any:
    """A field of machine.yaml: it says how this machine computes, never what comes out, and is in no key."""
    return Field(default, json_schema_extra={"machine": True}, **checks)


def timezone_problem(name: str) -> str:
    """What is wrong with a time zone's name; "" when nothing is.

    >>> timezone_problem("Europe/Berlin"), timezone_problem("Berlin")
    ('', "'Berlin' is no time zone; write one such as UTC or Europe/Berlin")
    """
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):  # a folder of zones, an absolute path, no text
        return f"{name!r} is no time zone; write one such as UTC or Europe/Berlin"
    return ""


class Section(BaseModel):
    """One section of the settings. What :func:`how` marks is read from machine.yaml, all else from params.yaml."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    def deciding(self) -> dict[str, Any]:
        """What of it decides a result, as it goes into keys."""
        return self.model_dump(mode="json", exclude=machine_keys(type(self)))


def machine_keys(section: type[BaseModel]) -> set[str]:
    """The fields of ``section`` that machine.yaml holds."""
    extras = {name: field.json_schema_extra for name, field in section.model_fields.items()}
    return {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("machine")}


class ModelParams(Section):
    """Section ``model`` of params.yaml.

    ``source``: "embedded", a folder made by save_pretrained, or a hub id. ``dtype``: what it is served and
    trained in. ``server_args``: passed on to vLLM where they decide what it answers (``["--quantization", "fp8"]``).
    machine.yaml: ``device_args``, passed on too, say how it is spread over devices (``["--tensor-parallel-size", "2"]``).
    """

    source: str = "embedded"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    server_args: list[str] = []
    device_args: list[str] = how([])


SETTLE_S = 180.0
"""What a sandbox has to live beyond a rollout's time limit: the last reply, one file operation (60 s), the diff (120 s)."""


class AgentParams(Section):
    """Section ``agent`` of params.yaml: the limits of one rollout, each with its own exit status."""

    step_limit: int = Field(75, ge=1)
    context_tokens: int = Field(32768, ge=256)
    max_new_tokens: int = Field(1024, ge=16)
    time_limit_s: float = Field(1800.0, gt=0)
    observation_chars: int = Field(10000, ge=200)
    malformed_limit: int = Field(4, ge=1)
    expert_quota: int = Field(6, ge=0)
    expert_window: int = Field(5, ge=1)


def lifetime_problem(time_limit_s: float, lifetime_s: float) -> str:
    """Why a sandbox that lives ``lifetime_s`` cannot hold a rollout of ``time_limit_s``, or "" when it can.

    At equal values the engine and the loop race for the end, and a rollout that loses is an infrastructure failure
    with its diff gone, each time it is tried again.
    """
    if lifetime_s >= time_limit_s + SETTLE_S:
        return ""
    return (
        f"sandbox.lifetime_s is {lifetime_s:g}, but with agent.time_limit_s = {time_limit_s:g} it must be at least "
        f"{time_limit_s + SETTLE_S:g}: the diff is taken after the time limit, in the same sandbox"
    )


class SandboxParams(Section):
    """Section ``sandbox`` of params.yaml.

    ``warm`` sandboxes are kept ready ahead of their use, ``starts`` are started at once, and images of ours
    are pruned, least recently used first, when they take more than ``images_gb`` (0: never).
    """

    backend: Literal["auto", "docker", "bubblewrap"] = "auto"
    memory_mb: int = Field(2048, ge=64)
    cpus: float = Field(1.0, gt=0)
    pids: int = Field(256, ge=16)
    command_timeout_s: float = Field(60.0, gt=0)
    grade_timeout_s: float = Field(300.0, gt=0)
    max_output_bytes: int = Field(1_000_000, ge=1000)
    lifetime_s: float = Field(3600.0, gt=0)
    disk_mb: int = Field(4096, ge=64)
    start_timeout_s: float = how(120.0, gt=0)
    warm: int = how(2, ge=0)
    starts: int = how(2, ge=1)
    images_gb: float = how(20.0, ge=0)

    def deciding(self) -> dict[str, Any]:
        """What of it a program inside can notice; the backend that ``auto`` led to stands in keys by itself."""
        return {key: value for key, value in super().deciding().items() if key != "backend"}


class ExpertParams(Section):
    """Section ``expert``: what an expert behind an API is asked for. ``temperature`` null leaves it to the endpoint."""

    max_tokens: int = Field(1000, ge=16)
    temperature: float | None = Field(0.0, ge=0)


class JudgeParams(Section):
    """Section ``judge``: who gives the warrant and follow scores (docs/method.md, phase II).

    ``kind`` "heuristic" is offline and deterministic; "api" is the expert model (or the one that PROTEGE_JUDGE_*
    names). ``window`` is the number of messages that the warrant judge sees (paper: K = 5); ``message_chars``
    cuts each of them; ``malformed_retries`` is how often a reply that is not the JSON asked for is sent back.
    """

    kind: Literal["heuristic", "api"] = "heuristic"
    window: int = Field(5, ge=1)
    message_chars: int = Field(4000, ge=200)
    max_tokens: int = Field(300, ge=32)
    temperature: float | None = Field(0.0, ge=0)
    malformed_retries: int = Field(2, ge=0)
    reply_format: Literal["auto", "json_schema", "json_object", "text"] = "auto"


class Price(BaseModel):
    """USD for a million tokens; ``cached`` is for prompt tokens that the endpoint had cached (default: ``input``)."""

    model_config = ConfigDict(extra="forbid")

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)


Limit = Annotated[float, Field(ge=0)] | None


class ApiParams(Section):
    """Section ``api``: how expert, judge and teacher speak to an endpoint, and what they may spend together.

    Budgets are hard: a call is made only if the run's and the instance's spending stay within them even in the worst
    case. ``run`` names what is counted together: a restarted run goes on counting, another name starts at 0.
    ``timeout_s`` is for one attempt, ``give_up_after_s`` for a question with all of its attempts and waits.
    """

    timeout_s: float = how(120.0, gt=0)
    retries: int = how(5, ge=0)
    backoff_s: float = how(1.0, gt=0)
    backoff_max_s: float = how(60.0, gt=0)
    give_up_after_s: float = how(900.0, gt=0)
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = how("max_tokens")
    run: str = how("default", pattern=r"^\w[\w.-]{0,99}$")
    budget_usd: Limit = how(5.0)
    budget_tokens: Limit = how(None)
    instance_usd: Limit = how(None)
    instance_tokens: Limit = how(None)
    prices: dict[str, Price] = how({})
    allow_unknown_price: bool = how(False)


LEVELS = 3


class OracleParams(Section):
    """Section ``oracle``: how freely it speaks. Levels: 0 names the file, 1 function, line and kind of mistake, 2 the change
    in words. Call n (from 0) is answered at level ``first_level + n``, at most ``last_level``."""

    first_level: int = Field(0, ge=0, lt=LEVELS)
    last_level: int = Field(LEVELS - 1, ge=0, lt=LEVELS)
    max_overlap_chars: int = Field(20, ge=8, description="longest verbatim run of a gold line in a reply")

    @model_validator(mode="after")
    def _in_order(self) -> OracleParams:
        if self.last_level < self.first_level:
            raise ValueError(f"last_level = {self.last_level} lies below first_level = {self.first_level}")
        return self


class StageParams(BaseModel):
    """What differs between the two stages of the curriculum."""

    model_config = ConfigDict(extra="forbid")

    w_follow: float = Field(ge=0)
    w_correct: float = Field(1.0, ge=0)
    w_sim: float = Field(0.5, ge=0)
    w_expert: float = Field(ge=0)
    gate_follow: bool
    no_call_penalty: float = Field(le=0)


class RewardParams(Section):
    """Section ``reward``: weights, thresholds and gates; the defaults are the paper's where it gives a value.

    Given: k_first, k_later, lambda_loop, loop_floor, sim_threshold, tau_follow, follow_low, and in stage two
    w_follow, w_expert and the penalty without a call. Ours: tau_warrant, warrant_low, lambda_b2b, w_sim, the gates
    and stage one's weights, for which the paper gives a sign or an order only. ``w_correct`` and ``unsubmitted`` (what
    R_correct is worth where a patch resolves that the agent never submitted) are not in the paper; 1 is its reward.
    """

    k_first: int = Field(15, ge=1)
    k_later: int = Field(8, ge=1)
    lambda_loop: float = Field(0.5, ge=0)
    loop_floor: float = Field(-10.0, le=0)
    first_run_is_first_trigger: bool = True
    unsubmitted: float = Field(1.0, ge=0, le=1)
    sim_threshold: float = Field(0.5, ge=0, le=1)
    tau_warrant: float = Field(0.5, ge=0, le=1)
    warrant_low: float = Field(-1.0, le=0)
    tau_follow: float = Field(0.5, ge=0, le=1)
    follow_low: float = Field(-2.0, le=0)
    lambda_b2b: float = Field(-0.5, le=0)
    quota_penalty: float = Field(0.0, le=0)
    aggregate: Literal["mean", "min"] = "mean"
    gate_loop_half: float = Field(-1.0, le=0)
    gate_loop_zero: float = Field(-5.0, le=0)
    gate_follow_half: float = Field(-0.5, le=0)
    gate_follow_zero: float = Field(-1.5, le=0)
    stage_one: StageParams = StageParams(w_follow=0.2, w_expert=0.1, gate_follow=False, no_call_penalty=0.0)
    stage_two: StageParams = StageParams(w_follow=2.0, w_expert=0.3, gate_follow=True, no_call_penalty=-10.0)

    @model_validator(mode="after")
    def _gates_in_order(self) -> RewardParams:
        if not (self.gate_loop_zero < self.gate_loop_half and self.gate_follow_zero < self.gate_follow_half):
            raise ValueError("gate_*_zero must lie below gate_*_half (paper: a_2 < a_1 <= 0, b_2 < b_1 <= 0)")
        return self


SplitName = Literal["sft", "rl", "eval"]


class SplitParams(BaseModel):
    """What one split wants: ``count`` instances, spread over ``packages`` (desk suite only)."""

    model_config = ConfigDict(extra="forbid")

    packages: tuple[str, ...] = ()
    count: int = Field(ge=0)


class InstancesParams(Section):
    """Where instances come from and what makes a desk candidate good enough.

    ``max_changed_lines`` counts added plus removed lines of the bug's diff; ``max_file_kb`` (KiB) keeps files out
    that are too large for a small context; ``repeats`` is how often the whole test run is repeated, with and without
    the bug; ``preflight`` is how often each instance's gold patch is graded before it counts (0: never); ``max_fail_to_pass`` (test functions) drops bugs that break everything and so describe nothing;
    ``tries_per_instance`` bounds the search: at most that many candidates are verified for each one wanted.
    ``earlier`` are seeds of earlier nights: what they gave for sft and rl stays, ``count`` more is added for each (desk suite only).
    """

    source: str = "data/desk"
    seed: int = 7
    earlier: tuple[int, ...] = ()
    splits: dict[SplitName, SplitParams]
    max_changed_lines: int = Field(4, ge=2)
    max_file_kb: float = Field(40, gt=0)
    repeats: int = Field(2, ge=1)
    test_timeout_s: float = Field(60, gt=0)
    workers: int = how(2, ge=1)
    max_fail_to_pass: int = Field(25, ge=1)
    preflight: int = Field(2, ge=0)
    tries_per_instance: float = Field(6, ge=1)

    @model_validator(mode="after")
    def _eval_is_apart(self) -> InstancesParams:
        trained = {p for name, split in self.splits.items() if name != "eval" for p in split.packages}
        shared = trained & set(self.splits["eval"].packages) if "eval" in self.splits else set()
        if shared:
            raise ValueError(
                f"splits.eval.packages shares {sorted(shared)} with sft or rl; eval must use packages of its own"
            )
        if len({*self.earlier, self.seed}) <= len(self.earlier):
            raise ValueError(f"earlier = {list(self.earlier)} names a seed twice, or seed = {self.seed} itself")
        return self

    @property
    def desk(self) -> bool:
        """Whether the instances are the desk suite's; else ``source`` is a file of rows. DVC follows either by content."""
        return Path(self.source) == Path("data/desk")

    def of_each_seed(self) -> list[InstancesParams]:
        """One after the other, the nights that make the suite: earlier ones without eval, which is always fresh."""
        trained = {name: split for name, split in self.splits.items() if name != "eval"}
        before: list[dict[str, Any]] = [{"seed": seed, "earlier": (), "splits": trained} for seed in self.earlier]
        return [self.model_copy(update=values) for values in (*before, {"earlier": ()})]


class ExercisesParams(Section):
    """How many edit exercises there are (at most ``count``; 0: none), ``per_row`` of them in one conversation.

    They come from the packages of the sft split and from ``packages``, of which none may be in the eval split.
    ``renamed`` is the share of conversations that are under other names throughout (train/renaming.py).
    """

    seed: int = 29
    count: int = Field(0, ge=0)
    packages: tuple[str, ...] = ()
    per_row: int = Field(4, ge=1)
    renamed: float = Field(0.6, ge=0, le=1)


class ValidateParams(Section):
    """Section ``validate`` of params.yaml."""

    max_overlap_chars: int = Field(20, ge=0)
    min_kept: int = Field(1, ge=0)
    max_malformed: int = Field(0, ge=0)
    """Malformed messages that a kept trajectory may hold."""
    fits_share: float = Field(0.95, gt=0, le=1)
    """Share of the kept trajectories that must fit in sft.max_length; SFT leaves the others out and names them."""


class SftParams(Section):
    """Section ``sft`` of params.yaml. ``steps`` are optimizer steps of ``batch_size`` rows (paper: batch 32)."""

    seed: int = 3
    method: Literal["full", "lora"] = "full"
    steps: int = Field(24, ge=1)
    batch_size: int = Field(4, ge=1)
    micro_batch: int = Field(0, ge=0, description="rows in one forward pass; 0 is the whole batch")
    learning_rate: float = Field(2e-4, gt=0)
    warmup_steps: int = Field(2, ge=0)
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "linear"
    max_length: int = Field(4096, ge=16)
    renamed_copies: int = Field(
        0, ge=0, description="of each row, beside it, with other names throughout (renaming.py)"
    )
    lora_rank: int = Field(16, ge=1)
    checkpoint_every: int = how(8, ge=1)
    gradient_checkpointing: bool = how(False)
    accelerate: str = how("", description="configuration file of `accelerate launch` (launch.py); empty: one process")


class RlParams(Section):
    """Section ``rl`` of params.yaml. ``stage_two_from``: share of the steps after which stage II begins (paper: 0.5)."""

    seed: int = 5
    steps: int = Field(2, ge=1)
    group_size: int = Field(6, ge=2, description="G; paper: 6")
    prompts_per_step: int = Field(1, ge=1)
    learning_rate: float = Field(1e-6, gt=0)
    clip_low: float = Field(0.20, gt=0)
    clip_high: float = Field(0.28, gt=0)
    kl_beta: float = Field(0.01, ge=0)
    temperature: float = Field(1.0, gt=0)
    std_floor: float = Field(
        0.0, ge=0, description="reward points; a group is divided by no smaller deviation; paper: 0"
    )
    min_spread: float = Field(
        0.0, ge=0, description="reward points; a group whose rewards lie no further apart is skipped; paper: 0"
    )
    loss_type: Literal["grpo", "dapo", "bnpo"] = "dapo"
    lora_rank: int = Field(0, ge=0, description="0: full fine-tuning")
    stage_two_from: float = Field(0.5, ge=0, le=1)
    micro_batch: int = Field(1, ge=1)
    expert: str = "oracle"
    workers: int = how(4, ge=1)
    retries: int = how(2, ge=0)
    checkpoint_every: int = how(1, ge=1)
    max_tokens: int = Field(3072, ge=64)
    gradient_checkpointing: bool = how(False)


class ReportParams(Section):
    """Section ``report`` of params.yaml. ``confidence`` is of every interval; the bootstrap is seeded; expert replies
    that overlap by more than ``leak_chars`` with a gold line are counted."""

    confidence: float = Field(0.95, gt=0, lt=1)
    loop_run_longer_than: int = Field(10, ge=0)
    leak_chars: int = Field(20, ge=0)
    bootstrap_samples: int = Field(10_000, ge=100)
    bootstrap_seed: int = 0


GcPolicy = Literal["never", "pushed", "workspace"]


class NightlyParams(Section):
    """Section ``nightly`` of params.yaml.

    ``timezone`` decides the night's date (the schedule stands in prefect.yaml). ``retries`` of a stage, after ``backoff_s``,
    twice that, … seconds. ``fresh``: the night's date becomes ``instances.seed``. ``window``: that many nights' sft and rl
    instances are trained on, the newest with it (1: only its own); eval is always the night's own. ``model`` with ``expert`` is what is
    compared with the champion, and with the base model as long as there is none: it is promoted if the lower bound of the
    paired score interval of the Pass@1 difference is above ``-margin``, at most ``max_loop_share`` of its trajectories loop, and at most ``max_infra_share`` of either model's were lost
    to infrastructure, and at least ``min_graded`` instances have a verdict for both. ``remote``: the address that is pushed to (``s3://bucket/path``, a folder; "" for none; PROTEGE_REMOTE
    wins). ``gc``: when DVC's cache is reduced to what the workspace uses: "never", "pushed" (only in a night that pushed) or
    "workspace" (always). ``keep_days``: logs and finished units of work older than this are removed (0: never).
    """

    timezone: str = how("UTC")
    retries: int = how(2, ge=0)
    backoff_s: float = how(60, ge=0)
    fresh: bool = True
    window: int = Field(3, ge=1)
    model: Literal["sft", "rl"] = "rl"
    expert: Literal["none", "oracle", "api"] = "oracle"
    margin: float = Field(0.05, ge=0, le=1)
    max_loop_share: float = Field(0.5, ge=0, le=1)
    max_infra_share: float = Field(0.2, ge=0, le=1)
    min_graded: int = Field(10, ge=1)
    remote: str = how("")
    gc: GcPolicy = how("never")
    keep_days: float = how(30, ge=0)

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, name: str) -> str:
        if problem := timezone_problem(name):
            raise ValueError(problem)
        return name


class RunnerParams(Section):
    """``kind``: "threads" of the stage's own process, or the processes of a "dask" cluster.

    ``address`` is the scheduler of a running cluster; without one a cluster of ``processes`` (0: one a core, at most
    one for each worker of the stage) is started for the stage. Decides no result.
    """

    kind: Literal["threads", "dask"] = how("threads")
    address: str | None = how(None)
    processes: int = how(0, ge=0)

    @model_validator(mode="after")
    def _only_dask_has_a_scheduler(self) -> RunnerParams:
        if self.kind == "threads" and (self.address is not None or self.processes):
            raise ValueError("address and processes belong to kind: dask")
        return self


STRATEGIES = ("random", "every", "loop", "always")
"""Systems in which a rule decides when to ask; the model's own questions are refused."""


_VALUES: dict[str, tuple[type, float, float] | None] = {
    "never": None,
    "own": None,
    "random": (float, 0.0, 1.0),
    "every": (int, 1, 1000),
    "loop": (int, 2, 1000),
    "always": None,
    "silent": (float, 0.0, 1.0),
    "budget0": None,
    "vague": None,
}


KINDS = tuple(_VALUES)
"""In the order in which tables list them."""


@dataclass(frozen=True)
class System:
    """``kind`` is one of :data:`KINDS`; ``value``: probability a step, steps between questions, length of a loop, or share of silence."""

    kind: str
    value: float = 0.0

    @property
    def name(self) -> str:
        """A folder's name: ``random-0.25``, ``every-3``, ``own``."""
        return self.kind if _VALUES[self.kind] is None else f"{self.kind}-{self.value:g}"

    @property
    def label(self) -> str:
        """For people."""
        return {
            "never": "no expert",
            "own": "own choice",
            "random": f"at random ({self.value:g} a step)",
            "every": f"every {self.value:g} steps",
            "loop": f"at a loop of {self.value:g}",
            "always": "after every step",
            "silent": f"own choice, expert silent {self.value:.0%}",
            "budget0": "own choice, budget 0",
            "vague": "own choice, vaguer expert",
        }[self.kind]


def system(spec: str) -> System:
    """``"own"``, ``"random:0.25"``, ``"every:3"``, …; a folder's name is read too. Raises ValueError.

    >>> system("random:0.25").name, system("every-3").label
    ('random-0.25', 'every 3 steps')
    """
    kind, _, text = spec.replace(":", "-", 1).partition("-")
    if kind not in _VALUES:
        raise ValueError(f"{spec!r} is no system; the systems are {', '.join(_VALUES)}")
    bounds = _VALUES[kind]
    if bounds is None:
        if text:
            raise ValueError(f"{spec!r}: {kind} takes no number")
        return System(kind)
    number, low, high = bounds
    try:
        value = number(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise ValueError(f"{spec!r} should be {kind}:N with a number N of at least {low:g} and at most {high:g}")
    return System(kind, value)


def _known(spec: str) -> str:
    system(spec)
    return spec


class FrontierParams(Section):
    """Section ``frontier``: one model under several rules for asking. Seed, temperature, workers and retries are
    section ``evaluate``'s, so that systems that are evaluated there too are not rolled out again.

    ``samples``: rollouts of each instance for each system; null: as many as ``evaluate`` takes of the model.
    """

    model: Literal["base", "sft", "rl"] = "rl"
    expert: Literal["oracle", "api"] = "oracle"
    samples: Annotated[int, Field(ge=1)] | None = None
    systems: tuple[Annotated[str, AfterValidator(_known)], ...] = (
        "never",
        "own",
        "random:0.25",
        "every:3",
        "loop:3",
        "always",
        "silent:0.5",
        "budget0",
        "vague",
    )

    @field_validator("systems")
    @classmethod
    def _each_once(cls, specs: tuple[str, ...]) -> tuple[str, ...]:
        names = [system(spec).name for spec in specs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"named twice: {', '.join(twice)}")
        return specs


ExpertName = Literal["none", "oracle", "api"]


ModelName = Literal["base", "sft", "rl"]


Samples = Annotated[int, Field(ge=1)]


class TrajectoriesParams(Section):
    """Section ``trajectories``. ``attempts`` is the number of rollouts for each sft instance; ``silence`` is the share of
    questions that get no answer, so that what to do then is in the training data."""

    seed: int = 11
    teacher: Literal["scripted", "api"] = "scripted"
    expert: ExpertName = "oracle"
    silence: float = Field(0.0, ge=0, lt=1)
    attempts: int = Field(1, ge=1)
    workers: int = how(4, ge=1)
    retries: int = how(2, ge=0)


class EvaluateParams(Section):
    """Section ``evaluate``: every model with every expert on the eval split, ``workers`` rollouts at once.

    ``samples``: rollouts of each instance for each model; one number, or one for each model. More than one needs a
    temperature above 0.
    """

    seed: int = 13
    models: tuple[ModelName, ...] = Field(("base", "sft", "rl"), min_length=1)
    experts: tuple[ExpertName, ...] = Field(("none", "oracle"), min_length=1)
    temperature: float = Field(0.0, ge=0)
    samples: Samples | dict[ModelName, Samples] = 1
    workers: int = how(8, ge=1)
    retries: int = how(2, ge=0)

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
    """Both files. ``machine`` names the file that said how to compute."""

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
    _machine: str = PrivateAttr("the defaults of protege/config.py")

    @property
    def machine(self) -> str:
        return self._machine

    @model_validator(mode="after")
    def _sandboxes_outlive_rollouts(self) -> Params:
        if problem := lifetime_problem(self.agent.time_limit_s, self.sandbox.lifetime_s):
            raise ValueError(problem)
        return self


def load(path: Path | str = "params.yaml", machine: Path | str | None = None) -> Params:
    """Read and check params.yaml, and how this machine computes it: ``machine``, else machine.yaml beside ``path``,
    else the file of machines/ that fits (:func:`fitting_machine`), else the defaults.

    Raises:
        BadParams: a file is missing or is not YAML, or a key is missing, unknown, of the wrong kind or in the wrong
            one of the two files; the message names every such key.
    """
    path = Path(path)
    raw = _read(path, "a file such as those of profiles/ is needed", "copy one of profiles/ to it")
    place, name = _machine_file(path, machine)
    how_raw = _read(place, "see machines/", "run `protege machine NAME`") if place else {}
    wrong = [*_misplaced(raw, path.name, here=False), *_misplaced(how_raw, str(place), here=True)]
    if wrong:
        raise BadParams("; ".join(wrong))
    both = {key: {**raw.get(key, {}), **how_raw.get(key, {})} if key in how_raw else value for key, value in
            {**{key: {} for key in how_raw}, **raw}.items()}  # fmt: skip
    try:
        params = Params.model_validate(both)
    except ValidationError as error:
        ours, theirs = faults(error, Params), []
        for section, values in how_raw.items():
            theirs += [line for line in ours if any(line.startswith(f"{section}.{key}") for key in values)]
        texts = [(path, [line for line in ours if line not in theirs]), (place, theirs)]
        raise BadParams("; ".join(f"{file}: {'; '.join(lines)}" for file, lines in texts if lines)) from error
    params._machine = name
    return params


@functools.cache  # a process asks for its settings more than once, and nvidia-smi takes seconds
def fitting_machine() -> str:
    """The name in machines/ that fits what is here: by number and memory of the GPUs that nvidia-smi lists, else cpu."""
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True, encoding="utf-8")
        sizes = [int(line) for line in done.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return "cpu"
    if not sizes:
        return "cpu"
    if min(sizes) < 60_000:
        return "gpu-24g"
    return "gpu-8x80g" if len(sizes) >= 8 else "gpu-80g"


def _machine_file(params: Path, given: Path | str | None) -> tuple[Path | None, str]:
    """The file that says how to compute, and what to call it; no file: the defaults."""
    if given is not None:
        return Path(given), str(given)
    if (own := params.parent / MACHINE).is_file():
        return own, str(own)
    name = fitting_machine()
    for folder in (params.parent, Path()):
        if (ready := folder / "machines" / f"{name}.yaml").is_file():
            return ready, f"{name} (found here; `protege machine NAME` writes machine.yaml)"
    return None, "the defaults of protege/config.py"


def _read(path: Path, what: str, todo: str) -> dict[str, Any]:
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        loader.name = str(path)
        raw = loader.get_single_data()
    except FileNotFoundError as error:
        raise BadParams(f"no {path} here; run in the project's folder, or {todo}") from error
    except UnicodeDecodeError as error:
        raise BadParams(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise BadParams(f"{path} cannot be read ({error.strerror}); {what}") from error
    except yaml.YAMLError as error:
        raise BadParams(f"{path} is not YAML: {error}") from error
    if path.name == MACHINE and raw is None:
        return {}  # nothing but comments
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"holds a {type(raw).__name__}"
        raise BadParams(f"{path} {what}; it should hold sections, as the files of profiles/ do")
    if endless := [
        f"{key}: {value} is not a finite number" for key, value in _numbers(raw) if not math.isfinite(value)
    ]:
        raise BadParams(f"{path}: {'; '.join(endless)}")
    return raw


def _misplaced(raw: dict[str, Any], file: str, here: bool) -> Iterator[str]:
    """What stands in one of the two files and belongs into the other; ``here``: ``raw`` is machine.yaml's."""
    known = sections()
    for name, values in raw.items():
        section = known.get(name)
        if section is None:
            if here:
                there = ", ".join(name for name, section in known.items() if machine_keys(section))
                yield f"{file}: {name}: no such section; there are: {there}"
            continue
        if not isinstance(values, dict):
            if here:
                yield f"{file}: {name}: should be a section of keys, not {values!r:.60}"
            continue
        ours = machine_keys(section)
        for key in values:
            if not here and key in ours:
                yield f"{file}: {name}.{key} says how this machine computes; it belongs into {MACHINE}"
            elif here and key not in ours:
                why = "decides results; it belongs into params.yaml" if key in section.model_fields else ""
                near = difflib.get_close_matches(str(key), ours, n=1)
                why = why or "no such key" + (
                    f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(sorted(ours))}"
                )
                yield f"{file}: {name}.{key}: {why}"


def sections() -> dict[str, type[Section]]:
    """The sections of both files by the name that the files give them."""
    fields = {field.alias or name: field.annotation for name, field in Params.model_fields.items()}
    return {name: kind for name, kind in fields.items() if isinstance(kind, type) and issubclass(kind, Section)}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
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
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def _numbers(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield where, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(inner, f"{where}.{key}" if where else str(key))


def faults(error: ValidationError, model: type[BaseModel]) -> list[str]:
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
