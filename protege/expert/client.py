"""The one way to an API: retries, time-outs, budget and log, for expert, judge and teacher alike.

Any OpenAI-compatible endpoint, through the openai SDK with its own retries off. The key is read from the
environment for each client and kept in nothing that is written, pickled, shown or hashed.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from protege.config import ApiParams, Price
from protege.errors import BadParams, ExpertError, ExpertRefused
from protege.expert.endpoint import Endpoint
from protege.expert.ledger import FOLDER, PICO, Amount, Ledger
from protege.expert.replies import Answer, Unusable, http_wait, read_answer

if TYPE_CHECKING:
    from openai import OpenAI

MAX_BODY_BYTES = 8 << 20
RETRIED = frozenset({408, 409, 425, 429})
"""Status codes that a later attempt may turn into a reply, beside every 5xx."""
Chat = Sequence[dict[str, str]]


@dataclass(frozen=True)
class _Failed:
    """One attempt that gave no reply. ``charge``: None where the endpoint may have charged the worst case."""

    outcome: str
    detail: str
    again: bool
    charge: Answer | None = None
    wait_s: float | None = None
    too_long: bool = False


class Client:
    """Chat completions of one model for one role. Shared between threads; pickled without key or connections.

    Args:
        role: "expert", "judge" or "teacher", as the log has it.
        ledger: shared budget and log; default the run's own under .cache/protege/expert.

    Raises:
        BadParams: the key is missing, or the model's price is unknown and not allowed to be.
    """

    def __init__(self, role: str, endpoint: Endpoint, params: ApiParams, ledger: Ledger | None = None) -> None:
        self.role, self.endpoint, self.params = role, endpoint, params
        self.ledger = ledger if ledger is not None else Ledger(params, FOLDER)
        found = params.prices.get(endpoint.model)
        if found is None and not params.allow_unknown_price:
            known = ", ".join(sorted(params.prices)) or "none"
            raise BadParams(
                f"api.prices has no price for model {endpoint.model!r} (known: {known}); add it as "
                f"{{input: USD, output: USD}} for a million tokens, or set api.allow_unknown_price: true, which leaves "
                "it out of every budget in USD"
            )
        self.price = found or Price(input=0, output=0)
        endpoint.key()  # said at the start, not at the first question

    def __reduce__(self) -> tuple[Any, ...]:
        return Client, (self.role, self.endpoint, self.params)

    def __repr__(self) -> str:
        return f"Client({self.role}, {self.endpoint.model} at {self.endpoint.host})"

    @cached_property
    def _sdk(self) -> OpenAI:
        from openai import OpenAI

        return OpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.key(),
            timeout=self.params.timeout_s,
            max_retries=0,
        )

    def complete(
        self,
        messages: Chat,
        *,
        instance: str,
        max_tokens: int,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        reply_format: dict[str, Any] | None = None,
    ) -> Answer:
        """One reply. ``cost_usd`` and ``attempts`` of the answer cover every attempt that it took.

        Retried with full jitter, base ``backoff_s`` doubling up to ``backoff_max_s`` (Retry-After is waited for where
        it is longer): 408, 409, 425, 429, 5xx, connection errors, time-outs, bodies that cannot be read, empty replies.

        Raises:
            ExpertRefused: another 4xx; asking again cannot help. ``too_long`` for the context length.
            BudgetExhausted: the next attempt could pass a budget.
            ExpertError: no usable reply after the last attempt, or no time left for another.
        """
        request: dict[str, Any] = {"model": self.endpoint.model, "messages": list(messages)}
        request[self.params.token_limit_field] = max_tokens
        optional = {"temperature": temperature, "top_p": top_p, "seed": seed, "response_format": reply_format}
        request |= {name: value for name, value in optional.items() if value is not None}
        worst = self._worst(messages, reply_format, max_tokens)
        began, cost, last = time.monotonic(), 0, _Failed("none", "", True)
        attempts = self.params.retries + 1
        for attempt in range(1, attempts + 1):
            result, pico = self._attempt(request, instance, worst, attempt, began)
            cost += pico
            if isinstance(result, Answer):
                return result.of(cost / PICO, time.monotonic() - began, attempt)
            last = result
            if not last.again:
                raise self._refused(last)
            if attempt == attempts:
                break
            wait = random.uniform(0, min(self.params.backoff_max_s, self.params.backoff_s * 2 ** (attempt - 1)))
            wait = max(wait, (last.wait_s or 0.0) + wait / 10)
            if time.monotonic() - began + wait > self.params.give_up_after_s:
                raise ExpertError(
                    f"{self._who()} gave no reply in {attempt} attempts, and the next one would come in {wait:.0f} s, past "
                    f"api.give_up_after_s = {self.params.give_up_after_s:g}. Last: {last.outcome}: {last.detail}"
                )
            time.sleep(wait)
        raise ExpertError(
            f"{self._who()} gave no usable reply in {attempts} attempts ({time.monotonic() - began:.0f} s). "
            f"Last: {last.outcome}: {last.detail}. See that the endpoint is up, or raise api.retries or api.timeout_s"
        )

    def _attempt(
        self, request: dict[str, Any], instance: str, worst: Answer, attempt: int, began: float
    ) -> tuple[Answer | _Failed, int]:
        reservation = self.ledger.reserve(instance, self._amount(worst), f"{self.role} call")
        clock = time.monotonic()
        result: Answer | _Failed = _Failed("interrupted", "", False, None)
        charged = worst
        try:
            left = self.params.give_up_after_s - (clock - began)
            result = self._send(request, min(self.params.timeout_s, max(left, 0.001)))
        finally:
            counted = result if isinstance(result, Answer) else result.charge
            estimated = counted is None or counted.prompt_tokens is None or counted.completion_tokens is None
            charged = _at_least(counted, worst) if counted is not None else worst
            pico = self._amount(charged).pico
            line = {
                "role": self.role,
                "model": self.endpoint.model,
                "attempt": attempt,
                "outcome": "ok" if isinstance(result, Answer) else result.outcome,
                "prompt_tokens": charged.prompt_tokens,
                "cached_tokens": charged.cached_tokens,
                "completion_tokens": charged.completion_tokens,
                "cost_usd": pico / PICO,
                "estimated": estimated,
                "seconds": round(time.monotonic() - clock, 3),
            }
            if isinstance(result, _Failed) and result.detail:
                line["detail"] = result.detail
            self.ledger.settle(reservation, line)
        return result, pico

    def _send(self, request: dict[str, Any], limit_s: float) -> Answer | _Failed:
        import httpx2  # the SDK's transport
        import openai

        deadline = time.monotonic() + limit_s
        try:
            create: Any = self._sdk.chat.completions.with_streaming_response.create
            with create(**request, timeout=limit_s) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > deadline:  # its time-out limits the silence between two chunks only
                        return _Failed("timeout", f"the body took more than {limit_s:g} s", True, None)
                    if len(body) > MAX_BODY_BYTES:
                        return _Failed("malformed", f"a body of more than {MAX_BODY_BYTES} bytes", True, None)
            return read_answer(bytes(body))
        except Unusable as error:
            return _Failed(error.outcome, self._clean(str(error)), True, error.charge)
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            sent = not isinstance(error.__cause__, httpx2.ConnectTimeout | httpx2.PoolTimeout)
            return _Failed("timeout", f"no reply in {limit_s:g} s", True, None if sent else Answer("", 0, 0))
        except openai.APIStatusError as error:
            return self._status(error)
        except (openai.OpenAIError, httpx2.HTTPError, ValueError) as error:
            cause = error.__cause__ or error
            what = f"{type(cause).__name__}: {cause}"
            sent = not isinstance(cause, httpx2.ConnectError)
            return _Failed("connection", self._clean(what), True, None if sent else Answer("", 0, 0))

    def _status(self, error: Any) -> _Failed:
        body = error.body if isinstance(error.body, dict) else {}
        inner: Any = body.get("error")
        inner = inner if isinstance(inner, dict) else body
        code, said = str(inner.get("code") or ""), str(inner.get("message") or error.message)
        # OpenAI says 429 for an account without credit, too; waiting does not fill it.
        again = error.status_code in RETRIED or error.status_code >= 500
        again = again and code not in {"insufficient_quota", "billing_hard_limit_reached"}
        too_long = not again and (code == "context_length_exceeded" or bool(_TOO_LONG.search(said)))
        return _Failed(
            f"http {error.status_code}",
            self._clean(f"{code}: {said}" if code else said),
            again,
            Answer("", 0, 0),
            http_wait(error.response.headers),
            too_long,
        )

    def _refused(self, last: _Failed) -> ExpertRefused:
        advice = {
            "http 401": f"; check {self.endpoint.key_variable}",
            "http 403": f"; check what {self.endpoint.key_variable} may do",
            "http 404": "; check the address (does it end in /v1?) and the model's name",
            "http 429": "; the account has no credit left",
        }.get(last.outcome, "")
        error = ExpertRefused(f"{self._who()} refuses the request ({last.outcome}): {last.detail}{advice}")
        error.bad_request = last.outcome in {"http 400", "http 422"}
        error.too_long = last.too_long
        if advice:
            error.boundary = "input"
        return error

    def _who(self) -> str:
        return f"the {self.role}'s endpoint ({self.endpoint.model} at {self.endpoint.host})"

    def _clean(self, text: str) -> str:
        """What an endpoint said, short, on one line, and without the key should it be echoed."""
        return " ".join(self.endpoint.without_key(text).split())[:500]

    def _worst(self, messages: Chat, reply_format: dict[str, Any] | None, max_tokens: int) -> Answer:
        """No tokenizer makes more tokens of a text than it has bytes; the chat template's own are allowed for."""
        size = sum(len(m["content"].encode("utf-8", "replace")) + 32 for m in messages) + 64
        size += len(json.dumps(reply_format)) if reply_format else 0
        return Answer("", size, max_tokens)

    def _amount(self, answer: Answer) -> Amount:
        p, prompt, completion = self.price, answer.prompt_tokens or 0, answer.completion_tokens or 0
        cached = min(answer.cached_tokens, prompt)
        per_token = [_pico(p.input), _pico(p.cached if p.cached is not None else p.input), _pico(p.output)]
        counts = [prompt - cached, cached, completion]
        return Amount(prompt + completion, sum(n * each for n, each in zip(counts, per_token, strict=True)))


_TOO_LONG = re.compile(r"context.{0,20}(length|window)|maximum (context|input)|prompt is too long", re.IGNORECASE)


def _pico(usd_per_million: float) -> int:
    return round(usd_per_million * PICO / 10**6)


def _at_least(answer: Answer, worst: Answer) -> Answer:
    """``answer`` with the counts that the endpoint did not report taken from the worst case."""
    return Answer(
        "",
        worst.prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens,
        worst.completion_tokens if answer.completion_tokens is None else answer.completion_tokens,
        answer.cached_tokens,
    )
