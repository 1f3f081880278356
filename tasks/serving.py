"""One vLLM server for all the models of a stage: started when a rollout first needs it, revived when it died."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from protege.config import Params
from protege.core.trajectory import Identity
from protege.identity import code_of
from protege.policy.model_folder import model_digest
from protege.policy.served import ServedPolicy
from protege.policy.server import ModelServer
from tasks.settings import HOME


class Serving:
    """``with Serving(...) as serving``; a policy's ``ready`` before each rollout costs nothing when all is well.

    Weights are swapped in place, so only one model is served at a time: nobody may be sampling from another one
    while ``ready`` is called for the next.
    """

    def __init__(
        self,
        first: Path,
        params: Params,
        *,
        workers: int,
        seed: int,
        progress: Callable[[str], None],
        context: int | None = None,
    ) -> None:
        self.params = params
        self.context = context or params.agent.context_tokens
        self.loads = 0
        self._server = ModelServer(
            first,
            dtype=params.model.dtype,
            max_model_len=self.context,
            max_num_seqs=workers,
            seed=seed,
            extra_args=[*params.model.server_args, *params.model.device_args],
            log_path=HOME / "logs" / "vllm.log",
            run_dir=HOME / "run",
            progress=progress,
        )
        self._loaded = ""
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The address, known before the server runs."""
        return self._server.url

    @property
    def dtype(self) -> str:
        """What the server computes in."""
        return self._server.dtype

    def deciding(self, temperature: float) -> dict[str, object]:
        """What else than the weights decides what is sampled, for keys."""
        return {
            "temperature": temperature,
            "dtype": self.dtype,
            "server_args": self.params.model.server_args,
            "code": code_of("protege.policy.served"),
        }

    def policy(self, folder: Path, name: str, temperature: float) -> tuple[ServedPolicy, Callable[[], None]]:
        """The model in ``folder`` as a policy, and what to call before each of its rollouts.

        Does not start the server. The policy's digest is that of the folder's content now.
        """
        identity = Identity(name=name, digest=model_digest(folder), kind="served")
        policy = ServedPolicy(
            self.url,
            folder,
            identity,
            temperature=temperature,
            max_new_tokens=self.params.agent.max_new_tokens,
            context_tokens=self.context,
        )
        return policy, lambda: self.ready(folder, identity.digest)

    def ready(self, folder: Path, digest: str) -> None:
        """The server runs with the weights of ``folder``, whose digest is ``digest``. Raises ModelServerError."""
        with self._lock:
            if not self._server.alive:
                self._server.stop()
                # With the wanted weights from the start: a rollout that survived the server's death between two of its
                # requests would else sample from others until they are loaded.
                self._server.model_dir = folder.absolute()
                self._server.start()
                self._loaded = digest
            if self._loaded != digest:
                self._server.load_weights(folder)
                self._loaded = digest
                self.loads += 1

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *exc: object) -> None:
        # for good: after an interrupt attempts still run, and would start it again for nobody
        self._server.close()
