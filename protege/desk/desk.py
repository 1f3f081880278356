"""The desk suite, step by step: prepare a package, build a proved candidate into an instance, select, write.

The flow maps these over packages and candidates::

    prepared = prepare(package)                     # per package
    baseline = verify.gold(prepared, provider, params)
    found    = modifiers.candidates(package, prepared.tree, params, limit=allowance(params)[package.name])
    while batch := next_batch(found_by_package, results, params):                           # until there are enough
        results += [verify.verify(c, prepared, baseline, provider, params) for c in batch]  # per candidate, parallel
    chosen   = select(results, params)
    write_suite(chosen, results, {name: prepared}, target)
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from protege.config import InstancesParams, SplitName
from protege.core.instance import Instance
from protege.desk.modifiers import Candidate
from protege.desk.sources import CACHE_FOLDER, Package, fetch_sdists, unpack
from protege.desk.testbed import commit_tree, content_digest, git, make_testbed
from protege.desk.testfiles import remove_tests
from protege.desk.testrun import Prepared, setup_lines, test_command
from protege.desk.verify import Dropped, Verified
from protege.errors import BadInput, SandboxError
from protege.files import digest, write_atomic, write_json
from protege.sandbox.base import WORKDIR


def image_tag(package: str, digest_: str) -> str:
    return f"protege-desk-{package}:{digest_[:12]}"


def prepare(package: Package, cache: Path | str = CACHE_FOLDER, sdist: Path | None = None) -> Prepared:
    """Fetch (or take ``sdist``), unpack, and make the pristine testbed that verification starts from.

    Raises:
        BadInput: a hash is wrong or the sdist lacks what packages.yaml names.
    """
    cache = Path(cache)
    sdist = sdist or fetch_sdists([package], cache)[package.name]
    name = f"{package.name}-{package.version}-{package.sha256[:8]}"
    tree = cache / "trees" / name
    if not tree.exists():
        tree.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=tree.parent, prefix=f".{name}-"))
        try:
            os.replace(unpack(package, sdist, scratch / "tree"), tree)
        except OSError:
            if not tree.exists():  # else another process was first
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    paths = sorted(p for p in tree.rglob("*") if p.is_file())
    files = {p.relative_to(tree).as_posix(): p.read_bytes() for p in paths}
    executables = frozenset(p.relative_to(tree).as_posix() for p in paths if p.stat().st_mode & 0o100)
    testbeds = cache / "pristine"
    instance_id = f"{package.name}__{package.version}.pristine".lower()
    commit, found = make_testbed(files, executables, testbeds / f"{instance_id}.tar.gz")
    pristine = Instance(
        instance_id=instance_id, repo=package.repo, base_commit=commit, problem_statement="", patch="", test_patch="",
        FAIL_TO_PASS=(), PASS_TO_PASS=(), version=package.version, image=image_tag(f"pristine-{package.name}", found),
        eval_script="", log_parser="parse_log_pytest", package=package.name,
    )  # fmt: skip
    return Prepared(package, tree, files, executables, pristine, testbeds)


def build(verified: Verified, prepared: Prepared, testbeds: Path, split: str) -> Instance:
    """Write ``testbeds/<instance_id>.tar.gz`` and return the row. Deterministic in its arguments.

    Proves before returning that patch and test_patch apply to the testbed and give back the published files.

    Raises:
        SandboxError: they do not.
    """
    package = prepared.package
    removal = remove_tests(prepared.tests, verified.removed)
    agent = dict(prepared.files)
    agent[verified.path] = verified.buggy.encode()
    agent.update({path: text.encode() for path, text in removal.files.items()})
    commit, found = make_testbed(agent, prepared.executables, testbeds / f"{verified.candidate_id}.tar.gz")
    wanted = {path: prepared.files[path] for path in (verified.path, *removal.files)}
    gold, tests = _patches(agent, wanted, verified.path)
    return Instance(
        instance_id=verified.candidate_id,
        repo=package.repo,
        base_commit=commit,
        problem_statement=verified.problem_statement,
        patch=gold,
        test_patch=tests,
        FAIL_TO_PASS=verified.fail_to_pass,
        PASS_TO_PASS=verified.pass_to_pass,
        version=package.version,
        image=image_tag(package.name, found),
        eval_script=eval_script(package, commit, tests, sorted(removal.files)),
        log_parser="parse_log_pytest",
        eval_type="pass_and_fail",
        created_at="2026-01-01T00:00:00Z",
        hints_text="",
        split=split,
        package=package.name,
        source=package.version,
        modifier=verified.modifier,
        entity=verified.entity,
    )


def _patches(agent: dict[str, bytes], wanted: dict[str, bytes], buggy: str) -> tuple[str, str]:
    """(gold patch, test patch) as ``git diff`` writes them, checked by applying both."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "repo"
        for path in wanted:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(agent[path])
        commit_tree(root)
        # git's own Python driver, so that hunks name the function they are in; outside the repository
        (root / ".git" / "info").mkdir(exist_ok=True)
        (root / ".git" / "info" / "attributes").write_text("*.py diff=python\n")
        for path, data in wanted.items():
            (root / path).write_bytes(data)
        others = [path for path in wanted if path != buggy]
        gold = git(root, "diff", "--no-color", "--no-ext-diff", "--", buggy)
        tests = git(root, "diff", "--no-color", "--no-ext-diff", "--", *others) if others else ""
        for path in wanted:
            (root / path).write_bytes(agent[path])
        for patch in (tests, gold):
            if patch:
                git(root, "apply", "-", stdin=patch.encode("utf-8", "surrogateescape"))
        for path, data in wanted.items():
            if (root / path).read_bytes() != data:
                raise SandboxError(f"{buggy}: patch and test_patch do not give back the published {path}")
    return gold, tests


def eval_script(package: Package, base_commit: str, test_patch: str, test_files: list[str]) -> str:
    """The official shape: reset the test files, apply the test patch, run between the markers, reset again."""
    restore = f"git checkout {base_commit} {' '.join(test_files)}"
    mark = f"EOF_{int(hashlib.sha256(test_patch.encode('utf-8', 'surrogateescape')).hexdigest()[:10], 16)}"
    return "\n".join(
        [
            "#!/bin/bash",
            "set -uxo pipefail",
            *setup_lines(package),
            f"cd {WORKDIR}",
            f"git config --global --add safe.directory {WORKDIR}",
            restore,
            f"git apply -v - <<'{mark}'",
            test_patch.rstrip("\n"),
            mark,
            ": '>>>>> Start Test Output'",
            test_command(package),
            ": '>>>>> End Test Output'",
            restore,
            "",
        ]
    )


def shares(params: InstancesParams) -> dict[str, int]:
    """How many instances each package should give: its equal share of every split it is in."""
    wanted: Counter[str] = Counter()
    for split in params.splits.values():
        for package in split.packages:
            wanted[package] += -(-split.count // len(split.packages))
    return dict(wanted)


def allowance(params: InstancesParams) -> dict[str, int]:
    """How many candidates to make, and at most to verify, for each package."""
    return {package: int(count * params.tries_per_instance) + 1 for package, count in shares(params).items()}


class NotFilled(BadInput):
    """A split wants more instances than were proved in its ``packages``."""

    def __init__(self, split: SplitName, wanted: int, packages: tuple[str, ...], proved: int) -> None:
        self.packages = packages
        super().__init__(
            f"instances.splits.{split}: wants {wanted} instances of {', '.join(packages)}, but only {proved} were "
            "proved; raise instances.tries_per_instance or max_file_kb, add packages, or lower the count"
        )


def next_batch(
    found: Mapping[str, list[Candidate]],
    results: Iterable[Verified | Dropped],
    params: InstancesParams,
    before: Mapping[SplitName, list[Verified]] = MappingProxyType({}),
) -> list[Candidate]:
    """The candidates to verify next; empty when the splits can be filled, or when nothing is left to try.

    Packages below their share go on first; when all have it or are exhausted and a split still cannot be filled, its
    other packages make up for it. Deterministic in its arguments.
    """
    done = {r.candidate_id: r for r in results}
    kept = {item.candidate_id for items in before.values() for item in items}
    proved = Counter(r.package for r in done.values() if isinstance(r, Verified) and r.candidate_id not in kept)
    rest = {name: [c for c in items if c.candidate_id not in done] for name, items in found.items()}
    lacking = {name: max(0, share - proved[name]) for name, share in shares(params).items()}
    batch = [c for name, items in rest.items() for c in items[: 2 * lacking.get(name, 0)]]
    if batch:
        return batch
    try:
        select(done.values(), params, before)
    except NotFilled as short:
        return [c for name in short.packages for c in rest.get(name, [])[:4]]
    return []


def select(
    results: Iterable[Verified | Dropped],
    params: InstancesParams,
    before: Mapping[SplitName, list[Verified]] = MappingProxyType({}),
) -> dict[SplitName, list[Verified]]:
    """Fill the splits from what was proved: packages and modifiers in turn; no function in two splits.

    What was chosen ``before`` stays, and as many as the splits want are added to it. Deterministic in ``params.seed``,
    ``before`` and the set of results. Splits are filled eval first, then rl, then sft.

    Raises:
        NotFilled: a split cannot be filled; the message says how many there are, and what to change.
    """
    pool = sorted((r for r in results if isinstance(r, Verified)), key=lambda r: r.candidate_id)
    random.Random(digest("select", params.seed)).shuffle(pool)
    owner: dict[tuple[str, str, str], str] = {_function(r): name for name, items in before.items() for r in items}
    chosen: dict[SplitName, list[Verified]] = dict(before)
    taken = {r.candidate_id for items in before.values() for r in items}
    order: tuple[SplitName, ...] = ("eval", "rl", "sft")
    for name in (n for n in order if n in params.splits):
        split, used, picked = params.splits[name], Counter[str](), list[Verified]()
        free = [r for r in pool if r.package in split.packages and r.candidate_id not in taken]
        while len(picked) < split.count:
            open_ = [r for r in free if owner.get(_function(r), name) == name]
            if not open_:
                raise NotFilled(name, split.count, split.packages, len(picked))
            best = min(open_, key=lambda r: (used[r.package], used["/".join(_function(r))], used[r.modifier]))
            free.remove(best)
            picked.append(best)
            owner[_function(best)] = name
            used.update((best.package, "/".join(_function(best)), best.modifier))
        taken |= {r.candidate_id for r in picked}
        chosen[name] = sorted([*before.get(name, []), *picked], key=lambda r: r.candidate_id)
    return chosen


def _function(result: Verified) -> tuple[str, str, str]:
    return result.package, result.path, result.entity


def write_suite(
    chosen: Mapping[SplitName, list[Verified]],
    results: Iterable[Verified | Dropped],
    prepared: Mapping[str, Prepared],
    target: Path | str,
) -> dict[SplitName, list[Instance]]:
    """Write ``<target>/{sft,rl,eval}.jsonl``, ``testbeds/`` and ``suite.json``; returns the rows by split.

    Testbeds of an earlier run that are not part of this suite are removed.
    """
    target, results = Path(target), list(results)
    rows: dict[SplitName, list[Instance]] = {}
    for split, items in chosen.items():
        rows[split] = [build(item, prepared[item.package], target / "testbeds", split) for item in items]
        lines = "".join(json.dumps(row.to_row(), ensure_ascii=False) + "\n" for row in rows[split])
        write_atomic(target / f"{split}.jsonl", lines)
    kept = {row.instance_id for split_rows in rows.values() for row in split_rows}
    for stale in (target / "testbeds").glob("*.tar.gz"):
        if stale.name.removesuffix(".tar.gz") not in kept:
            stale.unlink()
    write_json(target / "suite.json", summary(chosen, results))
    return rows


def summary(chosen: Mapping[SplitName, list[Verified]], results: list[Verified | Dropped]) -> dict[str, Any]:
    """Counts for the report: candidates tried, proved and dropped by reason, in all and by package."""
    picked = [item for items in chosen.values() for item in items]

    def counts(part: list[Verified | Dropped]) -> dict[str, Any]:
        dropped = Counter(r.reason for r in part if isinstance(r, Dropped))
        proved = [r for r in part if isinstance(r, Verified)]
        return {
            "candidates": len(part),
            "proved": len(proved),
            "dropped": dict(sorted(dropped.items())),
            "flaky_ids_left_out": sum(r.flaky for r in proved),
        }

    names = sorted({r.package for r in results})
    return {
        **counts(results),
        "kept": len(picked),
        "splits": {split: len(items) for split, items in chosen.items()},
        "modifiers": dict(sorted(Counter(item.modifier for item in picked).items())),
        "mean_changed_lines": round(sum(item.changed_lines for item in picked) / len(picked), 2) if picked else 0.0,
        "packages": {
            name: {
                **counts([r for r in results if r.package == name]),
                "kept": sum(item.package == name for item in picked),
            }
            for name in names
        },
    }


def testbed_digest(path: Path) -> str:
    """Content digest of a testbed archive, as in its image's tag.

    Raises:
        BadInput: the archive is missing.
    """
    try:
        return content_digest(path.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(f"{path} is missing; `dvc pull` fetches it, `dvc repro instances` makes it") from error
