"""Section ``frontier`` of params.yaml, and the names of its systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

STRATEGIES = ("random", "every", "loop", "always")
"""Systems in which a rule decides when to ask; the model's own questions are refused."""

_VALUES: dict[str, tuple[type, float, float] | None] = {
    "never": None,
    "own": None,
    "random": (float, 0.0, 1.0),
    "every": (int, 1, 1000),
    "loop": (int, 2, 1000),
    "always": None,
    "silent": (float, 0.0, 1.0),
    "budget0": None,
    "vague": None,
}
KINDS = tuple(_VALUES)
"""In the order in which tables list them."""


@dataclass(frozen=True)
class System:
    """``kind`` is one of :data:`KINDS`; ``value``: probability a step, steps between questions, length of a loop, or share of silence."""

    kind: str
    value: float = 0.0

    @property
    def name(self) -> str:
        """A folder's name: ``random-0.25``, ``every-3``, ``own``."""
        return self.kind if _VALUES[self.kind] is None else f"{self.kind}-{self.value:g}"

    @property
    def label(self) -> str:
        """For people."""
        return {
            "never": "no expert",
            "own": "own choice",
            "random": f"at random ({self.value:g} a step)",
            "every": f"every {self.value:g} steps",
            "loop": f"at a loop of {self.value:g}",
            "always": "after every step",
            "silent": f"own choice, expert silent {self.value:.0%}",
            "budget0": "own choice, budget 0",
            "vague": "own choice, vaguer expert",
        }[self.kind]


def system(spec: str) -> System:
    """``"own"``, ``"random:0.25"``, ``"every:3"``, …; a folder's name is read too. Raises ValueError.

    >>> system("random:0.25").name, system("every-3").label
    ('random-0.25', 'every 3 steps')
    """
    kind, _, text = spec.replace(":", "-", 1).partition("-")
    if kind not in _VALUES:
        raise ValueError(f"{spec!r} is no system; the systems are {', '.join(_VALUES)}")
    bounds = _VALUES[kind]
    if bounds is None:
        if text:
            raise ValueError(f"{spec!r}: {kind} takes no number")
        return System(kind)
    number, low, high = bounds
    try:
        value = number(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise ValueError(f"{spec!r} should be {kind}:N with a number N of at least {low:g} and at most {high:g}")
    return System(kind, value)


def _known(spec: str) -> str:
    system(spec)
    return spec


class FrontierParams(BaseModel):
    """Section ``frontier``: one model under several rules for asking. Seed, temperature, workers and retries are
    section ``evaluate``'s, so that systems that are evaluated there too are not rolled out again.

    ``samples``: rollouts of each instance for each system; null: as many as ``evaluate`` takes of the model.
    """

    model_config = ConfigDict(extra="forbid")

    model: Literal["base", "sft", "rl"] = "rl"
    expert: Literal["oracle", "api"] = "oracle"
    samples: Annotated[int, Field(ge=1)] | None = None
    systems: tuple[Annotated[str, AfterValidator(_known)], ...] = (
        "never",
        "own",
        "random:0.25",
        "every:3",
        "loop:3",
        "always",
        "silent:0.5",
        "budget0",
        "vague",
    )

    @field_validator("systems")
    @classmethod
    def _each_once(cls, specs: tuple[str, ...]) -> tuple[str, ...]:
        names = [system(spec).name for spec in specs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"named twice: {', '.join(twice)}")
        return specs
