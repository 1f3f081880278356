"""Bad arguments and files on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input import models
from tests.bad_input.row import SMOKE, Row, smoke, write
from tests.helpers import make_trajectory, make_turn, make_verdict


def trajectory(**changes: Any) -> dict[str, Any]:
    made = make_trajectory([make_turn(0, "bash", command="ls")], verdict=make_verdict(True))
    return made.model_dump(mode="json") | changes


def logged(*contents: tuple[str, str | bytes]) -> Callable[[], object]:
    """params.yaml of smoke, and the files."""

    def prepare() -> None:
        smoke(lambda raw: None)()
        for name, content in contents:
            write(name, content)()

    return prepare


def solving(prepare: Callable[[], object]) -> Callable[[], object]:
    """A model folder that is fine, and what ``prepare`` makes."""

    def both() -> None:
        shutil.copytree(models.good(), "model")
        prepare()

    return both


GOOD = json.dumps(trajectory())
OLD = json.dumps({k: v for k, v in trajectory(reward=1.0).items() if k != "policy"})

ROWS = [
    Row("profile", "a profile that is not there", ("dask", "smoke"), command=("profile", "dask"), prepare=write("profiles/smoke.yaml", SMOKE.read_text())),
    Row("results", "no report yet", ("data/report/report.md", "dvc repro"), command=("results",)),
    Row("plan: profile", "a profile that is not there", ("dask", "profile"), command=("plan", "--profile", "dask")),
    Row("plan: gpu", "an unknown GPU", ("--gpu", "b9000", "h100"), command=("plan", "--gpu", "b9000"), prepare=smoke(lambda raw: None)),
    Row("plan: device", "an unknown device", ("--device", "tpu", "cpu"), command=("plan", "--device", "tpu"), prepare=smoke(lambda raw: None)),
    Row("plan: model", "a model whose shape nobody knows", ("model.source", "some/model", "config.json"), command=("plan",),
        prepare=smoke(lambda raw: raw["model"].update(source="some/model"))),
    Row("plan: config", "a config.json without `num_hidden_layers`", ("model/config.json", "num_hidden_layers"), command=("plan",),
        prepare=lambda: (smoke(lambda raw: raw["model"].update(source="model"))(), write("model/config.json", json.dumps({"num_attention_heads": 1, "hidden_size": 8}))())),
    Row("score: nothing there", "a folder that is not there", ("absent", "does not exist", "data/rl/trajectories"), command=("score", "absent"), prepare=logged()),
    Row("score: empty folder", "a folder without trajectories", ("empty", "no trajectory"), command=("score", "empty"),
        prepare=logged(("empty/readme.txt", "nothing"))),
    Row("score: not JSON", "a trajectory cut off", ("t.json", "not a trajectory"), command=("score", "t.json"), prepare=logged(("t.json", GOOD[:200]))),
    Row("score: old fields", "a trajectory of an older version", ("t.json", "policy"), command=("score", "t.json"), prepare=logged(("t.json", OLD))),
    Row("score: binary", "a trajectory of random bytes", ("t.json", "not a trajectory"), command=("score", "t.json"), prepare=logged(("t.json", bytes(range(200, 256))))),
    Row("score: rewards", "a broken line of rewards.jsonl", ("rewards.jsonl", "line 1"), command=("score", "rl/trajectories"),
        prepare=logged(("rl/trajectories/t0.json", GOOD), ("rl/rewards.jsonl", "{}\n"))),
    Row("score: unknown key", "`--set reward.nothing=1`", ("reward.nothing", "follow_low"), command=("score", "t.json", "--set", "reward.nothing=1"), prepare=logged(("t.json", GOOD))),
    Row("score: no value", "`--set reward.follow_low`", ("--set reward.follow_low", "reward.follow_low=-1.0"), command=("score", "t.json", "--set", "reward.follow_low"),
        prepare=logged(("t.json", GOOD))),
    Row("score: wrong type", "`--set reward.k_first=many`", ("reward.k_first", "integer"), command=("score", "t.json", "--set", "reward.k_first=many"),
        prepare=logged(("t.json", GOOD))),
    Row("score: no params", "no params.yaml", ("params.yaml", "--params"), command=("score", "t.json"), prepare=write("t.json", GOOD)),
    Row("score: rows", "a file of rows that is not there", ("rows.jsonl", "does not exist"), command=("score", "t.json", "--instances", "rows.jsonl"),
        prepare=logged(("t.json", GOOD))),
    Row("score: gold patch", "an unresolved trajectory without its row", ("t.json", "gold patch", "--instances"), command=("score", "t.json"),
        prepare=logged(("t.json", json.dumps(trajectory(verdict=make_verdict(False).model_dump()))))),
    Row("inspect: nothing there", "an id that is not there", ("no-such-id",), command=("inspect", "no-such-id")),
    Row("inspect: not JSON", "a trajectory cut off", ("t.json",), command=("inspect", "t.json"), prepare=logged(("t.json", GOOD[:200]))),
    Row("inspect: no trajectory", "a file of other JSON", ("t.json", "trajectory_id"), command=("inspect", "t.json"), prepare=logged(("t.json", "{}"))),
    Row("provenance", "a folder that is not there", ("absent",), command=("provenance", "absent")),
    Row("solve: repo", "a repository that is not there", ("absent",), command=("solve", "--repo", "absent", "--issue", "issue.md", "--model", "model"),
        prepare=solving(write("issue.md", "It fails."))),
    Row("solve: issue", "an issue that is not there", ("issue.md",), command=("solve", "--repo", "repo", "--issue", "issue.md", "--model", "model"), prepare=solving(lambda: Path("repo").mkdir())),
]  # fmt: skip
