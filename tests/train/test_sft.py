"""The loss is on exactly what the assistant said; a killed run ends where an undisturbed one does."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from protege.config import SftParams
from protege.errors import BadInput
from protege.files import digest_tree
from protege.policy.chat_format import ChatFormat
from protege.train.checkpoints import ALREADY_DONE
from protege.train.sft import IGNORED, labels_to_text, schedule, tokenise, train_sft


def conversation(index: int, turns: int) -> dict:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Fix bug {index}. " * 3}]
    for turn in range(turns):
        messages.append({"role": "assistant", "content": f"I look.\n<function=bash>\n<parameter=command>cat {turn}é"})
        messages.append({"role": "user", "content": f"<|im_end|> line {turn}\n" * 2})
    messages.append({"role": "assistant", "content": "\n Done. "})
    return {"instance_id": f"i{index}", "trajectory_id": f"t{index}", "messages": messages}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pandas

    path = tmp_path_factory.mktemp("sft") / "train.parquet"
    pandas.DataFrame([conversation(i, 1 + i % 3) for i in range(7)]).to_parquet(path)
    return path


def test_the_loss_mask_decodes_to_exactly_what_the_assistant_said(tiny: Path, parquet: Path) -> None:
    import pandas

    chat = ChatFormat.from_folder(tiny)
    table = pandas.read_parquet(parquet).to_dict("records")
    for row, made in zip(table, tokenise(table, chat), strict=True):
        said = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        assert labels_to_text(made["labels"], chat) == said
        assert all(label in (IGNORED, token) for token, label in zip(made["input_ids"], made["labels"], strict=True))


def test_a_span_without_its_end_is_noticed(tiny: Path) -> None:
    chat = ChatFormat.from_folder(tiny)
    with pytest.raises(BadInput, match="end-of-turn"):
        labels_to_text([IGNORED, *chat.encode("cut"), IGNORED], chat)


def test_the_schedule_shows_every_row_once_an_epoch() -> None:
    lengths = [10, 500, 20, 400, 30, 300, 40, 200, 50, 100, 60, 70]
    order = schedule(lengths, steps=9, batch=4, seed=1)
    assert len(order) == 36 and Counter(order) == dict.fromkeys(range(12), 3)
    assert order == schedule(lengths, 9, 4, 1) != schedule(lengths, 9, 4, 2)
    padding = sum(
        4 * max(lengths[i] for i in order[s : s + 4]) - sum(lengths[i] for i in order[s : s + 4]) for s in (0, 4, 8)
    )
    assert padding < sum(4 * max(lengths[s : s + 4]) - sum(lengths[s : s + 4]) for s in (0, 4, 8))
    assert len(schedule([5, 6, 7], steps=10, batch=4, seed=0)) == 40


def test_params_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError):
        SftParams.model_validate({"stepz": 3})


def test_rows_that_are_all_too_long_are_an_error(tiny: Path, parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="max_length"):
        train_sft(tiny, parquet, tmp_path / "o", SftParams(max_length=16), checkpoint_dir=tmp_path / "c")


def test_a_row_that_is_too_long_is_named_and_left_out_whole(
    tiny: Path, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas

    from protege.train import sft

    chat = ChatFormat.from_folder(tiny)
    table = pandas.read_parquet(parquet).to_dict("records")
    rows = tokenise(table, chat)
    limit = sorted(len(row["input_ids"]) for row in rows)[4]
    long = {
        t["trajectory_id"]: len(r["input_ids"]) for t, r in zip(table, rows, strict=True) if len(r["input_ids"]) > limit
    }
    given: list[dict] = []
    real = sft._trainer
    monkeypatch.setattr(
        sft, "_trainer", lambda folder, ordered, *a: (given.extend(ordered), real(folder, ordered, *a))[1]
    )
    said: list[str] = []
    params = SftParams(steps=1, batch_size=4, max_length=limit)
    metrics = train_sft(tiny, parquet, tmp_path / "o", params, checkpoint_dir=tmp_path / "c", progress=said.append)
    assert 0 < len(long) == metrics["dropped_rows"] == 7 - metrics["rows"]
    named = {one["trajectory_id"]: one["tokens"] for one in json.loads((tmp_path / "o" / "dropped.json").read_text())}
    assert named == long
    assert all(name in said[0] for name in long)
    whole = [row["input_ids"] for row in rows]
    assert all(row["input_ids"] in whole and len(row["input_ids"]) <= limit for row in given)


def test_what_reaches_the_model_is_the_rows_themselves(tiny: Path, parquet: Path, tmp_path: Path) -> None:
    """TRL's own max_length (1,024 by default) would cut them."""
    from protege.train import sft

    row = {"input_ids": list(range(3, 500)) * 3, "labels": list(range(3, 500)) * 3}
    trainer = sft._trainer(tiny, [row, row], SftParams(steps=1, batch_size=2), tmp_path / "c", None)
    (batch,) = list(trainer.get_train_dataloader())
    assert batch["input_ids"].shape == (2, 1491) and (batch["labels"] == batch["input_ids"]).all()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_folder_that_is_served_is_the_model_that_was_trained(
    tiny: Path, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Its logits are those of the model in memory, adapters and all."""
    import torch
    from transformers import AutoModelForCausalLM

    from protege.train import sft

    kept = []
    real = sft._trainer
    monkeypatch.setattr(sft, "_trainer", lambda *a: (kept.append(real(*a)), kept[0])[1])
    params = SftParams(steps=3, batch_size=2, method=method, lora_rank=4, learning_rate=5e-3, warmup_steps=0)
    metrics = train_sft(tiny, parquet, tmp_path / "o", params, checkpoint_dir=tmp_path / "c", dtype="float32")
    assert metrics["loss_last"] < metrics["loss_first"]
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        plain = kept[0].accelerator.unwrap_model(kept[0].model, keep_fp32_wrapper=False)
        trained = plain.eval()(ids).logits
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "o", dtype=torch.float32).eval()(ids).logits
        start = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)(ids).logits
    assert torch.allclose(trained, saved, atol=1e-3) and not torch.allclose(saved, start, atol=1e-2)


PROGRAM = """
import sys
from protege.config import SftParams
from protege.train.sft import train_sft
model, parquet, out, checkpoints = sys.argv[1:5]
params = SftParams(steps=6, batch_size=2, checkpoint_every=2, learning_rate=1e-3)
print(train_sft(model, parquet, out, params, checkpoint_dir=checkpoints, progress=lambda line: print(line, flush=True)))
"""


@pytest.mark.slow
def test_a_killed_run_ends_where_an_undisturbed_one_does(tiny: Path, parquet: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PROGRAM, str(tiny), str(parquet)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}

    process = subprocess.Popen(
        [*arguments, str(tmp_path / "killed"), str(tmp_path / "a")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "step 5/6" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert not (tmp_path / "killed").exists()
    half = tmp_path / "a" / "checkpoint-6"
    half.mkdir(exist_ok=True)
    (half / "model.safetensors").write_bytes(b"cut short by the kill")

    params = SftParams(steps=6, batch_size=2, checkpoint_every=2, learning_rate=1e-3)
    resumed = train_sft(tiny, parquet, tmp_path / "killed", params, checkpoint_dir=tmp_path / "a")
    whole = train_sft(tiny, parquet, tmp_path / "whole", params, checkpoint_dir=tmp_path / "b")
    assert resumed["resumed_from"] == 4 and whole["resumed_from"] == 0
    assert resumed["loss_last"] == pytest.approx(whole["loss_last"], abs=1e-6)
    curves = [json.loads((tmp_path / name / "curve.json").read_text()) for name in ("killed", "whole")]
    assert [point["step"] for point in curves[0]] == [1, 2, 3, 4, 5, 6]
    assert [p["loss"] for p in curves[0]] == pytest.approx([p["loss"] for p in curves[1]], abs=1e-6)
    weights = [digest_tree(tmp_path / name, ("*.safetensors",)) for name in ("killed", "whole")]
    assert weights[0] == weights[1]
    assert curves[1][-1]["loss"] < curves[1][0]["loss"]
    assert (tmp_path / "whole" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_finished_training_answers_for_itself_and_for_no_other(
    tiny: Path, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault: other code found its own finished checkpoint, trained no step and wrote the old weights."""
    params = SftParams(steps=2, batch_size=2, learning_rate=1e-3, checkpoint_every=1)
    told: list[str] = []

    def run(out: str, params: SftParams = params) -> tuple[dict[str, Any], str]:
        told.clear()
        made = train_sft(tiny, parquet, tmp_path / out, params, checkpoint_dir=tmp_path / "c", progress=told.append)
        return made, digest_tree(tmp_path / out, ("*.safetensors", "curve.*", "dropped.json"))

    first, weights = run("a")
    assert not list((tmp_path / "c").glob("checkpoint-*")), "what is finished needs no checkpoint"
    elsewhere = params.model_copy(update={"checkpoint_every": 2, "gradient_checkpointing": True})
    assert run("b", elsewhere) == (first, weights), "how it is computed makes it no other training"
    assert told == [ALREADY_DONE]
    monkeypatch.setattr("protege.train.sft.code_of", lambda *_: "other code")
    monkeypatch.setattr("protege.train.checkpoints.lora", None)
    again, same = run("c")
    assert told[0].startswith("step 1/2") and again["resumed_from"] == 0 and same == weights
    monkeypatch.undo()
    assert run("d", params.model_copy(update={"learning_rate": 1e-9}))[1] != weights
    assert run("e")[1] == weights and told[0].startswith("step 1/2"), "one training is kept, the last"


def test_lora_is_merged_into_a_plain_folder(tiny: Path, parquet: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    params = SftParams(
        steps=2, batch_size=2, method="lora", lora_rank=4, learning_rate=1e-2, warmup_steps=0, max_length=200
    )
    metrics = train_sft(tiny, parquet, tmp_path / "o", params, checkpoint_dir=tmp_path / "c")
    assert metrics["dropped_rows"] > 0 and metrics["rows"] + metrics["dropped_rows"] == 7
    old, new = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tiny, tmp_path / "o"))
    assert old.keys() == new.keys()
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed and all("proj" in name for name in changed)


def test_the_cpu_short_cuts_leave_the_loss_curve_as_it_is(tiny: Path, parquet: Path, tmp_path: Path) -> None:
    params = SftParams(steps=6, batch_size=2, learning_rate=1e-3, checkpoint_every=6)
    curves = []
    for fast in (True, False):
        out = tmp_path / str(fast)
        began = time.monotonic()
        train_sft(tiny, parquet, out, params, checkpoint_dir=tmp_path / f"c{fast}", fast=fast)
        curves.append([point["loss"] for point in json.loads((out / "curve.json").read_text())])
        print(f"fast={fast}: {time.monotonic() - began:.1f} s, {curves[-1]}")
    assert curves[0] == pytest.approx(curves[1], rel=0.01)
    assert curves[1][-1] < curves[1][0]
