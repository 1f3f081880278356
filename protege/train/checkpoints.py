"""Checkpoints that survive a kill, and model folders written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protege.files import digest, read_json, storage_errors, write_atomic, write_json
from protege.policy import precision
from protege.policy.model_folder import atomic_folder, quiet
from protege.train import distributed
from protege.train.cpu.speed import trim_heap

_OF_ITS_MAKING = {"embedded.sha256", "curve.json", "curve.png", "dropped.json"}
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|gguf)$|.*\.index\.json$")
_DONE = "COMPLETE"
_FINISHED = "finished"
ALREADY_DONE = "this very training is done already; its model is taken and nothing is trained"


def open_checkpoints(folder: Path | str, *identity: Any) -> Path | None:
    """The last complete checkpoint in ``folder`` that belongs to the work named by ``identity``, or None.

    ``identity`` is everything that decides the result (model, data, settings, code_of the training). A folder of other
    work, and a checkpoint that a kill cut short, are removed: a checkpoint never answers for another training.
    """
    folder = Path(folder)
    key = digest("checkpoints", *identity)
    owner = folder / "identity.json"
    if not owner.is_file() or read_json(owner).get("key") != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(owner, {"key": key})
        return None
    complete: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if (path / _DONE).is_file():
            complete[int(path.name.rsplit("-", 1)[1])] = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    return complete[max(complete)] if complete else None


def keep_finished(folder: Path | str, model: Path | str, metrics: dict[str, Any]) -> None:
    """Keep the finished ``model`` and its ``metrics`` under the identity of ``folder``, and remove the checkpoints.

    So the same training asked for again (DVC looks at whole folders, a comment makes it ask) costs a copy, and another
    one starts from its first step.
    """
    folder = Path(folder)
    half, whole = folder / f".{_FINISHED}", folder / _FINISHED
    shutil.rmtree(half, ignore_errors=True)
    with storage_errors(half):
        shutil.copytree(model, half / "model", copy_function=_link)
    write_json(half / "metrics.json", metrics)
    shutil.rmtree(whole, ignore_errors=True)
    half.rename(whole)
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def take_finished(folder: Path | str, out: Path | str | None) -> dict[str, Any] | None:
    """The metrics of the finished training that ``folder`` holds, its model put to ``out`` if that is given; None where there is none.

    To be called after :func:`open_checkpoints`, which empties a folder of another identity.
    """
    kept = Path(folder) / _FINISHED
    if not (kept / "metrics.json").is_file():
        return None
    if out is not None:
        with atomic_folder(Path(out)) as new, storage_errors(out):
            shutil.copytree(kept / "model", new, copy_function=_link, dirs_exist_ok=True)
    return dict(read_json(kept / "metrics.json"))


def _link(source: str, target: str) -> str:
    """A model's files are never written in place, so a second name for each costs no disk; elsewhere a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def trainer_callback(progress: Callable[[str], None] | None, on_log: Callable[[int, dict[str, Any]], None]) -> Any:
    """A TRL callback: marks checkpoints complete, trims the heap where memory is scarce, tells ``progress`` about each step, hands each log to ``on_log``."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trim_heap()

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            distributed.wait_for_all()  # each process writes its part
            if state.is_world_process_zero:
                write_atomic(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _DONE, "")

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            on_log(state.global_step, logs)
            if progress:
                parts = [
                    f"{key} {float(logs[key]):.3f}" for key in ("loss", "reward", "kl") if logs.get(key) is not None
                ]
                seconds = time.monotonic() - self.began
                progress(f"step {state.global_step}/{state.max_steps}, {', '.join(parts)}, {seconds:.0f} s")

    return Callback()


def save_model_folder(
    model: Any, source: Path | str, out: Path | str, dtype: str = "bfloat16", weights: dict[str, Any] | None = None
) -> Path:
    """Write ``model`` to ``out`` as a normal model folder: weights in ``dtype``, all else as in ``source``.

    LoRA adapters are merged into the saved weights; the model in memory stays as it is. ``weights`` are those of a model
    of which this process holds only a share. Atomic.
    """
    import torch

    source, out = Path(source), Path(out)
    target = getattr(torch, dtype)
    base, state = (model, weights) if weights is not None else _plain_state(model)
    with quiet(), atomic_folder(out) as folder:
        cast = {name: tensor.detach().to(device="cpu", dtype=target).contiguous() for name, tensor in state.items()}
        base.save_pretrained(folder, state_dict=cast)
        for path in source.iterdir():
            if path.is_file() and not _WEIGHTS.match(path.name) and path.name not in _OF_ITS_MAKING:
                shutil.copyfile(path, folder / path.name)
    return out


def _plain_state(model: Any) -> tuple[Any, dict[str, Any]]:
    """The underlying model and its weights under their own names, adapters merged."""
    if not hasattr(model, "peft_config"):
        return model, model.state_dict()
    base = model.get_base_model()
    modules = dict(base.named_modules())
    state = {}
    for name, tensor in base.state_dict().items():
        if "lora_" in name:
            continue
        owner, _, leaf = name.rpartition(".base_layer.")
        if owner and leaf == "weight":
            layer = modules[owner]
            tensor = tensor + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
        state[f"{owner}.{leaf}" if owner else name] = tensor
    return base, state


def common_arguments(params: Any, checkpoint_dir: Path, micro_batch: int, accumulate: int) -> dict[str, Any]:
    """The TrainingArguments that SFT and RL share; ``params`` is the stage's section of params.yaml.

    ``micro_batch`` rows go through one forward pass, ``accumulate`` passes make an optimizer step.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(checkpoint_dir),
        "max_steps": params.steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": params.learning_rate,
        "weight_decay": 0.0,
        "shuffle_dataset": False,
        "save_strategy": "steps",
        "save_steps": params.checkpoint_every,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": params.seed,
        "data_seed": params.seed,
        "bf16": cuda or precision.cpu_has_bf16(),
        "use_cpu": not cuda,
        "gradient_checkpointing": params.gradient_checkpointing,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": cuda,
    }


def precision_of(trainer: Any) -> str:
    """What a trainer computed its products in."""
    return "bfloat16" if trainer.args.bf16 else "float32"


def lora(rank: int) -> Any:
    """The LoRA configuration of either stage."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
