"""The flow's wiring: real rollouts in bubblewrap by a reciting model, without server, Prefect or harness."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

import flows.frontier as flow
from protege.config import AgentParams, Params, load
from protege.core.instance import Instance
from protege.core.trajectory import Trajectory, load_trajectories
from protege.errors import BadParams
from protege.expert.oracle import OracleExpert
from protege.expert.registry import judge_of
from protege.sandbox.bubblewrap import BubblewrapProvider
from tasks.keys import sample_seed
from tasks.units import Attempt, Bench, Outcome, _rolled_out
from tests.frontier.conftest import Recited, call
from tests.helpers import make_instance, make_testbed, make_verdict

ROOT = Path(__file__).parents[2]
SYSTEMS = ("never", "own", "random:0.5", "every:2", "loop:2", "always", "silent:0.5", "budget0", "vague")


def wanted(**frontier: object) -> Params:
    raw = yaml.safe_load((ROOT / "profiles/smoke.yaml").read_text())
    raw["evaluate"] |= {"temperature": 0.7, "samples": {"base": 1, "sft": 1, "rl": 2}, "workers": 1}
    raw["agent"] |= {"step_limit": 6, "expert_quota": 2}
    raw["oracle"] = {"first_level": 1}
    raw["frontier"] |= {"systems": list(SYSTEMS), **frontier}
    return Params.model_validate(raw)


@pytest.fixture
def ran(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Attempt], Params]:
    params, instance = wanted(), make_instance()
    provider = BubblewrapProvider(params.sandbox, make_testbed(tmp_path / "beds", instance.instance_id))
    attempts: list[Attempt] = []
    texts = [call("bash", command="ls"), call("ask_expert", query="What?"), *[call("bash", command="cat x")] * 3]

    class Serving:
        dtype = "float32"  # as on a CPU without bf16

        def __init__(self, *args: object, **kwargs: object) -> None: ...
        def __enter__(self) -> Serving:
            return self

        def __exit__(self, *exc: object) -> None: ...
        def deciding(self, temperature: float) -> dict[str, object]:
            return {"temperature": temperature, "dtype": self.dtype}

        def policy(self, folder: Path, name: str, temperature: float) -> tuple[Recited, Callable[[], None]]:
            assert (folder.name, name, temperature) == ("rl", "rl", 0.7)
            policy = Repeated(tiny, *texts)
            policy.identity = policy.identity.model_copy(update={"name": name})
            return policy, lambda: None

    class Repeated(Recited):
        def start(self, instance: Instance, seed: int):  # every rollout recites from the first line on
            return Recited(tiny, *texts).start(instance, seed)

    def bench(params: Params, rows: object, retries: int, agent: AgentParams | None = None) -> Bench:
        return Bench(provider, agent or params.agent, params.sandbox, retries)

    def run(batch: Sequence[Attempt], bench: Bench, progress: object) -> list[Outcome]:
        attempts.extend(batch)
        done = [_rolled_out(attempt, bench)[0] for attempt in batch]
        return [Outcome(t.model_copy(update={"verdict": make_verdict(bool(t.expert))}), "", False) for t in done]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flow, "Serving", Serving)
    monkeypatch.setattr(flow, "open_bench", bench)
    monkeypatch.setattr(flow, "run_attempts", run)
    monkeypatch.setattr(flow, "load_instances", lambda path: [instance])
    monkeypatch.setattr(flow, "create_markdown_artifact", lambda *args, **kwargs: None)
    flow.frontier.fn(params)
    return tmp_path / "data/frontier", attempts, params


def asked(t: Trajectory) -> tuple[int, int, int]:
    """(forced, answered, refused) questions."""
    answered = sum(c.answered for c in t.expert_calls)
    return sum(x.finish_reason == "forced" for x in t.turns), answered, len(t.expert_calls) - answered


def test_the_flow_runs_every_system_and_leaves_its_outs(ran: tuple[Path, list[Attempt], Params]) -> None:
    folder, attempts, params = ran
    done = {path.name: load_trajectories(path / "trajectories") for path in folder.iterdir() if path.is_dir()}
    assert set(done) == {s.replace(":", "-") for s in SYSTEMS} and all(len(each) == 2 for each in done.values())
    assert {t.trajectory_id for t in done["every-2"]} == {
        f"{make_instance().instance_id}.rl-every-2.{k}" for k in (0, 1)
    }
    # ls, a question, then cat x over and over
    expected = {"never": (0, 0, 1), "own": (0, 1, 0), "every-2": (2, 2, 1), "loop-2": (1, 1, 1), "always": (2, 2, 1)}
    expected |= {"silent-0.5": (0, 1, 0), "budget0": (0, 0, 1), "vague": (0, 1, 0)}
    assert {name: {asked(t) for t in done[name]} for name in expected} == {k: {v} for k, v in expected.items()}
    written = json.loads((folder / "frontier.json").read_text())
    assert set(written["systems"]) == set(done) and written["about"]["budget"] == "2 calls a rollout"
    assert written["systems"]["own"]["pass_at_1"] == 1 and written["systems"]["never"]["to_own"] == -1
    assert (folder / "plot.png").is_file() and (folder / "own/predictions.jsonl").is_file()
    assert not list(folder.parent.glob(".frontier*"))

    # systems that stage evaluate also rolls out have its keys: nothing is done twice
    plain = next(a for a in attempts if a.trajectory_id.endswith("rl-own.1"))
    provider = BubblewrapProvider(params.sandbox, folder.parents[1] / "beds")
    there = Attempt(
        trajectory_id="another name",
        instance=make_instance(),
        policy=plain.policy,
        expert=OracleExpert(params.oracle),
        seed=sample_seed(params.evaluate.seed, make_instance().instance_id, 1),
        judge=judge_of(params.judge, params.api),
        deciding={"temperature": params.evaluate.temperature, "dtype": "float32"},
    )
    bench = Bench(provider, params.agent, params.sandbox, 0)
    assert plain.key(bench) == there.key(bench)
    keys = {a.key(bench) for a in attempts if "budget0" not in a.trajectory_id}
    assert len(keys) == 2 * (len(SYSTEMS) - 1)


def test_samples_are_evaluates_unless_given() -> None:
    assert flow.samples_of(wanted()) == 2
    assert flow.samples_of(wanted(samples=5)) == 5
    assert flow.samples_of(load(ROOT / "profiles/smoke.yaml")) == 1
    cold = wanted(samples=2)
    cold.evaluate.temperature = 0.0
    with pytest.raises(BadParams, match="temperature"):
        flow.samples_of(cold)


def test_a_system_named_twice_or_not_known_is_refused() -> None:
    for systems, said in ((["every:3", "every-3"], "named twice: every-3"), (["guess"], "guess")):
        with pytest.raises(ValueError, match=said):
            wanted(systems=systems)


def test_the_stage_stands_outside_of_the_default_pipeline() -> None:
    assert "frontier" not in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    stage = yaml.safe_load((ROOT / "frontier/dvc.yaml").read_text())["stages"]["frontier"]
    assert stage["outs"] == ["data/frontier"]
    missing = [d for d in stage["deps"] if not d.startswith("data/") and not (ROOT / d).exists()]
    assert not missing
