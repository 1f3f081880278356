"""One finding, and the place that is examined."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from protege.config import Params

Status = Literal["ok", "warn", "fail"]
CACHE = Path(".cache/protege")
"""What the project keeps and is not an output, relative to the project's folder."""
GIB = 1 << 30
DISK_GIB = (5, 15)
"""Below the first a run fails, below the second it may: a virtual environment of 3 GB, models, images, caches."""


@dataclass(frozen=True)
class Finding:
    """``found`` says what is there; ``fix`` is one command (empty where nothing is to be done)."""

    name: str
    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Place:
    """The project's folder and the environment variables of whoever asks."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def params(self) -> Params | None:
        """params.yaml, or None where it cannot be used; the check ``params`` says why."""
        try:
            from protege.config import load
            from protege.errors import BadParams
        except ImportError:
            return None
        try:
            return load(self.root / "params.yaml")
        except (BadParams, OSError):
            return None

    @property
    def backend(self) -> str:
        return self.params.sandbox.backend if self.params else "auto"
