"""Numbers, Markdown and page from trajectories on disk; and what is said when an input is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from protege.config import ReportParams
from protege.core.trajectory import ExpertCall, Failure, Identity, ToolCall, Trajectory, Turn, Verdict
from protege.report.inputs import load_inputs
from protege.report.metrics import comparisons, evaluate_metrics, load_systems, score
from protege.report.page import write_report
from protege.report.plots import nice_ticks

PARAMS = ReportParams()
PROVENANCE = {"commit": "abc123", "profile": "smoke", "date": "2026-01-01", "packages": {"trl": "1.16.0"}}
ORACLE = Identity(name="oracle", digest="o", kind="oracle", sees_gold=True)


def rollout(
    instance: str, *, resolved: bool | None, steps: int = 3, run: int = 1, asked: int = 0, **changes
) -> Trajectory:
    """``resolved`` None: lost to infrastructure. ``run`` steps repeat one command, the rest alternate."""
    commands = ["pytest -q"] * run + [("ls" if i % 2 else "python x.py") for i in range(steps - run)]
    values = {
        "trajectory_id": f"{instance}.0",
        "instance_id": instance,
        "instance_digest": "d",
        "repo": "desk/pkg",
        "policy": Identity(name="m", digest="m", kind="served"),
        "expert": ORACLE if asked else None,
        "seed": 1,
        "messages": [],
        "turns": [
            Turn(
                index=i,
                message="",
                call=ToolCall(name="bash", arguments={"command": command}),
                observation="",
                completion_tokens=10,
            )
            for i, command in enumerate(commands)
        ],
        "expert_calls": [ExpertCall(turn=0, query="?", reply="!", completion_tokens=10) for _ in range(asked)],
        "exit_status": "submitted",
    }
    if resolved is None:
        values |= {
            "exit_status": "infrastructure",
            "failure": Failure(boundary="sandbox", error="SandboxDied", message="gone <&> lost", attempts=3),
        }
    else:
        values["verdict"] = Verdict(
            instance_id=instance,
            instance_digest="d",
            patch_digest="p",
            resolved=resolved,
            applied=True,
            reason="tests fail",
        )
    return Trajectory(**(values | changes))


def write(data: Path, system: str, *rollouts: Trajectory) -> None:
    for trajectory in rollouts:
        trajectory.save(data / "evaluation" / system / "trajectories")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write(
        root,
        "rl-oracle",
        rollout("a", resolved=True, asked=2),
        rollout("b", resolved=True),
        rollout("c", resolved=False),
    )
    write(
        root,
        "base-none",
        rollout("a", resolved=False, steps=12, run=11),
        rollout("b", resolved=False, run=2),
        rollout("c", resolved=None),
    )
    write(root, "rl-none", rollout("a", resolved=True), rollout("b", resolved=False), rollout("c", resolved=True))
    return root


def test_infrastructure_failures_are_outside_of_n_and_counted_beside_it(data):
    numbers = evaluate_metrics(data / "evaluation", PARAMS)
    assert list(numbers) == ["base-none", "rl-none", "rl-oracle"]
    base = numbers["base-none"]
    assert (base["n"], base["n_infra"], base["resolved"], base["pass_at_1"]) == (2, 1, 0, 0.0)
    assert numbers["rl-oracle"]["pass_at_1"] == pytest.approx(2 / 3, abs=1e-4)
    assert numbers["rl-none"]["pass_at_1_infra_as_unresolved"] == pytest.approx(2 / 3, abs=1e-4)


def test_a_rollout_without_a_verdict_counts_as_lost_not_as_unresolved(tmp_path):
    write(tmp_path, "sft-none", rollout("a", resolved=True), rollout("b", resolved=True, verdict=None))
    numbers = evaluate_metrics(tmp_path / "evaluation", PARAMS)["sft-none"]
    assert (numbers["n"], numbers["n_infra"], numbers["pass_at_1"]) == (1, 1, 1.0)


def test_behaviour_numbers(data):
    numbers = evaluate_metrics(data / "evaluation", PARAMS)
    assert numbers["base-none"]["loop_share"] == 0.5
    assert numbers["base-none"]["steps_mean"] == 7.5
    assert numbers["rl-oracle"]["expert_calls_mean"] == pytest.approx(2 / 3, abs=1e-4)
    # 20 expert tokens beside 3 trajectories of 3 turns of 10 tokens
    assert numbers["rl-oracle"]["expert_token_share"] == pytest.approx(20 / 110, abs=1e-4)
    eleven = ReportParams(loop_run_longer_than=11)
    assert evaluate_metrics(data / "evaluation", eleven)["base-none"]["loop_share"] == 0.0


def test_refused_expert_calls_are_not_counted(tmp_path):
    refused = [ExpertCall(turn=0, query="?", reply="quota", answered=False)]
    write(tmp_path, "sft-oracle", rollout("a", resolved=True, expert_calls=refused))
    assert evaluate_metrics(tmp_path / "evaluation", PARAMS)["sft-oracle"]["expert_calls_mean"] == 0


def test_pairs_are_of_systems_that_differ_in_one_thing_on_shared_instances(data):
    pairs = {p.label: p for p in comparisons(load_systems(data / "evaluation"), PARAMS)}
    assert set(pairs) == {"base → rl, no expert", "rl: no expert → oracle"}
    model = pairs["base → rl, no expert"]
    assert (model.n, model.only_first, model.only_second, model.difference) == (2, 0, 1, 0.5)
    expert = pairs["rl: no expert → oracle"]
    assert (expert.n, expert.only_first, expert.only_second, expert.both) == (3, 1, 1, 1)
    assert expert.p_value == 1.0


class Page(HTMLParser):
    """Collects what the page would load, its ids and its open elements."""

    VOID = {"meta", "br", "input", "link", "img", "hr", "wbr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loads += [values[k] for k in ("src", "data", "poster") if values.get(k)]
        self.loads += [values["href"]] if tag == "link" else []
        self.anchors += [values["href"]] if tag == "a" else []
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def full(data: Path) -> None:
    for name, value in {
        "instances/suite.json": {"candidates": 80, "kept": 26, "dropped": {"flaky": 2, "tests still pass": 31}},
        "models/sft/curve.json": [{"step": 1, "loss": 2.0, "lr": 1e-4}, {"step": 2, "loss": 1.5}],
        "validation/result.json": {"metrics": {"n": 24, "kept": 12}},
    }.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(json.dumps(value))
    (data / "rl").mkdir()
    steps = [
        {
            "step": i,
            "reward_mean": -1.0 + i,
            "terms": {"loop": -0.5, "follow": 0.2, "total": -1.0 + i},
            "seconds": {"rollout": 9.0, "total": 120.0 + i},
        }
        for i in range(3)
    ]
    (data / "rl" / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    rollout("a", resolved=True).save(data / "trajectories" / "sft")
    rollout("b", resolved=False).save(data / "trajectories" / "sft")


def test_page_is_one_sound_file_that_loads_nothing(data, tmp_path):
    full(data)
    metrics = write_report(data, tmp_path / "out", PARAMS, PROVENANCE, tmp_path / "metrics" / "report.json")
    assert json.loads((tmp_path / "metrics" / "report.json").read_text()) == metrics
    text = (tmp_path / "out" / "index.html").read_text()
    page = Page(text)
    assert page.open == [] and page.loads == []
    assert len(page.ids) == len(set(page.ids))
    within = [anchor for anchor in page.anchors if anchor.startswith("#")]
    assert within and all(anchor.removeprefix("#") in page.ids for anchor in within)
    assert all((tmp_path / "out" / anchor).is_file() for anchor in page.anchors if anchor not in within)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "Not on this page" not in text
    for piece in ["abc123", "trl", "tests still pass", "total reward", "follow-through", "SFT loss", "1 kept of 2"]:
        assert piece in text, piece
    assert text.count('<svg class="chart"') == 4 + 1 + 3


def test_every_instance_leads_to_its_trajectory_and_back(data, tmp_path):
    write_report(data, tmp_path / "out", PARAMS, PROVENANCE)
    page = Page((tmp_path / "out" / "index.html").read_text())
    pages = {anchor for anchor in page.anchors if anchor.startswith("trajectories/") and anchor.count("/") == 2}
    assert len(pages) == 9
    for anchor in pages:
        links = Page((tmp_path / "out" / anchor).read_text()).anchors
        assert (tmp_path / "out" / anchor).parent.joinpath(
            links[0]
        ).resolve() == tmp_path / "out/trajectories/index.html"
    assert Page((tmp_path / "out/trajectories/index.html").read_text()).anchors[0] == "../index.html"


def test_reward_terms_are_the_rewards_and_not_the_seconds(data):
    full(data)
    terms = load_inputs(data).rl_terms
    assert terms["total"] == [(0.0, -1.0), (1.0, 0.0), (2.0, 1.0)]
    assert terms["loop"] == [(0.0, -0.5), (1.0, -0.5), (2.0, -0.5)]


def test_a_duplicate_is_not_counted_as_kept(data):
    full(data)
    rollout("c", resolved=True).save(data / "trajectories" / "duplicates")
    found = load_inputs(data).synthesis
    assert found["sft"]["kept"] == 1 and dict(found["duplicates"]) == {"duplicate": 1}


def test_oracle_is_labelled_everywhere_and_only_where_it_acted(data, tmp_path):
    write_report(data, tmp_path, PARAMS, PROVENANCE)
    text = (tmp_path / "index.html").read_text()
    assert "has seen the gold patch.</strong>" in text
    assert text.count('<span class="badge">expert has seen the gold patch</span>') == 1
    assert "has seen the gold patch" in (tmp_path / "report.md").read_text()


def test_without_an_oracle_nothing_is_labelled(tmp_path):
    write(tmp_path, "sft-none", rollout("a", resolved=True))
    write_report(tmp_path, tmp_path / "out", PARAMS, PROVENANCE)
    assert "gold patch" not in (tmp_path / "out" / "index.html").read_text()
    assert "gold patch" not in (tmp_path / "out" / "report.md").read_text()


def test_failures_come_first_and_text_is_escaped(data, tmp_path):
    write_report(data, tmp_path, PARAMS, PROVENANCE)
    text = (tmp_path / "index.html").read_text()
    results = re.findall(r'data-result="(\w+)"', text)
    assert results == ["infrastructure"] + ["unresolved"] * 4 + ["resolved"] * 4
    assert "sandbox: SandboxDied: gone &lt;&amp;&gt; lost (3 attempts)" in text and "gone <&>" not in text


def test_markdown_starts_with_the_results_table(data, tmp_path):
    write_report(data, tmp_path, PARAMS, PROVENANCE)
    lines = (tmp_path / "report.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0].startswith("| system | Pass@1 |")
    assert table[2].startswith("| base, no expert | 0.0% | 0.0% to 65.8% | 0 / 2 (2) | 1 of 3 | 50.0% |")


def test_nothing_there_is_said_not_raised(tmp_path):
    assert write_report(tmp_path / "data", tmp_path / "out", PARAMS, {}) == {}
    text = (tmp_path / "out" / "index.html").read_text()
    assert Page(text).open == []
    for stage in ["instances", "trajectories", "validate", "sft", "rl", "evaluate"]:
        assert f"stage &#39;{stage}&#39;" in text, stage
    assert "Nothing has been graded yet." in text


def test_a_system_that_is_all_infrastructure_has_no_score(tmp_path):
    write(tmp_path, "sft-none", rollout("a", resolved=None))
    metrics = write_report(tmp_path, tmp_path / "out", PARAMS, PROVENANCE)["sft-none"]
    assert "pass_at_1" not in metrics and metrics["n"] == 0 and metrics["n_infra"] == 1
    assert score(load_systems(tmp_path / "evaluation")[0], PARAMS).boundaries == {"sandbox": 1}
    assert "nothing graded" in (tmp_path / "out" / "index.html").read_text()


def test_broken_side_inputs_are_named(data, tmp_path):
    full(data)
    (data / "instances" / "suite.json").write_text("{")
    (data / "rl" / "steps.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    write_report(data, tmp_path / "out", PARAMS, PROVENANCE)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "unreadable suite counts (suite.json" in text
    assert "logged none of the terms" in text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 75), (-1.7, 0.3), (0.001, 0.002), (3, 3), (-5, -2)])
def test_ticks_lie_within_and_are_few(low, high):
    ticks = nice_ticks(low, high, 6)
    assert ticks and all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
    assert len(ticks) <= 8


def test_several_rollouts_of_an_instance_are_averaged_before_instances_are(tmp_path):
    def some(system: str, instance: str, *resolved: bool) -> None:
        rows = [rollout(instance, resolved=r, trajectory_id=f"{instance}.{k}") for k, r in enumerate(resolved)]
        write(tmp_path, system, *rows)

    some("sft-none", "a", True, False, False, False)
    some("sft-none", "b", True)
    some("sft-none", "c", False, False)
    some("rl-none", "a", True, True, False, False)
    some("rl-none", "b", True, True)
    some("rl-none", "c", False)
    sft, rl = load_systems(tmp_path / "evaluation")
    numbers = score(sft, PARAMS)
    assert (numbers.n, numbers.instances, numbers.resolved) == (7, 3, 2)
    assert numbers.pass_at_1 == pytest.approx((0.25 + 1 + 0) / 3)
    (pair,) = comparisons([sft, rl], PARAMS)
    assert (pair.n, pair.only_first, pair.only_second, pair.both) == (3, 0, 1, 2)
    assert pair.difference == pytest.approx(0.25 / 3) and pair.p_value == 1.0
    assert pair.ci[0] == 0.0 and 0 < pair.ci[1] <= 0.25
