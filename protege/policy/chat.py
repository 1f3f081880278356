"""A policy behind any OpenAI-compatible chat API: the teacher of synthesis, or a model that plays alone.

Keeps no token record: text in, text out. Address, model and key come from the environment only
(``PROTEGE_POLICY_*``, expert/endpoint.py); retries, budget and log are those of the expert (expert/client.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protege.config import ApiParams
from protege.core.instance import Instance
from protege.core.trajectory import Identity, Message, Tokens
from protege.errors import BudgetExhausted, ContextLimitReached, ExpertError, ExpertRefused, ModelServerError
from protege.expert.client import Client
from protege.expert.endpoint import Endpoint
from protege.expert.ledger import Ledger
from protege.expert.replies import estimate
from protege.files import digest
from protege.identity import code_of
from protege.policy.base import Completion


class ChatPolicy:
    """Shared between threads. The key is part of neither the identity nor any message.

    Args:
        api: section ``api`` of params.yaml, whose budget it shares with expert and judge. Without it nothing limits
            the spending, and it is counted in memory only.
        base_url, model: instead of the environment's.
        timeout_s, retries: instead of those of ``api``.

    Raises:
        BadParams: no address, model or key, or ``api`` has no price for the model.
    """

    def __init__(
        self,
        api: ApiParams | None = None,
        *,
        base_url: str | None = None,
        model: str | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 2048,
        timeout_s: float | None = None,
        retries: int | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        endpoint = Endpoint.from_environment("POLICY", base_url=base_url, model=model)
        if api is None:
            api = ApiParams(allow_unknown_price=True, budget_usd=None)
            ledger = ledger or Ledger(api, None)
        changed = {"timeout_s": timeout_s, "retries": retries}
        api = api.model_copy(update={name: value for name, value in changed.items() if value is not None})
        self.client = Client("teacher", endpoint, api, ledger)
        self.model = endpoint.model
        self.temperature, self.top_p, self.max_new_tokens = temperature, top_p, max_new_tokens
        self.identity = Identity(
            name=self.model,
            digest=digest(
                endpoint.base_url, self.model, temperature, top_p, max_new_tokens, code_of("protege.policy.chat")
            ),
            kind="chat",
        )

    def start(self, instance: Instance, seed: int) -> ChatSession:
        return ChatSession(self, getattr(instance, "instance_id", ""), seed)

    def complete(self, messages: list[dict[str, str]], seed: int, instance: str = "") -> Completion:
        """One chat completion.

        Raises:
            ContextLimitReached: the API says that the messages are too long.
            BudgetExhausted: the budget that it shares with expert and judge.
            ModelServerError: no reply; not retryable where the API refuses the request.
        """
        sampling: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "seed": seed}
        try:
            answer = self.client.complete(messages, instance=instance, max_tokens=self.max_new_tokens, **sampling)
        except BudgetExhausted:
            raise
        except ExpertError as error:
            if isinstance(error, ExpertRefused) and error.too_long:
                raise ContextLimitReached(str(error)) from None
            failure = ModelServerError(str(error))
            failure.retryable = error.retryable
            if error.boundary == "input":
                failure.boundary = "input"
            raise failure from None
        prompt, completion = answer.prompt_tokens, answer.completion_tokens
        return Completion(
            text=answer.text,
            finish_reason="length" if answer.finish_reason == "length" else "stop",
            prompt_tokens=estimate("".join(m["content"] for m in messages)) if prompt is None else prompt,
            completion_tokens=estimate(answer.text) if completion is None else completion,
        )


class ChatSession:
    """One rollout's messages."""

    def __init__(self, policy: ChatPolicy, instance: str, seed: int) -> None:
        self._policy, self._instance, self._seed = policy, instance, seed
        self._messages: list[dict[str, str]] = []

    def step(self, new_messages: Sequence[Message]) -> Completion:
        asked = [*self._messages, *(message.model_dump() for message in new_messages)]
        completion = self._policy.complete(asked, self._seed, self._instance)
        self._messages = [*asked, {"role": "assistant", "content": completion.text}]
        return completion

    def tokens(self) -> Tokens | None:
        return None
