"""The hidden judge played by a model: the paper's J_warrant and J_follow (docs/method.md, phase II).

Its prompts are prompts/judge_warrant.md and judge_follow.md. What the agent said and saw is evidence from hostile
ground: it stands between fences whose number depends on the text itself, so that no text can close its own fence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protege.agent.tools import OBSERVATION_PREFIX, truncate
from protege.config import ApiParams, JudgeParams
from protege.core.markers import as_material
from protege.core.trajectory import ExpertCall, Identity, Trajectory
from protege.errors import ExpertError, ExpertRefused
from protege.expert.client import Client
from protege.expert.endpoint import Endpoint
from protege.expert.judge import opening_of, steps_after
from protege.expert.ledger import Ledger
from protege.expert.replies import Answer
from protege.files import digest
from protege.identity import code_of

PROMPTS = {
    "warrant": Path(__file__).parent / "prompts" / "judge_warrant.md",
    "follow": Path(__file__).parent / "prompts" / "judge_follow.md",
}
FENCE = "=== RECORD"
MAX_STEPS = 40
"""A follow-up longer than this is shown by its first and last steps."""


class Judgement(BaseModel):
    """The judge's whole reply."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str = Field(max_length=2000)
    score: float = Field(ge=0, le=1, allow_inf_nan=False)


# Both bounded, so that a model which is held to it ends within max_tokens.
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "judgement",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "reason": {"type": "string", "maxLength": 200},
                "score": {"enum": [n / 10 for n in range(11)]},
            },
            "required": ["reason", "score"],
            "additionalProperties": False,
        },
    },
}
FORMATS: dict[str, dict[str, Any] | None] = {
    "json_schema": SCHEMA,
    "json_object": {"type": "json_object"},
    "text": None,
}
"""From the strictest; "auto" takes the first that the endpoint accepts."""


class ModelJudge:
    """Scores by the expert model, or by the one that PROTEGE_JUDGE_* names. Shared between threads.

    Raises:
        BadParams: the environment lacks address, model or key, or the model's price is unknown.
    """

    def __init__(
        self, params: JudgeParams | None = None, api: ApiParams | None = None, ledger: Ledger | None = None
    ) -> None:
        self.params = params or JudgeParams(kind="api")
        self.prompts = {name: path.read_text(encoding="utf-8").strip() for name, path in PROMPTS.items()}
        endpoint = Endpoint.from_environment("JUDGE", "EXPERT")
        self.client = Client("judge", endpoint, api or ApiParams(), ledger)
        self._formats = list(FORMATS) if self.params.reply_format == "auto" else [self.params.reply_format]
        self.identity = Identity(
            name=f"{endpoint.model}-judge",
            digest=digest(endpoint.model, self.params.deciding(), code_of("protege.expert.model_judge")),
            kind="judge",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ModelJudge, (self.params, self.client.params)

    def warrant(self, trajectory: Trajectory, call: ExpertCall) -> float:
        """Whether asking was justified, from the query and the last K messages (``judge.window``)."""
        opening = [(m.role, m.content) for m in opening_of(trajectory)]
        said: list[tuple[str, str]] = []
        for turn in trajectory.turns[: call.turn]:
            said += [("assistant", turn.message), ("user", OBSERVATION_PREFIX + turn.observation)]
        recent = [*opening, *said, *[("assistant", t.message) for t in trajectory.turns[call.turn : call.turn + 1]]]
        shown = [f"-- {role}:\n{self._cut(text)}" for role, text in recent[-self.params.window :]]
        if said and len(recent) > self.params.window:  # what the work is about, where the window has moved past it
            shown.insert(0, f"-- the issue:\n{self._cut(opening[-1][1] if opening else '')}")
        return self._ask("warrant", trajectory, {"the last messages": "\n\n".join(shown), "the request": call.query})

    def follow(self, trajectory: Trajectory, call: ExpertCall) -> float | None:
        """Whether the advice was acted on until the next call or the end; None for a terminal call."""
        after = steps_after(trajectory, call)
        if not after:
            return None
        shown = [
            f"-- step {t.index}:\n{self._cut(t.message)}\n-- it printed:\n{self._cut(t.observation)}" for t in after
        ]
        if len(shown) > MAX_STEPS:
            half = MAX_STEPS // 2
            shown = [*shown[:half], f"[... {len(shown) - 2 * half} steps left out ...]", *shown[-half:]]
        records = {"the advice": call.reply, "what the engineer then did": "\n\n".join(shown)}
        later = next((c for c in trajectory.expert_calls if c.turn > call.turn), None)
        if later:
            records["its next request"] = later.query
        else:
            records["its final patch"] = self._cut(trajectory.patch) or "(empty)"
        return self._ask("follow", trajectory, records)

    def _cut(self, text: str) -> str:
        return truncate(text, self.params.message_chars)[0]

    def _ask(self, name: str, trajectory: Trajectory, records: dict[str, str]) -> float:
        fence, evidence = fenced(records)
        messages = [
            {"role": "system", "content": self.prompts[name].replace("{fence}", fence)},
            {"role": "user", "content": evidence},
        ]
        wrong = ""
        for _ in range(1 + self.params.malformed_retries):
            answer = self._complete(messages, trajectory.instance_id)
            try:
                return Judgement.model_validate_json(answer.text.strip()).score
            except ValidationError as error:
                wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'reply'}: {e['msg']}" for e in error.errors()[:4])
            complaint = (
                f"That reply was not valid ({wrong}). Reply again with the one JSON object described, nothing else."
            )
            messages = [*messages[:2], {"role": "assistant", "content": answer.text[:2000]}]
            messages.append({"role": "user", "content": complaint})
        raise ExpertError(
            f"the judge ({self.client.endpoint.model}) gave no valid {name} score for {trajectory.trajectory_id} in "
            f"{1 + self.params.malformed_retries} replies; the last was wrong in this: {wrong[:300]}. Take a model that "
            "can reply in JSON, raise judge.max_tokens, or set judge.kind: heuristic"
        )

    def _complete(self, messages: Sequence[dict[str, str]], instance: str) -> Answer:
        """Steps down to a laxer reply format where the endpoint refuses a stricter one, and stays there."""
        while True:
            chosen = self._formats[0]
            try:
                return self.client.complete(
                    messages,
                    instance=instance,
                    max_tokens=self.params.max_tokens,
                    temperature=self.params.temperature,
                    reply_format=FORMATS[chosen],
                )
            except ExpertRefused as error:
                if not error.bad_request or len(self._formats) == 1:
                    raise
            if self._formats[0] == chosen:
                self._formats = self._formats[1:]


def fenced(records: dict[str, str]) -> tuple[str, str]:
    """(the fence's beginning, the records between fences).

    >>> fence, text = fenced({"the request": "help"})
    >>> text.count(fence), text.endswith("END ===")
    (2, True)
    """
    safe = {title: as_material(text).replace(FENCE, "= = = RECORD") for title, text in records.items()}
    fence = f"{FENCE} {digest(safe)[:12]}"
    return fence, "\n\n".join(f"{fence}: {title} ===\n{text}\n{fence} END ===" for title, text in safe.items())
