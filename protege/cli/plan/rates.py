"""The figures that a plan rests on, each with where it is from (rates.yaml), and the shape of the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from protege.errors import BadInput, BadParams

FILE = Path(__file__).with_name("rates.yaml")
Basis = Literal["measured", "paper", "assumed", "counted"]


@dataclass(frozen=True)
class Rate:
    """One figure. ``basis``: measured by us, from the paper, or assumed; ``source`` says where it stands."""

    value: float
    basis: Basis
    source: str

    def __str__(self) -> str:
        return f"{self.value:g} ({self.basis}: {self.source})"


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer with grouped-query attention, as far as memory depends on it."""

    name: str
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of key-value cache for one token, in bf16: keys and values of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gib: float


class Rates:
    """rates.yaml: ``rates["cpu", "row_tokens"].value``."""

    def __init__(self, path: Path = FILE) -> None:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        self.machine = str(raw["machine"])
        self.datasets: dict[str, int] = raw["datasets"]
        self.gpus = {name: Gpu(**values) for name, values in raw["gpus"].items()}
        self._models: dict[str, dict[str, Any]] = raw["models"]
        self._rates = {
            (group, name): Rate(float(entry["value"]), entry["basis"], entry["source"])
            for group in ("shared", "cpu", "gpu", "expert")
            for name, entry in raw[group].items()
        }

    def __getitem__(self, key: tuple[str, str]) -> Rate:
        return self._rates[key]

    def gpu(self, name: str) -> Gpu:
        """Raises BadInput for a GPU that rates.yaml does not know."""
        if name not in self.gpus:
            raise BadInput(f"--gpu {name}: not known; there are {', '.join(self.gpus)} (protege/cli/plan/rates.yaml)")
        return self.gpus[name]

    def shape(self, source: str, root: Path = Path()) -> Shape:
        """The shape of ``model.source``: known by name, or read from the config.json of its folder.

        Raises:
            BadParams: a hub id that is not known, so that its shape would be a guess.
        """
        if source in self._models:
            return Shape(**self._models[source])
        config = root / source / "config.json"
        if not config.is_file():
            known = ", ".join(self._models)
            raise BadParams(
                f"model.source: the shape of {source!r} is not known (known: {known}); give a folder with its "
                "config.json, or add it to protege/cli/plan/rates.yaml"
            )
        return read_shape(config)


def read_shape(path: Path) -> Shape:
    """The shape in a Hugging Face config.json; parameters are counted from it (Llama-like blocks).

    Raises:
        BadInput: not JSON, or a key is missing; the message names it.
    """
    try:
        c = json.loads(path.read_text(encoding="utf-8"))
        heads = int(c["num_attention_heads"])
        hidden, layers, vocabulary = int(c["hidden_size"]), int(c["num_hidden_layers"]), int(c["vocab_size"])
        intermediate = int(c["intermediate_size"])
        head_dim = int(c.get("head_dim") or hidden // heads)
        kv_heads = int(c.get("num_key_value_heads") or heads)
    except KeyError as error:
        raise BadInput(f"{path}: key {error} is missing; a decoder-only model's config.json is needed") from None
    except (ValueError, TypeError, OSError) as error:
        raise BadInput(f"{path} is not a model's config.json: {error}") from None
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    embeddings = vocabulary * hidden * (1 if c.get("tie_word_embeddings") else 2)
    parameters = layers * (attention + 3 * hidden * intermediate + 2 * hidden) + embeddings + hidden
    return Shape(str(path.parent), parameters, layers, hidden, intermediate, kv_heads, head_dim, vocabulary)
