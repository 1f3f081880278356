from __future__ import annotations

from pathlib import Path

import pytest

from protege.config import EvaluateParams
from protege.core.trajectory import Failure
from protege.report.inspect.commands import commands
from protege.report.inspect.sources import read, search
from tasks.evaluation import Evaluation, asked, outcome
from tasks.promotion import OUT
from tests.helpers import make_trajectory

PARAMS = EvaluateParams(models=("base", "rl"), experts=("none", "oracle"))
LOST = Failure(boundary="sandbox", error="SandboxDied", message="gone", attempts=1)
MODELS, DATA = Path("data/models"), Path("data")


def test_the_champion_is_the_same_evaluation_with_other_paths() -> None:
    own = asked([], PARAMS, MODELS, DATA)
    assert own == Evaluation(
        {"base": MODELS / "base", "rl": MODELS / "rl"},
        ("none", "oracle"),
        DATA / "evaluation",
        DATA / "metrics/evaluate.json",
    )
    argv = "--model rl=data/champion/model --as champion --expert none --out data/champion-evaluation".split()
    out = Path("data/champion-evaluation")
    champion = asked(argv, PARAMS, MODELS, DATA)
    assert champion == Evaluation(
        {"rl": Path("data/champion/model")}, ("none",), out / "evaluation", out / "metrics/evaluate.json", "champion"
    )
    assert (own.system("rl", "none"), champion.system("rl", "none")) == ("rl-none", "champion-none")


@pytest.mark.parametrize("wrong", ["rl", "rl=", "best=data/champion/model"])
def test_a_model_without_a_folder_or_with_an_unknown_name_is_refused(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asked(["--model", wrong], PARAMS, MODELS, DATA)
    assert "NAME=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("argv", ["--as champion", "--model rl=m --as a/b"])
def test_a_label_is_a_word_for_one_model(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        asked(argv.split(), PARAMS, MODELS, DATA)
    assert "--as" in capsys.readouterr().err


def test_inspect_finds_the_champions_trajectories(tmp_path: Path) -> None:
    """Under an id of their own, and without the advice to roll them out by a stage that does not make them."""
    folders = {"rl": "evaluation", "champion": f"{OUT.name}/evaluation"}
    made = {
        model: make_trajectory([], trajectory_id=f"i1.{model}-none", instance_id="i1", failure=LOST).save(
            tmp_path / "data" / folder / f"{model}-none/trajectories"
        )
        for model, folder in folders.items()
    }
    assert search("i1.champion-none", tmp_path / "data") == [made["champion"]]
    assert set(search("i1", tmp_path / "data")) == set(made.values())
    advice = {model: [c.command for c in commands(read(path).trajectory, path, False)] for model, path in made.items()}
    assert advice == {"rl": ["dvc repro --force --single-item evaluate"], "champion": []}


def test_a_card_says_the_loss_beside_the_score() -> None:
    counts = {"resolved": 0, "graded": 2, "infrastructure": 1, "rollouts": 3}
    assert outcome(counts) == "0 of 2 resolved, 1 lost to infrastructure"
    assert outcome({**counts, "infrastructure": 0}) == "0 of 2 resolved"


def test_a_run_says_which_systems_it_evaluates() -> None:
    assert asked([], PARAMS, MODELS, DATA).called == "base, rl with none, oracle"
    argv = "--model rl=data/champion/model --as champion --expert none".split()
    assert asked(argv, PARAMS, MODELS, DATA).called == "champion with none"
