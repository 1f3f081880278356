"""The trained model as a policy: its own vLLM server for as long as the block lasts, or one that runs already."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from protege.cli.solve.params import SolveParams
from protege.core.trajectory import Identity, Message
from protege.errors import BadInput, ModelServerError
from protege.policy.model_folder import model_digest
from protege.policy.served import ServedPolicy
from protege.policy.server import SERVED_NAME, ModelServer

LEAST_ROOM = 0.25
"""Share of the context that the opening (system prompt and issue) must leave for the work."""


class ServedModel:
    """``with ServedModel(folder, params, home) as policy``. The tokenizer is read at once, the server starts on entry.

    Args:
        folder: the model's folder; its tokenizer is used with ``url`` too.
        url: a vLLM server that serves these weights already; it is left running.
        home: where the server's log and pid file go.
        note: called with one line now and then while the server starts.

    Raises:
        BadInput: the folder has no usable tokenizer, or vLLM is not installed.
        ModelServerError: the server did not start or does not answer.
    """

    def __init__(
        self,
        folder: Path,
        params: SolveParams,
        home: Path,
        *,
        url: str | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder, self.note, self.url = folder, note, _without_v1(url)
        self.context = min(params.agent.context_tokens, _longest(folder) or params.agent.context_tokens)
        self.identity = Identity(name=folder.name, digest=model_digest(folder), kind="served")
        self._server: ModelServer | None = None
        name = SERVED_NAME
        if self.url is None:
            if importlib.util.find_spec("vllm") is None:
                raise BadInput(
                    "vLLM is not installed here: pip install '.[cpu]' (or '.[gpu]') in the project, or give --url of a server"
                )
            self._server = ModelServer(
                folder,
                dtype=params.model.dtype,
                max_model_len=self.context,
                max_num_seqs=1,
                extra_args=params.model.server_args,
                log_path=home / "logs" / "vllm-solve.log",
                run_dir=home / "run",
                progress=note,
            )
            # python -m looks for modules in the current folder first, which may be the user's repository
            self._server.environment["PYTHONSAFEPATH"] = "1"
        else:
            name, longest = _serves(self.url)
            self.context = min(self.context, longest or self.context)
        try:
            self.policy = ServedPolicy(
                self.url or (self._server.url if self._server else ""),
                folder,
                self.identity,
                temperature=params.temperature,
                max_new_tokens=params.agent.max_new_tokens,
                context_tokens=self.context,
                model_name=name,
            )
        except (OSError, ValueError) as error:
            raise BadInput(f"the tokenizer in {folder} cannot be read: {str(error)[:300]}") from error

    def check(self, opening: Sequence[Message]) -> None:
        """Raise BadInput where ``opening`` leaves less than :data:`LEAST_ROOM` of the context."""
        used = len(self.policy.format.prefix_ids(list(opening)))
        most = int(self.context * (1 - LEAST_ROOM))
        if used > most:
            raise BadInput(
                f"the issue is too long for this model: with the instructions it takes {used} of {self.context} tokens, at "
                f"most {most} leave room to work; keep the report and its traceback, drop the rest"
            )

    def __enter__(self) -> ServedPolicy:
        if self._server is not None:
            self.note(f"model: starting a server for {self.folder}")
            self._server.start()
            self.note(f"model: ready after {self._server.start_seconds:.0f} s")
        return self.policy

    def __exit__(self, *exc: object) -> None:
        self.policy.close()
        if self._server is not None:
            self._server.stop()


def _without_v1(url: str | None) -> str | None:
    if url is None:
        return None
    if not url.startswith(("http://", "https://")):
        raise BadInput(f"--url {url} is not an http(s) address; it should look like http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1")


def _serves(url: str) -> tuple[str, int | None]:
    """Name and context length of the model that ``url`` serves."""
    import httpx

    try:
        listed: Any = httpx.get(f"{url}/v1/models", timeout=10.0).raise_for_status().json()
        first = listed["data"][0]
        return str(first["id"]), first.get("max_model_len")
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelServerError(f"no vLLM server answers at {url} ({error!r}); start one, or leave --url out") from error


def _longest(folder: Path) -> int | None:
    """Tokens that the model was made for, where its configuration says so."""
    try:
        value = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder / 'config.json'} cannot be read: {error}") from error
    return value if isinstance(value, int) and value > 0 else None
