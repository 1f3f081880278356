"""What speed.py puts in the place of transformers' and TRL's own computes the same, and is taken out again."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from protege.train.cpu import speed
from protege.train.cpu.speed import fast_cpu


@pytest.fixture
def bf16_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every CPU computes bf16 right; those without instructions for it are slow, which a tiny model bears."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("the short-cuts are for CPUs")
    monkeypatch.setattr(speed, "cpu_has_bf16", lambda: True)


def names() -> tuple[Any, ...]:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer
    from trl.trainer import utils

    return utils._use_triton, utils._ChunkedLogProbFunction, LlamaDecoderLayer.forward


def test_the_patched_names_exist_and_come_back(bf16_cpu: None) -> None:
    before = names()
    with pytest.raises(KeyboardInterrupt), fast_cpu(True):
        assert all(now is not then for now, then in zip(names(), before, strict=True))
        raise KeyboardInterrupt
    assert names() == before
    with fast_cpu(False):
        assert names() == before


def test_a_kept_heap_is_given_back_where_memory_is_scarce() -> None:
    program = """
import psutil
from protege.train.cpu.speed import keep_heap, trim_heap

def used():
    return psutil.Process().memory_info().rss >> 20

assert keep_heap()
rows = [bytearray(1 << 20) for _ in range(300)]
held = rows[::10]  # so that what is free lies between what is in use
del rows
print(used(), trim_heap(below=0.0), used(), trim_heap(below=2.0), used())
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    kept, untouched, still, trimmed, left = said
    assert (untouched, trimmed) == ("False", "True")
    assert int(kept) > 300 and int(still) > 300 and int(left) < 150


def test_each_step_of_training_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from protege.train import checkpoints

    asked: list[int] = []
    monkeypatch.setattr(checkpoints, "trim_heap", lambda: asked.append(1))
    checkpoints.trainer_callback(None, lambda step, logs: None).on_step_end(None, None, None)
    assert asked == [1]


@pytest.mark.parametrize(
    ("current", "limit", "scarce"), [("900", "1000", True), ("300", "1000", False), ("999", "max", False)]
)
def test_memory_is_scarce_where_the_cgroup_says_so(
    current: str, limit: str, scarce: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    plenty = psutil.virtual_memory()._replace(total=1000, available=900)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: plenty)
    monkeypatch.setattr(speed, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text(current)
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 100\n")
    assert (speed._free_share() < speed.SCARCE) is scarce


def step(tiny: Path, fast: str, rows: int = 1, pad: int = 0, lora: bool = False) -> tuple[Any, dict[str, Any]]:
    """(log-probs of the labelled positions, gradients) of the tiny model: ``fast`` "yes", "no", or "fp32"."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy", "is_top1"))
    if lora:
        from peft import get_peft_model

        from protege.train.checkpoints import lora as configuration

        torch.manual_seed(1)
        model = get_peft_model(model, configuration(4))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 500, (rows, 600), generator=generator)  # three attention blocks
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.7, -100)
    mask = torch.ones_like(ids)
    if pad:
        mask[0, -pad:] = 0
        labels[0, -pad:] = -100
    weight = torch.randn(ids.shape[0], ids.shape[1] - 1, generator=generator)
    with fast_cpu(fast == "yes"), torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast != "fp32"):
        out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        (out.log_probs * weight).sum().backward()
    logged = torch.stack([out.log_probs, out.entropy, out.is_top1.float()]).detach()
    return logged, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of two gradients, relative to the second."""
    assert one.keys() == other.keys()
    difference = sum(float((one[name] - other[name]).square().sum()) for name in other)
    return (difference / sum(float(value.square().sum()) for value in other.values())) ** 0.5


@pytest.mark.parametrize("kind", ["one row", "two rows", "padded", "lora"])
def test_the_loss_and_the_gradients_are_the_stock_ones(bf16_cpu: None, tiny: Path, kind: str) -> None:
    """No further from fp32 than stock autocast is, give or take a half; each parameter's gradient among them."""
    options = {"one row": {}, "two rows": {"rows": 2}, "padded": {"rows": 2, "pad": 60}, "lora": {"lora": True}}[kind]
    exact, fast, stock = (step(tiny, mode, **options) for mode in ("fp32", "yes", "no"))  # type: ignore[arg-type]
    for index, tolerance in ((0, 0.1), (1, 0.05)):
        assert float((fast[0][index] - stock[0][index]).abs().max()) < tolerance
    assert float((fast[0][2] - stock[0][2]).abs().mean()) < 0.01
    ours, theirs = distance(fast[1], exact[1]), distance(stock[1], exact[1])
    print(kind, "gradients from fp32: ours", ours, "stock", theirs)
    assert ours < 1.5 * theirs < 0.1
    for name in exact[1]:
        one = {name: exact[1][name]}
        assert distance({name: fast[1][name]}, one) < 2 * distance({name: stock[1][name]}, one) + 0.01, name


def test_a_long_row_makes_its_attention_again_in_the_backward_pass(
    bf16_cpu: None, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from protege.train.cpu import blocks

    kept = step(tiny, "yes")
    monkeypatch.setattr(blocks, "KEEP_UP_TO", 100)
    again = step(tiny, "yes")
    assert (kept[0] == again[0]).all() and distance(again[1], kept[1]) == 0.0


def test_the_short_cut_is_taken(bf16_cpu: None, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the comparison above would compare stock with stock after a change of transformers' layer."""
    from protege.train.cpu import blocks, lm_head

    taken = []
    for module, name in ((blocks, "CausalAttention"), (lm_head, "LogProb")):
        real = getattr(module, name).apply
        monkeypatch.setattr(
            getattr(module, name), "apply", lambda *a, real=real, name=name: (taken.append(name), real(*a))[1]
        )
    step(tiny, "yes")
    assert taken == ["CausalAttention"] * 2 + ["LogProb"]
    taken.clear()
    step(tiny, "no")
    assert not taken
