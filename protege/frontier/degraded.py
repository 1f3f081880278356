"""An expert that is worse than the one the model was trained with: it stays vague."""

from __future__ import annotations

from protege.config import OracleParams
from protege.expert.oracle import OracleExpert


def vague_oracle(params: OracleParams) -> OracleExpert:
    """The oracle that never says more than the file to look at (level 0), however often it is asked."""
    expert = OracleExpert(params.model_copy(update={"first_level": 0, "last_level": 0}))
    expert.identity = expert.identity.model_copy(update={"name": f"{expert.identity.name}, level 0 only"})
    return expert
