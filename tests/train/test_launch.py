"""SFT in two processes under `accelerate launch`, on a CPU: the same rows in the same steps as in one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from protege.config import SftParams
from protege.errors import BadInput
from protege.files import read_json, write_json
from protege.train.launch import launch_sft
from protege.train.sft import train_sft
from tests.train.test_sft import parquet

__all__ = ["parquet"]
pytestmark = pytest.mark.slow
TWO = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU  # which is what starts several processes; use_cpu says on what
use_cpu: true
num_machines: 1
num_processes: 2
mixed_precision: bf16
main_training_function: main
"""


@pytest.fixture
def two(tmp_path: Path) -> str:
    path = tmp_path / "two.yaml"
    path.write_text(TWO)
    return str(path)


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_two_processes_take_the_same_steps_as_one(tiny: Path, parquet: Path, tmp_path: Path, two: str) -> None:
    import torch

    said: list[str] = []
    params = SftParams(steps=3, batch_size=4, micro_batch=1, learning_rate=1e-3, checkpoint_every=2)
    one = train_sft(tiny, parquet, tmp_path / "one", params, checkpoint_dir=tmp_path / "c1", dtype="float32")
    shared = params.model_copy(update={"accelerate": two})
    both = launch_sft(
        tiny, parquet, tmp_path / "two", shared, checkpoint_dir=tmp_path / "c2", dtype="float32", progress=said.append
    )
    assert [line.split(",")[0] for line in said if "step" in line] == [f"step {n}/3" for n in (1, 2, 3)]
    assert (one.pop("processes"), both.pop("processes")) == (1, 2)
    for unlike in ("seconds", "tokens_per_second"):
        one.pop(unlike), both.pop(unlike)
    assert one.pop("precision") == both.pop("precision")
    assert both == pytest.approx(one, rel=0.02)
    curves = [[p["loss"] for p in read_json(tmp_path / name / "curve.json")] for name in ("one", "two")]
    assert curves[1] == pytest.approx(curves[0], rel=0.01)
    start, first, second = weights(tiny), weights(tmp_path / "one"), weights(tmp_path / "two")
    assert first.keys() == second.keys()
    moved = sum(float((first[k] - start[k].float()).norm()) for k in first)
    apart = sum(float((first[k] - second[k]).norm()) for k in first)
    assert apart < 0.2 * moved, (apart, moved)
    assert torch.isfinite(next(iter(second.values()))).all()


def test_what_cannot_be_shared_out_is_said_so(tiny: Path, parquet: Path, tmp_path: Path, two: str) -> None:
    params = SftParams(steps=1, batch_size=3, micro_batch=1, accelerate=two)
    with pytest.raises(BadInput, match="times 2 processes"):
        launch_sft(tiny, parquet, tmp_path / "o", params, checkpoint_dir=tmp_path / "c")
    params = SftParams(steps=1, accelerate="nowhere.yaml")
    with pytest.raises(BadInput, match=r"there is no nowhere\.yaml"):
        launch_sft(tiny, parquet, tmp_path / "o", params, checkpoint_dir=tmp_path / "c")


def test_a_killed_training_leaves_no_process_and_goes_on_from_its_checkpoint(
    tiny: Path, parquet: Path, tmp_path: Path, two: str
) -> None:
    params = SftParams(steps=4000, batch_size=2, micro_batch=1, checkpoint_every=2, accelerate=two)
    arguments = {
        "model_dir": str(tiny), "parquet": str(parquet), "out_dir": str(tmp_path / "o"), "checkpoint_dir": str(tmp_path / "c"),
        "params": params.model_dump(),
    }  # fmt: skip
    write_json(tmp_path / "arguments.json", arguments)
    program = (
        "import json, sys\nfrom protege.train.launch import launch_sft\nfrom protege.train.sft import SftParams\n"
        "a = json.load(open(sys.argv[1]))\nlaunch_sft(**{**a, 'params': SftParams(**a['params'])}, progress=print)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "arguments.json")], env=env)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "c").glob("checkpoint-*/COMPLETE")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3, "the launcher and its two"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    reached = max(int(p.parent.name.split("-")[1]) for p in (tmp_path / "c").glob("checkpoint-*/COMPLETE"))
    identity = read_json(tmp_path / "c" / "identity.json")
    done = read_json(tmp_path / "c" / f"checkpoint-{reached}" / "trainer_state.json")
    assert done["global_step"] == reached and identity["key"]
