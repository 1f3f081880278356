"""bf16 is computed in bf16 only where the CPU has instructions for it."""

from pathlib import Path

import pytest

from protege.policy import precision, server
from protege.policy.precision import cpu_has_bf16

AVX2 = (
    "processor\t: 0\nmodel name\t: a laptop\nflags\t\t: fpu sse4_2 avx avx2 fma f16c\nbugs\t\t: none of avx512_bf16\n"
)
AVX512 = "flags\t\t: avx2 avx512f avx512bw avx512dq avx512vl\n"
GENOA = "flags\t\t: avx2 avx512f avx512_bf16\n"
SAPPHIRE = "flags\t\t: avx2 avx512f amx_bf16 amx_tile\n"
NEOVERSE = "processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n"
CORTEX = "Features\t: fp asimd evtstrm\n"


@pytest.mark.parametrize(
    ("text", "has"),
    [(AVX2, False), (AVX512, False), (GENOA, True), (SAPPHIRE, True), (NEOVERSE, True), (CORTEX, False), ("", False)],
)
def test_the_flags_decide(tmp_path: Path, text: str, has: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_has_bf16(tmp_path / "cpuinfo") is has


def test_a_machine_that_cannot_be_asked_keeps_the_stored_precision(tmp_path: Path) -> None:
    assert cpu_has_bf16(tmp_path / "none")


@pytest.mark.parametrize("has", [True, False])
def test_trainer_and_server_follow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has: bool) -> None:
    """Both, or the log-probabilities of the two would differ by bf16's rounding."""
    import torch

    from protege.config import SftParams
    from protege.train import checkpoints

    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has)
    monkeypatch.setattr(server, "_on_cpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "config.json").write_text("{}")
    command = server.ModelServer(tmp_path).command
    assert command[command.index("--dtype") + 1] == ("bfloat16" if has else "float32")
    assert checkpoints.common_arguments(SftParams(), tmp_path, 1, 1)["bf16"] is has


@pytest.mark.parametrize("has", [True, False])
def test_what_is_computed_in_is_what_decides_a_rollout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has: bool
) -> None:
    """A store shared with a machine of the other kind must not answer for this one."""
    from protege.config import load
    from tasks.serving import Serving

    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has)
    monkeypatch.setattr(server, "_on_cpu", lambda: True)
    (tmp_path / "config.json").write_text("{}")
    params = load(Path(__file__).parents[2] / "profiles/smoke.yaml")
    serving = Serving(tmp_path, params, workers=1, seed=0, progress=lambda line: None)
    assert params.model.dtype == "bfloat16" and serving.dtype == ("bfloat16" if has else "float32")


def test_a_gpu_computes_in_what_is_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    from protege.config import SftParams
    from protege.train import checkpoints

    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(server, "_on_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "config.json").write_text("{}")
    command = server.ModelServer(tmp_path).command
    assert command[command.index("--dtype") + 1] == "bfloat16"
    assert checkpoints.common_arguments(SftParams(), tmp_path, 1, 1)["bf16"]
