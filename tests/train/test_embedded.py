"""Model folders: digest, sources, atomicity."""

from pathlib import Path

import pytest

from protege.config import ModelParams
from protege.errors import BadInput
from protege.policy.embedded import load_source
from protege.policy.model_folder import atomic_folder, model_digest
from protege.policy.tiny import tiny_model
from protege.train.checkpoints import save_model_folder


def test_a_folder_is_a_source_and_keeps_its_digest(tiny: Path, tmp_path: Path) -> None:
    out = load_source(ModelParams(source=str(tiny)), tmp_path / "base")
    assert model_digest(out) == model_digest(tiny)
    assert load_source(ModelParams(source=str(out)), out) == out


def test_other_weights_are_another_digest(tiny: Path, tmp_path: Path) -> None:
    assert model_digest(tiny_model(tmp_path / "same")) == model_digest(tiny)
    assert model_digest(tiny_model(tmp_path / "other", seed=1)) != model_digest(tiny)
    (tmp_path / "same" / "chat_template.jinja").write_text("another")
    assert model_digest(tmp_path / "same") != model_digest(tiny)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="safetensors"):
        load_source(ModelParams(source=str(tmp_path)), tmp_path / "out")


def test_a_broken_write_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with atomic_folder(out) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(out) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (out / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_trained_model_does_not_show_the_curve_of_the_one_it_came_from(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = load_source(ModelParams(source=str(tiny), dtype="float32"), tmp_path / "source")
    for name in ("curve.json", "curve.png", "dropped.json"):
        (source / name).write_text("the source's")
    out = save_model_folder(AutoModelForCausalLM.from_pretrained(source), source, tmp_path / "out", "float32")
    assert {path.name for path in source.iterdir()} - {path.name for path in out.iterdir()} <= {
        "curve.json", "curve.png", "dropped.json", "embedded.sha256",
    }  # fmt: skip
    assert not (out / "curve.json").exists() and (out / "tokenizer.json").exists()
