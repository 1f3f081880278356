"""Sections ``expert``, ``judge`` and ``api`` of params.yaml.

``expert`` and ``judge`` decide results and are part of their cache keys; ``api`` (time-outs, retries, budgets,
prices) decides only whether and at what cost a reply is had.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class ExpertParams(BaseModel):
    """Section ``expert``: what an expert behind an API is asked for. ``temperature`` null leaves it to the endpoint."""

    model_config = ConfigDict(extra="forbid")

    max_tokens: int = Field(1000, ge=16)
    temperature: float | None = Field(0.0, ge=0)


class JudgeParams(BaseModel):
    """Section ``judge``: who gives the warrant and follow scores (method.md, phase II).

    ``kind`` "heuristic" is offline and deterministic; "api" is the expert model (or the one that PROTEGE_JUDGE_*
    names). ``window`` is the number of messages that the warrant judge sees (paper: K = 5); ``message_chars``
    cuts each of them; ``malformed_retries`` is how often a reply that is not the JSON asked for is sent back.
    """

    model_config = ConfigDict(extra="forbid")

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


class ApiParams(BaseModel):
    """Section ``api``: how expert, judge and teacher speak to an endpoint, and what they may spend together.

    Budgets are hard: a call is made only if the run's and the instance's spending stay within them even in the worst
    case. ``run`` names what is counted together: a restarted run goes on counting, another name starts at 0.
    ``timeout_s`` is for one attempt, ``give_up_after_s`` for a question with all of its attempts and waits.
    """

    model_config = ConfigDict(extra="forbid")

    timeout_s: float = Field(120.0, gt=0)
    retries: int = Field(5, ge=0)
    backoff_s: float = Field(1.0, gt=0)
    backoff_max_s: float = Field(60.0, gt=0)
    give_up_after_s: float = Field(900.0, gt=0)
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    run: str = Field("default", pattern=r"^\w[\w.-]{0,99}$")
    budget_usd: Limit = 5.0
    budget_tokens: Limit = None
    instance_usd: Limit = None
    instance_tokens: Limit = None
    prices: dict[str, Price] = Field(default_factory=dict)
    allow_unknown_price: bool = False
