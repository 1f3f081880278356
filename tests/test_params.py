from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from protege.config import load
from protege.errors import BadParams

ROOT = Path(__file__).parents[1]
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))


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
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


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
