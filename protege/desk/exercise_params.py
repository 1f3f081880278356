"""Section ``exercises`` of params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ExercisesParams(BaseModel):
    """How many edit exercises there are (at most ``count``; 0: none), ``per_row`` of them in one conversation.

    They come from the packages of the sft split and from ``packages``, of which none may be in the eval split.
    ``renamed`` is the share of conversations that are under other names throughout (train/renaming.py).
    """

    model_config = ConfigDict(extra="forbid")

    seed: int = 29
    count: int = Field(0, ge=0)
    packages: tuple[str, ...] = ()
    per_row: int = Field(4, ge=1)
    renamed: float = Field(0.6, ge=0, le=1)
