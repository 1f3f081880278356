"""The Policy protocol: given the messages that are new since the last turn, say the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from protege.core.instance import Instance
from protege.core.trajectory import Identity, Message, Tokens


@dataclass(frozen=True)
class Completion:
    """One assistant message. ``finish_reason`` is "stop", "length", or "forced" for a message that was put into the
    policy's mouth; token counts are 0 where unknown. ``refusal`` is what an ``ask_expert`` call in it is told in place
    of a reply ("": the expert is asked)."""

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refusal: str = ""


class Session(Protocol):
    """The policy's side of one rollout. Histories are linear: a session only ever grows."""

    def step(self, new_messages: Sequence[Message]) -> Completion:
        """Append ``new_messages`` (system/user only) and return the next assistant message.

        Raises ContextLimitReached when the next turn does not fit, ModelServerError when the server fails.
        """
        ...

    def tokens(self) -> Tokens | None:
        """The exact token record so far, or None for a policy without one (teacher, chat APIs)."""
        ...


class Policy(Protocol):
    """Shared between threads; holds no per-rollout state."""

    identity: Identity

    def start(self, instance: Instance, seed: int) -> Session:
        """Begin a rollout. Only a scripted teacher may look at the instance's secrets."""
        ...
