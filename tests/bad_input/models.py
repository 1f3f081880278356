"""Bad model folders. One good folder is made once, from a tiny model, and each row spoils a copy of it."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bad_input.row import Row


@functools.cache
def good() -> Path:
    """Files as save_pretrained writes them; the tokenizer is a real one, the weights are four numbers."""
    import numpy
    from safetensors.numpy import save_file

    from protege.policy.tiny import _tiny_tokenizer

    folder = Path(tempfile.mkdtemp(prefix="protege-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_file({"w": numpy.zeros((2, 2), "float32")}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    _tiny_tokenizer().save_pretrained(folder)
    return folder


def use() -> object:
    from protege.config import ModelParams
    from protege.policy.embedded import load_source

    return load_source(ModelParams(source="model"), "data/models/base")


def spoilt(id: str, given: str, names: tuple[str, ...], spoil: Callable[[Path], object]) -> Row:
    def prepare() -> None:
        shutil.copytree(good(), "model")
        spoil(Path("model"))

    return Row(f"load_source: {id}", given, names, enter=use, prepare=prepare)


def template() -> object:
    from protege.policy.chat_format import ChatFormat

    return ChatFormat.from_folder("model")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def config(name: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(values))


def hub() -> object:
    from protege.config import ModelParams
    from protege.policy.embedded import load_source

    return load_source(ModelParams(source="nobody/no-such-model"), "data/models/base")


def with_template(text: str) -> Callable[[], object]:
    def prepare() -> None:
        shutil.copytree(good(), "model")
        path = Path("model/chat_template.jinja")
        path.write_text(text, encoding="utf-8") if text else path.unlink()

    return prepare


ROWS = [
    spoilt("no config", "a folder without config.json", ("model", "config.json", "save_pretrained"), lambda m: (m / "config.json").unlink()),
    spoilt("broken config", "config.json cut off", ("model/config.json", "not JSON"), lambda m: cut(m / "config.json")),
    spoilt("no type", "config.json without `model_type`", ("model/config.json", "model_type"), config("config.json", hidden_size=1)),
    spoilt("no weights", "no *.safetensors", ("model", "*.safetensors"), lambda m: (m / "model.safetensors").unlink()),
    spoilt("cut-off weights", "model.safetensors cut off", ("model/model.safetensors", "cut off", "copy it again"), lambda m: cut(m / "model.safetensors")),
    spoilt("no weights at all", "model.safetensors of four bytes", ("model/model.safetensors", "safetensors file"), lambda m: (m / "model.safetensors").write_bytes(b"abcd")),
    spoilt("missing shard", "the index names a shard that is not there", ("model.safetensors.index.json", "b.safetensors"),
           config("model.safetensors.index.json", weight_map={"w": "b.safetensors"})),
    spoilt("no tokenizer", "no tokenizer.json", ("model", "tokenizer.json"), lambda m: (m / "tokenizer.json").unlink()),
    spoilt("no chat template", "a tokenizer without a chat template", ("model", "chat template", "instruct"), lambda m: (m / "chat_template.jinja").unlink()),
    Row("load_source: hub id", "a hub id that cannot be had", ("model.source", "nobody/no-such-model", "no folder"), enter=hub, until="failed:"),
    Row("ChatFormat.from_folder: no template", "a tokenizer without a chat template", ("model", "chat template", "instruct"), enter=template, prepare=with_template("")),
    Row("ChatFormat.from_folder: no control tokens", "a template of plain text", ("model", "chat template", "plain text"), enter=template,
        prepare=with_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}")),
]  # fmt: skip
