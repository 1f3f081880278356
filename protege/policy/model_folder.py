"""Model folders: what they hold, their digest, and how they are written whole or not at all. Loads no weight."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protege.errors import BadInput
from protege.files import digest_tree

MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*.json", "chat_template.jinja")
SAVE = "a folder made by save_pretrained (model and tokenizer) is needed"


def check_model_folder(folder: Path | str) -> None:
    """Raises BadInput, naming the file and what is wrong with it, for a folder without configuration, with missing or
    cut-off weights, without a tokenizer, or whose tokenizer has no chat template."""
    folder = Path(folder)
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise BadInput(f"{folder} holds no *.safetensors; {SAVE}")
    config = _object(folder / "config.json")
    if "model_type" not in config:
        raise BadInput(f"{folder / 'config.json'}: key 'model_type' is missing; {SAVE}")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = _object(index).get("weight_map")
        names = set(listed.values()) if isinstance(listed, dict) else set()
        if missing := sorted(str(name) for name in names if not (folder / str(name)).is_file()):
            raise BadInput(f"{index} names {', '.join(missing)}, which is not there; copy the whole folder")
    for shard in shards:
        _check_safetensors(shard)
    if not (folder / "tokenizer.json").is_file():
        raise BadInput(f"{folder} holds no tokenizer.json; {SAVE}, with a fast tokenizer")
    _object(folder / "tokenizer.json")
    settings = folder / "tokenizer_config.json"
    template = _object(settings).get("chat_template") if settings.is_file() else None
    if not template and not (folder / "chat_template.jinja").is_file():
        raise BadInput(f"{folder}: the tokenizer has no chat template (chat_template.jinja); use an instruct model")


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path.parent} holds no {path.name}; {SAVE}") from None
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); copy it again") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds a {type(value).__name__}, not an object; {SAVE}")
    return value


def _check_safetensors(path: Path) -> None:
    """The header (8 bytes of its length, then JSON) says where the last tensor ends, and so how long the file is."""
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length)) if length <= size else {}
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise BadInput(f"{path} is not a safetensors file; copy it again") from None
    if size != wanted:
        raise BadInput(f"{path} has {size} bytes, but its header speaks of {wanted}: it is cut off; copy it again")


def model_digest(folder: Path | str) -> str:
    """Content hash of a model folder's weights, configuration, tokenizer and chat template.

    Raises:
        BadInput: the folder holds no safetensors.
    """
    if not any(Path(folder).glob("*.safetensors")):
        raise BadInput(f"{folder} holds no *.safetensors; a folder made by save_pretrained is needed")
    return digest_tree(folder, MODEL_FILES)


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place when the block ends well; else it is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield folder
        for path in folder.rglob("*"):
            os.chmod(path, 0o755 if path.is_dir() else 0o644)
        os.chmod(folder, 0o755)
        if out.exists():
            old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
            os.replace(out, old / "was")
            os.replace(folder, out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars from transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
