from __future__ import annotations

from pathlib import Path

import pytest

from protege.config import EvaluateParams
from tasks.evaluation import Evaluation, asked

PARAMS = EvaluateParams(models=("base", "rl"), experts=("none", "oracle"))
MODELS, DATA = Path("data/models"), Path("data")


def test_the_champion_is_the_same_evaluation_with_other_paths() -> None:
    own = asked([], PARAMS, MODELS, DATA)
    assert own == Evaluation(
        {"base": MODELS / "base", "rl": MODELS / "rl"},
        ("none", "oracle"),
        DATA / "evaluation",
        DATA / "metrics/evaluate.json",
    )
    argv = "--model rl=data/champion/model --expert none --out .cache/protege/champion".split()
    out = Path(".cache/protege/champion")
    assert asked(argv, PARAMS, MODELS, DATA) == Evaluation(
        {"rl": Path("data/champion/model")}, ("none",), out / "evaluation", out / "metrics/evaluate.json"
    )


@pytest.mark.parametrize("wrong", ["rl", "rl=", "best=data/champion/model"])
def test_a_model_without_a_folder_or_with_an_unknown_name_is_refused(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asked(["--model", wrong], PARAMS, MODELS, DATA)
    assert "NAME=FOLDER" in capsys.readouterr().err
