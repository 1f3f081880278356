"""The chain of a model made by a small pipeline with real stages; a model is made again from nothing but its chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import Typer
from typer.testing import CliRunner

from protege.cli.commands.provenance import register
from protege.errors import BadInput
from protege.report.provenance import build, dvc_md5, locked_stages, provenance
from tasks.promotion import promote
from tests.nightly.project import Project

PIPELINE = """
stages:
  model:
    cmd: python -m flows.model
    deps: [given]
    params: [model.source]
    outs: [data/models/base]
  rl:
    cmd: python -m tests.nightly.small rl
    deps: [data/models/base]
    params: [rl.steps, instances.seed]
    outs: [data/models/rl, data/instances]
  evaluate:
    cmd: python -m tests.nightly.small evaluate
    deps: [data/models/rl/model.safetensors, data/instances]
    params: [evaluate]
    outs: [data/evaluation]
"""

pytestmark = pytest.mark.slow


def given_model(folder: Path) -> None:
    """The smallest folder that stage ``model`` takes for a model: no tensors."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, server: str) -> tuple[Project, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("made")
    given_model(folder / "given")
    project = Project(folder, PIPELINE)
    project.set("model", source="given")
    project.env["PREFECT_API_URL"] = server
    project.run("dvc", "repro")
    return project, build(folder / "data/models/rl", folder), server


def test_the_chain_holds_every_stage_that_led_to_the_model_and_no_other(
    made: tuple[Project, dict[str, Any], str],
) -> None:
    project, chain, _ = made
    assert list(chain["stages"]) == ["model", "rl"] and chain["problems"] == []
    base = chain["stages"]["model"]["outs"][0]
    assert base in chain["stages"]["rl"]["deps"]
    assert chain["stages"]["rl"]["params"] == {"instances.seed": 7, "rl.steps": 2}
    assert len(chain["code"]["commit"]) == 40
    for stage in chain["stages"].values():
        for out in stage["outs"]:
            assert dvc_md5(project.folder / out["path"]) == out["md5"], "as DVC hashes it"


def test_a_model_is_made_again_from_its_chain_with_the_same_hashes(
    made: tuple[Project, dict[str, Any], str], tmp_path: Path
) -> None:
    first, chain, url = made
    shutil.copytree(first.folder / "given", tmp_path / "given")
    stages = {
        name: {
            "cmd": stage["cmd"],
            "deps": [dep["path"] for dep in stage["deps"]],
            "params": list(stage["params"]),
            "outs": [out["path"] for out in stage["outs"]],
        }
        for name, stage in chain["stages"].items()
    }
    again = Project(tmp_path, yaml.safe_dump({"stages": stages}))
    for stage in chain["stages"].values():
        for key, value in stage["params"].items():
            section, name = key.split(".")
            again.set(section, **{name: value})
    again.env["PREFECT_API_URL"] = url
    again.run("dvc", "repro")
    assert {name: s["outs"] for name, s in locked_stages(tmp_path).items()} == {
        name: s["outs"] for name, s in chain["stages"].items()
    }
    assert build(tmp_path / "data/models/rl", tmp_path)["model"] == chain["model"]


def test_a_broken_link_is_named_and_the_command_says_so(
    made: tuple[Project, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, chain, _ = made
    monkeypatch.chdir(project.folder)
    app = Typer()
    register(app)
    app.command("other")(lambda: None)  # so that the first stays a subcommand
    found = CliRunner().invoke(app, ["provenance", "data/models/rl", "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.output)["digest"] == chain["digest"]
    config = Path("data/models/base/config.json")
    before = config.read_text(encoding="utf-8")
    config.write_text("{}", encoding="utf-8")
    try:
        found = CliRunner().invoke(app, ["provenance", "data/models/rl"])
    finally:
        config.write_text(before, encoding="utf-8")
    assert found.exit_code == 1 and "BROKEN: data/models/base on disk" in found.output
    assert CliRunner().invoke(app, ["provenance", "data/models/sft"]).exit_code == 1


def test_a_champion_carries_its_chain_and_notices_what_is_done_to_it(
    made: tuple[Project, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, chain, _ = made
    monkeypatch.chdir(project.folder)
    for _again in range(2):
        promote(Path("data/models/rl"), "2026-11-22", {"promote": True, "reasons": ["first"]})
    champion = Path("data/champion")
    assert not list(Path("data").glob(".champion*"))
    for path in (champion, champion / "model"):
        assert provenance(path)["digest"] == chain["digest"]
    assert provenance(champion)["champion"]["night"] == "2026-11-22"
    (champion / "model/config.json").write_text("{}")
    with pytest.raises(BadInput, match="model/config.json are not the files that were promoted"):
        provenance(champion)
    (champion / "model/config.json").unlink()
    with pytest.raises(BadInput, match="model/config.json"):
        provenance(champion)


def test_a_night_cut_off_between_its_decision_and_the_promotion_only_promotes(
    made: tuple[Project, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.nightly import settle
    from protege.config import load
    from tasks.nights import begin

    project, chain, _ = made
    monkeypatch.chdir(project.folder)
    shutil.rmtree("data/champion", ignore_errors=True)
    night = begin("2026-11-25", "UTC", fresh=True)
    night.decided = {"promote": True, "reasons": ["as decided"], "candidate": {"digest": chain["model"]["digest"]}}
    for _again in range(2):
        assert settle(load(), night) == "Night of 2026-11-25: the new model is the champion: as decided"
    assert (
        json.loads(Path("data/champion/champion.json").read_text(encoding="utf-8"))["model_digest"]
        == chain["model"]["digest"]
    )
    night.decided["promote"] = night.promoted = False
    shutil.rmtree("data/champion")
    assert settle(load(), night).endswith("the champion stays: as decided")
    assert not Path("data/champion").exists()


def test_a_folder_that_no_stage_makes_is_refused(made: tuple[Project, dict[str, Any], str]) -> None:
    project, _, _ = made
    with pytest.raises(BadInput, match="no stage in dvc.lock makes given"):
        provenance(project.folder / "given", project.folder)
    with pytest.raises(BadInput, match="no model folder"):
        provenance(project.folder / "nowhere", project.folder)
