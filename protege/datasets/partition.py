"""Rows of a foreign source into the splits sft, rl and eval; eval shares no repository with the others."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from protege.config import InstancesParams, SplitName
from protege.core.instance import Instance
from protege.errors import BadInput
from protege.files import digest

ORDER: tuple[SplitName, ...] = ("eval", "rl", "sft")


def partition(rows: Sequence[Instance], params: InstancesParams, source: str) -> dict[SplitName, list[Instance]]:
    """At most ``count`` rows for each split. A row's own ``split`` field is obeyed; the others are dealt out by repository.

    Deterministic in ``params.seed`` and the set of rows: whole repositories go to eval until it is full, the rest of the
    repositories feed rl, then sft. Every row comes back with its ``split``.

    Raises:
        BadInput: a split that wants rows gets none, or eval shares a repository with another split.
    """
    chosen: dict[SplitName, list[Instance]] = {name: [] for name in ORDER}
    open_rows: dict[str, list[Instance]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: r.instance_id):
        said = (row.model_extra or {}).get("split")
        if said in chosen:
            chosen[said].append(row)
        else:
            open_rows[row.repo].append(row)
    want = {name: params.splits[name].count if name in params.splits else 0 for name in ORDER}
    repos = sorted(open_rows)
    random.Random(digest("partition", params.seed)).shuffle(repos)
    trained = {row.repo for name in ("rl", "sft") for row in chosen[name]}
    for repo in [r for r in repos if r not in trained]:
        if len(chosen["eval"]) < want["eval"]:
            chosen["eval"] += open_rows.pop(repo)
    held_out = {row.repo for row in chosen["eval"]}
    rest = [row for repo in repos if repo in open_rows and repo not in held_out for row in open_rows[repo]]
    random.Random(digest("partition rows", params.seed)).shuffle(rest)
    for name in ("rl", "sft"):
        room = max(0, want[name] - len(chosen[name]))
        chosen[name] += rest[:room]
        rest = rest[room:]
    made = {name: _labelled(chosen[name][: want[name]], name) for name in ORDER}
    if empty := [name for name in ORDER if want[name] and not made[name]]:
        raise BadInput(
            f"instances.source {source}: {len(rows)} rows of {len({r.repo for r in rows})} repositories leave nothing for "
            f"{', '.join(empty)}; eval needs repositories of its own: give more rows, or a field 'split' in each, or set the count to 0"
        )
    shared = {r.repo for r in made["eval"]} & {r.repo for name in ("rl", "sft") for r in made[name]}
    if shared:
        raise BadInput(
            f"instances.source {source}: the rows' own splits put {sorted(shared)} into eval and into training; separate them"
        )
    return made


def _labelled(rows: list[Instance], split: str) -> list[Instance]:
    return [Instance.from_row({**row.to_row(), "split": split}) for row in rows]
