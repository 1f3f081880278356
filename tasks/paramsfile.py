"""params.yaml changed line by line, so that comments stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from protege.errors import BadParams
from protege.files import write_atomic

PARAMS = Path("params.yaml")
_NUMBER = r"[ \t]*-?\d+"
_LIST = (
    r"(?:[ \t]*\[[^\]\n]*\]|(?:\n[ \t]*-[ \t]+-?\d+)+)"  # on its line, or one number a line as yaml.safe_dump writes it
)


def set_values(values: Mapping[tuple[str, str], int | list[int]]) -> None:
    """Write each (section, key)'s whole number, or list of them, into params.yaml.

    Raises BadParams, with nothing written, where a line cannot be found.
    """
    before = text = PARAMS.read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    for (section, key), value in values.items():
        if raw[section].get(key, []) == value:
            continue
        old = _LIST if isinstance(value, list) else _NUMBER
        text = re.sub(rf"(?ms)^({section}:.*?^[ \t]+{key}:){old}", rf"\g<1> {value}", text, count=1)
        raw[section][key] = value
        if yaml.safe_load(text) != raw:
            shape = "[]" if isinstance(value, list) else "7"
            raise BadParams(
                f"{PARAMS}: {section}.{key} is not on a line of its own ('  {key}: {shape}'), so it cannot be set"
            )
    if text != before:
        write_atomic(PARAMS, text)
