"""Section ``instances`` of params.yaml."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SplitName = Literal["sft", "rl", "eval"]


class SplitParams(BaseModel):
    """What one split wants: ``count`` instances, spread over ``packages`` (desk suite only)."""

    model_config = ConfigDict(extra="forbid")

    packages: tuple[str, ...] = ()
    count: int = Field(ge=0)


class InstancesParams(BaseModel):
    """Where instances come from and what makes a desk candidate good enough.

    ``max_changed_lines`` counts added plus removed lines of the bug's diff; ``max_file_kb`` (KiB) keeps files out
    that are too large for a small context; ``repeats`` is how often the whole test run is repeated, with and without
    the bug; ``preflight`` is how often each instance's gold patch is graded before it counts (0: never); ``max_fail_to_pass`` (test functions) drops bugs that break everything and so describe nothing;
    ``tries_per_instance`` bounds the search: at most that many candidates are verified for each one wanted.
    ``earlier`` are seeds of earlier nights: what they gave for sft and rl stays, ``count`` more is added for each (desk suite only).
    """

    model_config = ConfigDict(extra="forbid")

    source: str = "desk"
    seed: int = 7
    earlier: tuple[int, ...] = ()
    splits: dict[SplitName, SplitParams]
    max_changed_lines: int = Field(4, ge=2)
    max_file_kb: float = Field(40, gt=0)
    repeats: int = Field(2, ge=1)
    test_timeout_s: float = Field(60, gt=0)
    workers: int = Field(2, ge=1)
    max_fail_to_pass: int = Field(25, ge=1)
    preflight: int = Field(2, ge=0)
    tries_per_instance: float = Field(6, ge=1)

    @model_validator(mode="after")
    def _eval_is_apart(self) -> InstancesParams:
        trained = {p for name, split in self.splits.items() if name != "eval" for p in split.packages}
        shared = trained & set(self.splits["eval"].packages) if "eval" in self.splits else set()
        if shared:
            raise ValueError(
                f"splits.eval.packages shares {sorted(shared)} with sft or rl; eval must use packages of its own"
            )
        if len({*self.earlier, self.seed}) <= len(self.earlier):
            raise ValueError(f"earlier = {list(self.earlier)} names a seed twice, or seed = {self.seed} itself")
        return self

    def of_each_seed(self) -> list[InstancesParams]:
        """One after the other, the nights that make the suite: earlier ones without eval, which is always fresh."""
        trained = {name: split for name, split in self.splits.items() if name != "eval"}
        before: list[dict[str, Any]] = [{"seed": seed, "earlier": (), "splits": trained} for seed in self.earlier]
        return [self.model_copy(update=values) for values in (*before, {"earlier": ()})]
