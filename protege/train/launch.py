"""SFT in several processes, each on a GPU of its own: ``accelerate launch`` of this module with a configuration of the user's.

python -m protege.train.launch JOB.json         what `accelerate launch` starts, once for each process
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from protege import errors
from protege.config import SftParams
from protege.errors import BadInput, ProtegeError, TrainingFailed
from protege.files import read_json, write_json
from protege.train.sft import train_sft

_SAID = "protege: "
"""Marks the lines that ``progress`` is given, among what accelerate and torch say."""
_TAIL_LINES = 20


def launch_sft(
    model_dir: Path | str,
    parquet: Path | str,
    out_dir: Path | str,
    params: SftParams,
    *,
    checkpoint_dir: Path | str,
    dtype: str = "bfloat16",
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """:func:`train_sft` in the processes that ``params.accelerate`` describes; the same arguments and metrics.

    The processes end when this one does, however that is. Raises what train_sft raises; BadInput for a configuration that
    is not there; TrainingFailed.
    """
    config = Path(params.accelerate)
    if not config.is_file():
        raise BadInput(f"sft.accelerate: there is no {config}; it should be a file of `accelerate config`, or empty")
    with tempfile.TemporaryDirectory(prefix="protege-sft-") as folder:
        job, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        me = psutil.Process()
        places = {"model_dir": model_dir, "parquet": parquet, "out_dir": out_dir, "checkpoint_dir": checkpoint_dir}
        write_json(
            job,
            {
                **{name: str(Path(path).absolute()) for name, path in places.items()},
                "params": params.model_dump(),
                "dtype": dtype,
                "answer": str(answer),
                "starter": [me.pid, me.create_time()],
            },
        )
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        command += ["--main_process_port", "0", "-m", "protege.train.launch", str(job)]
        status, tail = _run(command, progress)
        if not answer.is_file():
            raise TrainingFailed(f"`{' '.join(command[1:5])}` ended with status {status} without a model: {tail}")
        said = read_json(answer)
    if "error" in said:
        raise getattr(errors, said["error"], BadInput)(said["message"])
    return dict(said["metrics"])


def _run(command: list[str], progress: Callable[[str], None] | None) -> tuple[int, str]:
    """Exit status, and the last lines that are not progress."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    tail: list[str] = []
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(_SAID):
                    if progress:
                        progress(line.removeprefix(_SAID).rstrip())
                else:
                    tail = [*tail, line.rstrip()][-_TAIL_LINES:]
        except BaseException:
            process.terminate()  # accelerate ends the processes it started
            raise
    return process.returncode, " | ".join(line for line in tail if line.strip())[-1500:]


def _end_with(starter: tuple[int, float]) -> None:
    """End this process when ``starter`` or the launcher that started it is gone: it would train on for nobody."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher and psutil.pid_exists(starter[0]):
            try:
                if psutil.Process(starter[0]).create_time() != starter[1]:
                    break
            except psutil.NoSuchProcess:
                break
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(job_file: str) -> int:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    _end_with(tuple(job.pop("starter")))
    answer = Path(job.pop("answer"))
    params = SftParams.model_validate(job.pop("params"))
    try:
        metrics = train_sft(params=params, progress=lambda line: print(_SAID + line, flush=True), **job)
    except ProtegeError as error:
        write_json(answer, {"error": type(error).__name__, "message": str(error)})
        return 1
    if metrics:
        write_json(answer, {"metrics": metrics})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
