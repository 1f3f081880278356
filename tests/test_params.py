from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from protege.config import Params, load
from protege.errors import BadParams
from tests.helpers import write_settings

ROOT = Path(__file__).parents[1]
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))


MACHINES = sorted((ROOT / "machines").glob("*.yaml"))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda path: path.stem)
def test_every_recipe_runs_on_every_machine_and_decides_the_same(machine: Path) -> None:
    for path in PROFILES:
        here, there = load(path), load(path, machine)
        assert there.machine == str(machine)
        for name in Params.model_fields:
            if name != "profile":
                assert getattr(here, name).deciding() == getattr(there, name).deciding()


def test_each_key_stands_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "profiles/smoke.yaml").read_bytes())
    machine = tmp_path / "machine.yaml"
    machine.write_text("rl: {workers: 3}\n", encoding="utf-8")
    found = load(tmp_path / "params.yaml")
    assert (found.rl.workers, found.machine) == (3, str(machine))
    machine.write_text("rl: {steps: 3}\n", encoding="utf-8")
    with pytest.raises(BadParams, match=r"machine\.yaml: rl\.steps: decides results; it belongs into params\.yaml"):
        load(tmp_path / "params.yaml")
    machine.write_text("rl: {workers: none}\n", encoding="utf-8")
    with pytest.raises(BadParams, match=r"machine\.yaml: rl\.workers"):
        load(tmp_path / "params.yaml")
    machine.unlink()
    assert load(tmp_path / "params.yaml").machine  # what was found here
    raw = yaml.safe_load((tmp_path / "params.yaml").read_text(encoding="utf-8"))
    raw["rl"]["workers"] = 3
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(BadParams, match=r"params\.yaml: rl\.workers .* belongs into machine\.yaml"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_is_complete_and_named_after_its_file(path: Path) -> None:
    assert load(path).profile == path.stem


def test_the_profiles_differ_in_values_only() -> None:
    """Same sections and, but for what desk-only splits leave out, the same keys: profiles, not forks."""
    keys = {path.stem: {name: set(section) for name, section in _sections(path)} for path in PROFILES}
    assert set(keys) == {"smoke", "tiny", "desk", "paper"}
    assert all(value == keys["smoke"] for value in keys.values())


def _sections(path: Path) -> list[tuple[str, dict[str, object]]]:
    return [(k, v) for k, v in yaml.safe_load(path.read_text(encoding="utf-8")).items() if isinstance(v, dict)]


def test_params_yaml_is_one_of_the_profiles() -> None:
    assert load(ROOT / "params.yaml").profile in {path.stem for path in PROFILES}


def written(tmp_path: Path, change) -> Path:
    raw = yaml.safe_load((ROOT / "profiles/smoke.yaml").read_text())
    change(raw)
    write_settings(tmp_path, raw)
    return tmp_path / "params.yaml"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda raw: raw["agent"].update(step_limits=3), "agent.step_limits"),
        (lambda raw: raw["agent"].update(step_limit="many"), "agent.step_limit"),
        (lambda raw: raw.pop("rl"), "rl"),
        (lambda raw: raw["evaluate"].update(experts=["nobody"]), "evaluate.experts.0"),
        (lambda raw: raw["validate"].update(min_kept=-1), "validate.min_kept"),
        (lambda raw: raw.update(other={}), "other"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, change, named: str) -> None:
    with pytest.raises(BadParams, match=named):
        load(written(tmp_path, change))


def test_a_missing_or_broken_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadParams, match="no .*params.yaml"):
        load(tmp_path / "params.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(BadParams, match="not YAML"):
        load(broken)
    broken.write_text("just text\n")
    with pytest.raises(BadParams):
        load(broken)
