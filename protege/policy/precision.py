"""In which precision this machine multiplies matrices fast.

A CPU without instructions for bf16 (most laptops: AVX2 only) works its way through a bf16 product one number at a time.
Measured on two cores of an EPYC 7003: 1 GF/s in bf16, 157 GF/s in fp32; SFT 6 and 98 tok/s (pytorch#146508). What is stored and
handed over stays bf16 (``model.dtype``); what is computed in it is decided here.
"""

from __future__ import annotations

import functools
from pathlib import Path

_FAST = ({"avx512_bf16"}, {"amx_bf16"}, {"asimd", "bf16"})
"""Flags of /proc/cpuinfo (x86: ``flags``; Arm: ``Features``), each set of which means native bf16 products."""
NO_BF16 = "this CPU has no instructions for bf16 (AVX512-BF16, AMX): SFT, RL and model server compute in fp32"


@functools.cache
def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether bf16 products are native here. True where there is no ``cpuinfo`` to ask: the stored precision stays."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return any(wanted <= set(flags) for wanted in _FAST)


def computed_in(dtype: str, on_cpu: bool) -> str:
    """What is computed in where ``dtype`` is stored: on a CPU "bfloat16" only if it multiplies in it."""
    return "float32" if on_cpu and dtype == "bfloat16" and not cpu_has_bf16() else dtype
