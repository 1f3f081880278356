"""What makes training fast on a CPU; a no-op where there is a GPU. Measured by benchmarks/sft.py and benchmarks/grpo.py.

TRL scores every position of a row on a CPU; scoring the labelled positions alone changes nothing but the time. Where
the CPU multiplies in bf16, the projection's probabilities are kept between the passes (lm_head.py), and Llama's
decoder layers run with less memory traffic (blocks.py). Both round to bf16 where autocast or TRL's kernels do, give or
take one rounding; tests/train/test_speed.py holds them against the stock computation. Elsewhere training computes in
fp32 (protege/policy/precision.py), where the same layers and head gain nothing: the products are the time, and PyTorch's own
attention is the faster one in fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from protege.policy.precision import cpu_has_bf16


@contextlib.contextmanager
def fast_cpu(enabled: bool = True) -> Iterator[None]:
    """Within the block, Llama models and TRL's fused LM head run as described above.

    Patches names of TRL 1.16 (``trl.trainer.utils._use_triton``, ``._ChunkedLogProbFunction``) and of transformers
    (``LlamaDecoderLayer.forward``); a test names them, so that an upgrade which renames them fails there and not in a
    silent slow-down. Not for two threads at once.
    """
    import torch

    if not enabled or torch.cuda.is_available():
        yield
        return
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer
    from trl.trainer import utils

    from protege.train.cpu.blocks import layer_forward
    from protege.train.cpu.lm_head import Head

    keep_heap()
    stock = utils._use_triton, utils._ChunkedLogProbFunction, LlamaDecoderLayer.forward
    utils._use_triton = lambda device: True  # "compact" scoring; the kernels keep their own switch
    if cpu_has_bf16():
        utils._ChunkedLogProbFunction = Head(stock[1])  # type: ignore[misc, assignment]
        LlamaDecoderLayer.forward = layer_forward(stock[2])  # type: ignore[method-assign]
    try:
        yield
    finally:
        utils._use_triton, utils._ChunkedLogProbFunction, LlamaDecoderLayer.forward = stock  # type: ignore[misc, method-assign]


def yield_between_threads() -> bool:
    """Let waiting OpenMP threads sleep after about a microsecond instead of spinning. False where it comes too late.

    Where something else needs a core (a sandbox, the model server, another user), spinning threads burn the time that
    the one they wait for needs: measured 3 against 13 s for a pass of 1,318 tokens on 2 cores at load 3. libgomp reads
    this once, when torch is loaded. What the user has set stays.
    """
    import os
    import sys

    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    return "torch" not in sys.modules


def keep_heap() -> bool:
    """Let glibc keep what tensors free instead of giving it back to the kernel, for the rest of the process.

    Each step allocates and frees gigabytes of activations; by default every large one is mapped, faulted in, zeroed and
    unmapped anew (measured: a third of the page faults, 219 against 180 tok/s of SFT, the same losses). False where the
    C library has no mallopt.
    """
    import ctypes

    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1) and mallopt(top_pad, 256 * 2**20))


_CGROUP = Path("/sys/fs/cgroup")
SCARCE = 0.25
"""Share of the memory below which what is free of it is too little to keep a heap for."""


def trim_heap(below: float = SCARCE) -> bool:
    """Give the kernel what ``keep_heap`` kept, if less than the share ``below`` of the memory is free; whether it did.

    Rows of many lengths leave holes: a heap that is kept grows to several times of what is in use at once (measured:
    14 GiB in the desk experiment's SFT). That is free speed where nobody needs the memory, and only there.
    """
    import ctypes

    if _free_share() >= below:
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError):
        return False


def _free_share() -> float:
    """Of the machine's memory, or of what the cgroup may use, whichever is scarcer."""
    import psutil

    memory = psutil.virtual_memory()
    shares: list[float] = [memory.available / memory.total]
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        shares.append(1 - (used - int(counts["inactive_file"])) / limit)  # without files that can be read again
    except (OSError, ValueError, KeyError):  # "max": no limit
        pass
    return min(shares)
