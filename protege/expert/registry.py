"""Experts and judges by the name that params.yaml gives them."""

from __future__ import annotations

from protege.config import ApiParams, ExpertParams, JudgeParams, OracleParams
from protege.errors import BadParams
from protege.expert.base import Expert
from protege.expert.judge import HeuristicJudge, Judge
from protege.expert.oracle import OracleExpert

EXPERTS = ("none", "oracle", "api")


def expert_named(
    name: str, params: ExpertParams | None = None, api: ApiParams | None = None, oracle: OracleParams | None = None
) -> Expert | None:
    """The expert called ``name``; None for "none". Raises BadParams for another name, a missing key or price."""
    if name == "none":
        return None
    if name == "oracle":
        return OracleExpert(oracle)
    if name == "api":
        from protege.expert.api import ApiExpert

        return ApiExpert(params, api)
    raise BadParams(f"expert: {name!r} is not known; it should be one of {', '.join(EXPERTS)}")


def judge_of(params: JudgeParams, api: ApiParams) -> Judge:
    """The judge that section ``judge`` asks for. Raises BadParams for a missing key or price."""
    if params.kind == "heuristic":
        return HeuristicJudge()
    from protege.expert.model_judge import ModelJudge

    return ModelJudge(params, api)
