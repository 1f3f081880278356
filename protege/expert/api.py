"""An expert behind any OpenAI-compatible endpoint; see endpoint.py for its environment variables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protege.config import ApiParams, ExpertParams
from protege.core.instance import Instance
from protege.core.trajectory import Identity, Message
from protege.expert.base import ExpertReply
from protege.expert.client import Client
from protege.expert.endpoint import Endpoint
from protege.expert.ledger import Ledger
from protege.expert.replies import estimate
from protege.files import digest
from protege.identity import code_of

PROMPT = Path(__file__).parent / "prompts" / "expert.md"


class ApiExpert:
    """Sees the query and the last K messages, never the instance's secrets.

    Raises:
        BadParams: the environment lacks address, model or key, or the model's price is unknown.
    """

    def __init__(
        self, params: ExpertParams | None = None, api: ApiParams | None = None, ledger: Ledger | None = None
    ) -> None:
        self.params = params or ExpertParams()
        self.prompt = PROMPT.read_text(encoding="utf-8").strip()
        endpoint = Endpoint.from_environment("EXPERT")
        self.client = Client("expert", endpoint, api or ApiParams(), ledger)
        self.identity = Identity(
            name=endpoint.model,
            digest=digest(endpoint.model, self.params.deciding(), code_of("protege.expert.api")),
            kind="api",
            sees_gold=False,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ApiExpert, (self.params, self.client.params)

    def reply(self, instance: Instance, query: str, recent: Sequence[Message], call_index: int) -> ExpertReply:
        """One chat completion. Raises ExpertError (BudgetExhausted, ExpertRefused) as ``Client.complete`` does."""
        transcript = "\n\n".join(f"[{m.role}]\n{m.content}" for m in recent)
        asked = f"The last messages of the work:\n\n{transcript}\n\nThe question: {query}"
        answer = self.client.complete(
            [{"role": "system", "content": self.prompt}, {"role": "user", "content": asked}],
            instance=instance.instance_id,
            max_tokens=self.params.max_tokens,
            temperature=self.params.temperature,
        )
        counts = answer.prompt_tokens, answer.completion_tokens
        return ExpertReply(
            text=answer.text.strip(),
            prompt_tokens=estimate(self.prompt + asked) if counts[0] is None else counts[0],
            completion_tokens=estimate(answer.text) if counts[1] is None else counts[1],
            seconds=answer.seconds,
            cost_usd=answer.cost_usd,
        )
