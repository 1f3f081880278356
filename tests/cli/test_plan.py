"""The plan against counts made by hand, and against what was measured on a machine of two cores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import yaml
from typer.testing import CliRunner

from protege.cli.main import app
from protege.cli.plan import Plan, as_json, as_text, memory, plan
from protege.cli.plan.rates import Rates, read_shape
from protege.config import Params, load
from protege.errors import BadInput, BadParams
from protege.policy import precision

ROOT = Path(__file__).parents[2]
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
MEASURED_S = {
    "model": 35,
    "instances": 177,
    "trajectories": 33,
    "validate": 13,
    "rl": 249,
    "evaluate": 292,
    "report": 6,
}
"""Wall seconds of profile smoke at commits e50e498 and 494e523 (the closing note of the first issue): 2 cores, no GPU.
SFT has become faster since (docs/results/speed.md); what it takes now is below."""


def profile(name: str) -> Params:
    return load(ROOT / f"profiles/{name}.yaml", ROOT / f"machines/{'gpu-8x80g' if name == 'paper' else 'cpu'}.yaml")


def changed(name: str, **sections: dict[str, object]) -> Params:
    raw = yaml.safe_load((ROOT / f"profiles/{name}.yaml").read_text())
    for section, values in sections.items():
        raw.setdefault(section, {}).update(values)
    return Params.model_validate(raw)


def smoke_as_it_was_measured() -> Params:
    splits = {
        "sft": {"packages": ["toolz", "inflection"], "count": 12},
        "rl": {"packages": ["toolz", "inflection"], "count": 3},
        "eval": {"packages": ["isodate"], "count": 5},
    }
    return changed(
        "smoke",
        instances={"splits": splits, "preflight": 0},
        sft={"steps": 12, "batch_size": 2},
        rl={"steps": 2, "group_size": 4, "prompts_per_step": 1, "max_tokens": 2560},
        evaluate={"workers": 12, "samples": 1, "temperature": 0.0},
        agent={"step_limit": 16, "context_tokens": 4096},
    )


def within_a_factor_of_two(params: Params, stage: str, seconds: float) -> None:
    hours = plan(params, env={}).value("hours", stage)
    assert hours is not None
    assert 0.5 < hours * 3600 / seconds < 2


@pytest.mark.parametrize("stage", sorted(MEASURED_S))
def test_the_plan_is_within_a_factor_of_two_of_what_was_measured(stage: str) -> None:
    within_a_factor_of_two(smoke_as_it_was_measured(), stage, MEASURED_S[stage])


@pytest.mark.parametrize(("stage", "seconds"), [("model", 32), ("trajectories", 559), ("validate", 9), ("sft", 1020)])
def test_the_plan_of_desk_is_within_a_factor_of_two_of_what_was_measured(stage: str, seconds: float) -> None:
    """148 rollouts of the scripted teacher, 32 steps of SFT, 2026-11-22, the same two cores, shared with other work."""
    params = changed(
        "desk", trajectories={"attempts": 2}, sft={"steps": 32, "batch_size": 4, "max_length": 5120, "warmup_steps": 4}
    )
    params.instances.splits["sft"].count = 74
    within_a_factor_of_two(params, stage, seconds)


@pytest.mark.parametrize(("stage", "seconds"), [("sft", 2097), ("rl", 2533), ("rl", 3095)])
def test_the_plan_of_desk_trains_within_a_factor_of_two_of_what_was_measured(stage: str, seconds: float) -> None:
    """100 steps of SFT and 28 of RL, 2026-11-23 (docs/log/2026-11.md)."""
    params = changed(
        "desk",
        sft={"steps": 100, "batch_size": 4},
        rl={"steps": 28, "prompts_per_step": 1, "group_size": 6, "max_tokens": 3072},
    )
    within_a_factor_of_two(params, stage, seconds)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_has_a_plan_and_each_figure_an_assumption(name: str) -> None:
    made = plan(profile(name), env={})
    assert {line.section for line in made.lines} == {"memory", "tokens", "hours", "disk", "cost"}
    for line in made.lines:
        assert line.assumption and line.unit
        assert line.value is None or line.value >= 0
        assert line.at_most is None or (line.value is not None and line.at_most >= line.value), line
    text = as_text(made)
    assert all(line.name in text for line in made.lines) and made.machine in text
    assert json.loads(json.dumps(as_json(made)))["profile"] == name


def unknown_hours(params: Params, device: Literal["cpu", "gpu"] | None = None) -> set[str]:
    lines = [line for line in plan(params, device=device, env={}).lines if line.section == "hours"]
    assert all(line.assumption.startswith("measured rates") for line in lines[:-1] if line.value is not None)
    missing = {line.name for line in lines if line.value is None}
    assert all(name in lines[-1].assumption for name in missing), "the sum says what is not in it"
    assert (lines[-1].name == "all stages") == (not missing)
    return missing


def test_hours_are_given_for_what_was_measured_only() -> None:
    assert "never run here" in plan(profile("paper"), env={}).device
    assert unknown_hours(profile("paper")) == {"model", "instances", "trajectories", "sft", "rl", "evaluate"}
    assert unknown_hours(profile("smoke")) == set()
    assert unknown_hours(profile("smoke"), "gpu") == {"sft", "rl", "evaluate"}
    assert unknown_hours(changed("smoke", trajectories={"teacher": "api"})) == {"trajectories"}
    assert unknown_hours(profile("tiny")) == {"model", "sft", "rl", "evaluate"}, "another model than was timed"
    assert all(rate.source for rate in Rates()._rates.values())


def test_memory_counted_by_hand() -> None:
    """7,615,616,512 parameters, fp32 with AdamW: 16 bytes each; 28 layers of 4 key-value heads of 128, bf16."""
    shape = Rates().shape("Qwen/Qwen2.5-Coder-7B-Instruct")
    state = memory.training(shape, 1000, 1, checkpointing=True, reference=False).state
    assert state == pytest.approx(7_615_616_512 * 16 / 2**30)
    assert memory.training(shape, 1000, 1, checkpointing=True, reference=True).reference == pytest.approx(state / 4)
    assert shape.kv_bytes == 57_344
    assert memory.serving(shape, 32_768, 8)[1] == pytest.approx(14.0)
    kept = memory.training(shape, 32_762, 1, checkpointing=False, reference=False)
    cut = memory.training(shape, 32_762, 1, checkpointing=True, reference=False)
    assert kept.activations > 5 * cut.activations and kept.logits == cut.logits
    lora = memory.training(shape, 1000, 1, checkpointing=True, reference=True, lora_rank=16)
    assert lora.adamw < 1 and lora.reference == 0 and lora.weights == pytest.approx(state / 4)


def test_memory_of_the_embedded_model_is_near_the_measured() -> None:
    """4.3 GB resident in training, at rows of about 2,050 tokens."""
    shape = Rates().shape("embedded")
    counted = memory.training(shape, 2050, 1, checkpointing=False, reference=False).on_each(1)
    assert 0.5 < counted / (4.3e9 / 2**30) < 2


def test_tokens_and_cost_counted_by_hand() -> None:
    made = plan(profile("paper"), env={"PROTEGE_EXPERT_MODEL": "claude-sonnet-4-5"})
    values = {(line.section, line.name): line for line in made.lines}
    rl = values["tokens", "rl, sampled and trained on"]
    assert rl.at_most == 160 * 8 * 6 * 32_768
    calls = values["cost", "expert: calls"]
    assert calls.value and calls.value == (160 * 8 * 6 + 3 * 500) * 4 and calls.at_most == (160 * 8 * 6 + 3 * 500) * 6
    cost = values["cost", "expert: claude-sonnet-4-5"].value or 0.0
    assert cost == pytest.approx(calls.value * (8885 * 3 + 500 * 15) / 1e6)
    # the paper's median cost of a task with this expert: 0.15 USD
    assert cost / (160 * 8 * 6 + 3 * 500) == pytest.approx(0.15, rel=0.2)
    both = cost + (values["cost", "judge: claude-sonnet-4-5"].value or 0)
    assert values["cost", "all"].value == pytest.approx(both)
    assert any("api.budget_usd is 2000" in note for note in made.notes)


def test_an_unknown_price_is_said_and_never_zero() -> None:
    made = plan(profile("paper"), env={"PROTEGE_EXPERT_MODEL": "some-model"})
    (line,) = [line for line in made.lines if line.name == "expert: some-model"]
    assert line.value is None and "price unknown" in line.assumption and "claude" in line.assumption
    assert not [line for line in made.lines if line.name.startswith("all") and line.section == "cost"]
    assert "unknown" in as_text(made)


def test_offline_roles_cost_nothing() -> None:
    made = plan(profile("smoke"), env={})
    assert [line.value for line in made.lines if line.section == "cost"] == [0.0]


def notes(made: Plan) -> str:
    return "\n".join(made.notes)


def test_what_does_not_fit_is_said_with_what_to_do() -> None:
    without = changed("paper", sft={"gradient_checkpointing": False}, rl={"gradient_checkpointing": False})
    assert "set sft.gradient_checkpointing: true" in notes(plan(without, env={}))
    with_it = changed("paper", sft={"gradient_checkpointing": True}, rl={"gradient_checkpointing": True})
    made = plan(with_it, env={})
    assert "sft:" not in notes(made) and "GPUs of its own" in notes(made)
    assert "shorten the rows or add GPUs" in notes(plan(with_it, gpus=1, env={}))
    assert "has 500 rows" in notes(made)


def test_more_gpus_share_the_state_and_unknown_ones_are_refused() -> None:
    few, many = (plan(profile("paper"), gpus=n, env={}).value("memory", "sft: state") for n in (8, 16))
    assert few is not None and many == pytest.approx(few / 2)
    with pytest.raises(BadInput, match="h100"):
        plan(profile("paper"), gpu="b9000", env={})
    with pytest.raises(BadInput, match="--gpus 0"):
        plan(profile("paper"), gpus=0, env={})


def test_the_shape_of_a_folder_is_counted_from_its_config(tmp_path: Path) -> None:
    config = {
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    known = Rates().shape("embedded")
    assert read_shape(tmp_path / "config.json").parameters == known.parameters
    with pytest.raises(BadParams, match=r"model\.source"):
        Rates().shape("some/model", tmp_path)


def test_nothing_is_written_and_json_is_whole(in_tmp: Path) -> None:
    (in_tmp / "params.yaml").write_bytes((ROOT / "profiles/paper.yaml").read_bytes())
    done = CliRunner().invoke(app, ["plan", "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["model"] == "Qwen2.5-Coder-7B-Instruct" and made["lines"] and made["notes"]
    assert [path.name for path in in_tmp.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_without_bf16_takes_longer(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has)
    assert ("in fp32" in notes(plan(profile("desk"), env={}))) is not has
    assert "in fp32" not in notes(plan(profile("paper"), env={}))
