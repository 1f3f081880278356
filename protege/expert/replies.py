"""A chat completion's body and headers, read without trusting them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class Answer:
    """A reply and what it took. Token counts are None where the endpoint did not say them."""

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0
    finish_reason: str = "stop"
    cost_usd: float = 0.0
    seconds: float = 0.0
    attempts: int = 1

    def of(self, cost_usd: float, seconds: float, attempts: int) -> Answer:
        return replace(self, cost_usd=cost_usd, seconds=seconds, attempts=attempts)


class Unusable(Exception):
    """A body that holds no reply. ``charge`` is what it says it took, None where it does not say."""

    def __init__(self, outcome: str, message: str, charge: Answer | None = None) -> None:
        super().__init__(message)
        self.outcome, self.charge = outcome, charge


def read_answer(body: bytes) -> Answer:
    """The first choice's text.

    Raises:
        Unusable: not JSON ("malformed"), or a reply without text ("empty").
    """
    try:
        value = json.loads(body)
    except ValueError as error:
        raise Unusable("malformed", f"the body is not JSON ({error}): {body[:80]!r}") from None
    if not isinstance(value, dict):
        raise Unusable("malformed", f"the body is a JSON {type(value).__name__}, not an object")
    usage: Any = value.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    counted = Answer(
        "",
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _count(details.get("cached_tokens") if isinstance(details, dict) else None) or 0,
    )
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    message = choice.get("message") if choice else None
    if choice is None or not isinstance(message, dict):
        said = value.get("error") or "no choices"
        raise Unusable("malformed", f"the body holds no message: {str(said)[:200]}", counted)
    text, finish = message.get("content"), str(choice.get("finish_reason") or "stop")
    if not isinstance(text, str) or not text.strip():
        why = str(message.get("refusal") or "")[:200]
        if finish == "length":
            why = "it stopped at max_tokens before it said anything; raise it"
        raise Unusable("empty", f"the reply is empty ({why or finish})", counted)
    return replace(counted, text=text, finish_reason="length" if finish == "length" else "stop")


def http_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After (or retry-after-ms) asks for; None where it does not, or makes no sense."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if seconds == seconds:
            return max(0.0, seconds)
    return None


def estimate(text: str) -> int:
    """Tokens of ``text`` where nobody counted them: 4 characters each."""
    return -(-len(text) // CHARS_PER_TOKEN)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
