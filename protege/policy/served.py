"""A policy served by vLLM, token in, token out: no text is tokenised twice between sampling and training.

A session keeps the ids the server returned, sends the whole list back each turn (the prefix cache makes that
cheap), and checks that the server read exactly what was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protege.core.instance import Instance
from protege.core.trajectory import Identity, Message, Tokens
from protege.errors import ContextLimitReached, ModelServerError
from protege.files import digest
from protege.policy.base import Completion
from protege.policy.server import SERVED_NAME


class ServedPolicy:
    """Any vLLM server with the OpenAI completions route. Shared between threads; sessions are not.

    Args:
        server_url: for example ``ModelServer.url``.
        tokenizer_dir: the model folder (its tokenizer and chat template are read, not its weights).
        identity: name and digest of the weights that are served.
        temperature: 0 is greedy.
        top_p: below 1 the recorded log-probabilities are those of the truncated distribution; RL needs 1.
        max_new_tokens: for one turn.
        context_tokens: the whole trajectory, prompt included; at most the server's ``max_model_len``.
        min_new_tokens: a turn with less room than this raises ContextLimitReached.
        timeout_s: for one turn, waiting in the server's queue included.
    """

    def __init__(
        self,
        server_url: str,
        tokenizer_dir: Path | str,
        identity: Identity,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 384,
        context_tokens: int = 4096,
        min_new_tokens: int = 16,
        timeout_s: float = 900.0,
        model_name: str = SERVED_NAME,
    ) -> None:
        import httpx

        from protege.policy.chat_format import ChatFormat

        self.identity = identity
        self.format = ChatFormat.from_folder(tokenizer_dir)
        self.temperature = temperature
        self.top_p = top_p
        self.max_new_tokens = max_new_tokens
        self.context_tokens = context_tokens
        self.min_new_tokens = min_new_tokens
        self.model_name = model_name
        self._client = httpx.Client(
            base_url=server_url.rstrip("/"),
            timeout=httpx.Timeout(timeout_s, connect=30.0),
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
        )

    def start(self, instance: Instance, seed: int) -> ServedSession:
        return ServedSession(self, seed)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._client.close()

    def complete(self, ids: list[int], max_tokens: int, seed: int) -> tuple[list[int], list[float], str]:
        """Sample at most ``max_tokens`` ids after ``ids``: (ids, their log-probabilities, "stop" or "length").

        Raises:
            ModelServerError: no answer, an error answer, or one that breaks the token-exact contract.
        """
        import httpx

        body = {
            "model": self.model_name,
            "prompt": ids,
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": seed,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stop_token_ids": [self.format.end_of_turn],
            "skip_special_tokens": False,
        }
        try:
            response = self._client.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            raise ModelServerError(f"model server {self._client.base_url}: {error!r}") from error
        if response.status_code != 200:
            raise ModelServerError(
                f"model server {self._client.base_url} answered {response.status_code}: {response.text[:500]}"
            )
        return self._read(response.json(), ids)

    def _read(self, answer: dict[str, Any], sent: list[int]) -> tuple[list[int], list[float], str]:
        try:
            choice = answer["choices"][0]
            prompt, sampled = choice["prompt_token_ids"], choice["token_ids"]
            logprobs = choice["logprobs"]["token_logprobs"]
            sizes = len(sampled), len(logprobs)
            reason = choice["finish_reason"]
        except (KeyError, IndexError, TypeError) as error:
            raise ModelServerError(f"the model server's answer lacks {error}; it must be vLLM 0.11 or newer") from error
        if prompt != sent:
            raise ModelServerError(f"the server read other prompt ids than were sent ({len(prompt)} for {len(sent)})")
        if not sizes[0] or sizes[0] != sizes[1] or reason not in ("stop", "length"):
            raise ModelServerError(
                f"the server returned {sizes[0]} ids, {sizes[1]} log-probabilities, finish reason {reason!r}"
            )
        if any(value is None for value in logprobs):
            raise ModelServerError("the server returned a token without a finite log-probability")
        return list(sampled), [float(value) for value in logprobs], reason


class ServedSession:
    """One rollout's token record."""

    def __init__(self, policy: ServedPolicy, seed: int) -> None:
        self._policy = policy
        self._seed = seed
        self._turn = 0
        self._prompt_length = 0
        self._ids: list[int] = []
        self._mask: list[int] = []
        self._logprobs: list[float] = []

    def step(self, new_messages: Sequence[Message]) -> Completion:
        policy = self._policy
        text = policy.format
        context = self._context(new_messages)
        # One token is kept back for the end-of-turn token of a turn that ends by length.
        room = policy.context_tokens - len(self._ids) - len(context) - 1
        if room < policy.min_new_tokens:
            raise ContextLimitReached(
                f"turn {self._turn}: {len(self._ids) + len(context)} of {policy.context_tokens} tokens are used"
            )
        prompt = [*self._ids, *context]
        sampled, logprobs, reason = policy.complete(prompt, min(policy.max_new_tokens, room), self._request_seed())
        # Committed only now, so that a failed request can be repeated without a trace.
        self._append(context, 0, [0.0] * len(context))
        self._append(sampled, 1, logprobs)
        if not self._turn:
            self._prompt_length = len(context)
        ended = sampled[-1] == text.end_of_turn
        if not ended:
            self._append([text.end_of_turn], 0, [0.0])
        self._turn += 1
        return Completion(
            text=text.decode(sampled[:-1] if ended else sampled),
            finish_reason="stop" if ended else reason,
            prompt_tokens=len(prompt),
            completion_tokens=len(sampled),
        )

    def say(self, message: str, new_messages: Sequence[Message]) -> Completion:
        """Append ``new_messages``, and ``message`` as the assistant's turn though the policy did not sample it (mask 0).

        Raises ContextLimitReached when it does not fit; nothing is appended then. It cannot open a rollout: a record
        starts with the policy's own turn.
        """
        if not self._turn:
            raise ValueError("the first turn of a rollout is the policy's own")
        context = self._context(new_messages)
        said = self._policy.format.assistant_ids(message)
        used = len(self._ids) + len(context)
        if used + len(said) > self._policy.context_tokens:
            raise ContextLimitReached(f"turn {self._turn}: {used} of {self._policy.context_tokens} tokens are used")
        self._append([*context, *said], 0, [0.0] * (len(context) + len(said)))
        self._turn += 1
        return Completion(text=message, finish_reason="forced", prompt_tokens=used)

    def tokens(self) -> Tokens | None:
        """The record so far; None before the first turn. Ends with an end-of-turn token."""
        if not self._ids:
            return None
        return Tokens(
            ids=list(self._ids),
            mask=list(self._mask),
            logprobs=list(self._logprobs),
            prompt_length=self._prompt_length,
        )

    def _context(self, new_messages: Sequence[Message]) -> list[int]:
        text = self._policy.format
        return text.observation_ids(new_messages) if self._turn else text.prefix_ids(new_messages)

    def _append(self, ids: list[int], mask: int, logprobs: list[float]) -> None:
        self._ids += ids
        self._mask += [mask] * len(ids)
        self._logprobs += logprobs

    def _request_seed(self) -> int:
        return int(digest("served", self._seed, self._turn)[:15], 16) % (2**31)
