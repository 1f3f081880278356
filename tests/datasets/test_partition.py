from __future__ import annotations

import pytest

from protege.config import InstancesParams
from protege.core.instance import Instance
from protege.datasets.partition import partition
from protege.errors import BadInput


def params(sft: int = 2, rl: int = 1, held_out: int = 2, seed: int = 7) -> InstancesParams:
    counts = {"sft": {"count": sft}, "rl": {"count": rl}, "eval": {"count": held_out}}
    return InstancesParams.model_validate({"source": "rows.jsonl", "seed": seed, "splits": counts})


@pytest.fixture
def rows(make_instance) -> list[Instance]:
    return [make_instance(f"{repo}-{n}", repo=repo) for repo in ("a/a", "b/b", "c/c", "d/d") for n in range(2)]


def test_eval_shares_no_repository_and_counts_hold(rows: list[Instance]) -> None:
    for seed in range(20):
        made = partition(rows, params(seed=seed), "rows.jsonl")
        assert {name: len(items) for name, items in made.items()} == {"sft": 2, "rl": 1, "eval": 2}
        held_out = {row.repo for row in made["eval"]}
        assert not held_out & {row.repo for name in ("sft", "rl") for row in made[name]}
        ids = [row.instance_id for items in made.values() for row in items]
        assert len(set(ids)) == len(ids)
        assert all((row.model_extra or {})["split"] == name for name, items in made.items() for row in items)


def test_the_order_of_the_rows_does_not_matter(rows: list[Instance]) -> None:
    assert partition(rows, params(), "x") == partition(rows[::-1], params(), "x")


def test_the_rows_own_splits_are_obeyed(make_instance) -> None:
    rows = [make_instance("a", repo="a/a", split="eval"), make_instance("b", repo="b/b", split="sft")]
    made = partition(rows, params(sft=1, rl=0, held_out=1), "x")
    assert [row.instance_id for row in made["eval"]] == ["a"] and [row.instance_id for row in made["sft"]] == ["b"]


def test_own_splits_that_share_a_repository_are_refused(make_instance) -> None:
    rows = [make_instance("a", repo="a/a", split="eval"), make_instance("b", repo="a/a", split="sft")]
    with pytest.raises(BadInput, match="a/a"):
        partition(rows, params(sft=1, rl=0, held_out=1), "x")


def test_too_few_repositories_are_said(make_instance) -> None:
    with pytest.raises(BadInput, match="sft"):
        partition([make_instance("a"), make_instance("b")], params(rl=0), "rows.jsonl")


def test_a_count_of_zero_wants_nothing(make_instance) -> None:
    made = partition([make_instance("a"), make_instance("b")], params(sft=0, rl=0, held_out=500), "x")
    assert {name: len(items) for name, items in made.items()} == {"eval": 2, "rl": 0, "sft": 0}
