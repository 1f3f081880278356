"""The Expert protocol: text in, text out; it never edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from protege.core.instance import Instance
from protege.core.trajectory import Identity, Message


@dataclass(frozen=True)
class ExpertReply:
    """The expert's advice with what it cost. Token counts are the expert's own tokenizer's, or an estimate of 4 characters a token."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0


class Expert(Protocol):
    """Shared between threads."""

    identity: Identity

    def reply(self, instance: Instance, query: str, recent: Sequence[Message], call_index: int) -> ExpertReply:
        """Answer ``query`` given the last K messages (paper: K = 5). ``call_index`` counts from 0 within the rollout.

        Only an oracle (``identity.sees_gold``) may look at the instance's patch. Raises ExpertError.
        """
        ...
