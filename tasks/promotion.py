"""The champion: measured beside the night's model on the same instances, and replaced in one step."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from protege.config import NightlyParams, Params
from protege.errors import BadInput, BadParams
from protege.files import read_json, write_json
from protege.policy.model_folder import model_digest
from protege.report.metrics import System, compare, load_systems, score
from protege.report.promotion import BASE, Decision, Measured, Paired, decide
from protege.report.promotion import CHAMPION as RIVAL
from protege.report.provenance import CHAMPION, RECORD, file_hashes, provenance
from tasks import dvcstages
from tasks.child import run_child
from tasks.nights import KEPT, now
from tasks.progress import tell
from tasks.runs import stage_environment

FOLDER = Path("data/champion")
MODELS = Path("data/models")
EVALUATION = Path("data/evaluation")
LABEL = "champion"
OUT = Path("data/champion-evaluation")
"""Where the champion's evaluation goes: evaluation/ and metrics/, as in data/."""
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100


def champion_digest() -> str | None:
    """Digest of the champion's model, None without one. Raises BadInput if its files are not those promoted."""
    if not (FOLDER / CHAMPION).is_file():
        return None
    provenance(FOLDER)
    return str(read_json(FOLDER / CHAMPION)["model_digest"])


def check_params(params: Params) -> None:
    """Raises BadParams where the stage evaluate would not measure what the night has to compare."""
    p = params.nightly
    if p.model not in params.evaluate.models or p.expert not in params.evaluate.experts:
        raise BadParams(
            f"nightly.model {p.model!r} with nightly.expert {p.expert!r} is what the night compares, so it must be in "
            f"evaluate.models and evaluate.experts (now {list(params.evaluate.models)} and {list(params.evaluate.experts)})"
        )


def evaluate_champion(p: NightlyParams) -> System:
    """The champion on the night's eval instances: stage evaluate's own command with the champion's folder as ``p.model``.

    Units of work are shared with every other run through the Store. Raises StageFailed.
    """
    model = f"{p.model}={FOLDER / 'model'}"
    command = [
        *dvcstages.stage_command("evaluate"),
        "--model",
        model,
        "--as",
        LABEL,
        "--expert",
        p.expert,
        "--out",
        str(OUT),
    ]
    run_child("evaluate (champion)", command, stage_environment(), tell)
    return named(f"{LABEL}-{p.expert}", OUT / "evaluation")


def named(name: str, folder: Path) -> System:
    """The system ``name`` (``<model>-<expert>``) of an evaluation's folder. Raises BadInput."""
    if (found := _system(name, folder)) is None:
        others = ", ".join(system.name for system in load_systems(folder)) or "none"
        raise BadInput(f"{folder} holds no {name}; there are {others}; run `dvc repro evaluate`")
    return found


def _system(name: str, folder: Path) -> System | None:
    return next((system for system in load_systems(folder) if system.name == name), None)


def measured(system: System, digest: str, params: Params) -> Measured:
    """``system`` in numbers. Raises BadInput if its trajectories are of another model than ``digest``."""
    others = {t.policy.digest for t in system.trajectories} - {digest}
    if others:
        raise BadInput(
            f"{system.name}: the evaluation is of model {min(others)[:12]}, not {digest[:12]}; run `dvc repro evaluate`"
        )
    s = score(system, params.report)
    return Measured(digest, s.n, s.n_infra, s.pass_at_1, s.loop_share)


def judge(params: Params, champion: System | None, champion_is: str | None) -> tuple[Decision, dict[str, Any]]:
    """The decision, and what it rests on for the record. Raises BadInput if the two saw different instances.

    Without a champion the base model has to be beaten, where the night's stage evaluate measured it.
    """
    p = params.nightly
    candidate = named(f"{p.model}-{p.expert}", EVALUATION)
    new = measured(candidate, model_digest(MODELS / p.model), params)
    old, paired, against = None, None, RIVAL
    if champion_is is None and (base := _system(f"base-{p.expert}", EVALUATION)):
        champion, champion_is, against = base, model_digest(MODELS / "base"), BASE
    if champion_is is not None and champion is None:  # the same bytes: nothing to compare
        old = Measured(champion_is, new.n, new.n_infra, new.pass_at_1, new.loop_share)
    elif champion is not None and champion_is is not None:
        _same_instances(candidate, champion, against)
        old = measured(champion, champion_is, params)
        found = compare(champion, candidate, params.report)
        paired = Paired(found.n, found.difference, found.score_ci, found.p_value, params.report.confidence)
    decision = decide(new, old, paired, p, against)
    record = {
        "promote": decision.promote,
        "reasons": list(decision.reasons),
        "candidate": asdict(new),
        "champion": asdict(old) if old and against == RIVAL else None,
        "base": asdict(old) if old and against == BASE else None,
        "paired": asdict(paired) if paired else None,
    }
    return decision, record


def _same_instances(first: System, second: System, name: str) -> None:
    a, b = ({t.instance_id: t.instance_digest for t in s.trajectories} for s in (first, second))
    if a != b:
        differ = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        raise BadInput(f"the candidate and {name} were not evaluated on the same instances: {', '.join(differ[:5])}")


def promote(model: Path, night: str, record: dict[str, Any], folder: Path = FOLDER) -> None:
    """Make ``model`` the champion: one exchange of folders. Nothing is done if it already is.

    The champion says where it comes from by itself: files with hashes, chain, params, dvc.yaml and dvc.lock.
    """
    digest = model_digest(model)
    if (folder / CHAMPION).is_file() and read_json(folder / CHAMPION)["model_digest"] == digest:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*.new"):
        shutil.rmtree(stale, ignore_errors=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".new"))
    try:
        new.chmod(0o755)
        shutil.copytree(model, new / "model")
        write_json(new / RECORD, provenance(model))
        for name in KEPT:
            if Path(name).is_file():
                shutil.copyfile(name, new / name)
        write_json(
            new / CHAMPION,
            {"night": night, "promoted": now(), "model_digest": digest, **record, "files": file_hashes(new)},
        )
        if folder.exists():
            exchange(new, folder)
        else:
            Path(new).rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def exchange(first: Path, second: Path) -> None:
    """Swap two folders in one system call: whoever looks sees one or the other, whenever we are killed.

    Raises OSError where the file system cannot (all of Linux's usual ones can).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))


def track() -> None:
    """Let DVC know the champion (data/champion.dvc), so that push, pull and gc do. Raises NotTracked."""
    if not (FOLDER / CHAMPION).is_file():
        return
    dvcstages.add(FOLDER)


def page(night: str, decision: Decision, record: dict[str, Any]) -> str:
    """The night's verdict as Markdown, for the UI and the message."""
    return (
        f"# Night of {night}: {decision.headline}\n\n"
        + table(record)
        + "\n"
        + "".join(f"- {r}\n" for r in decision.reasons)
    )


def table(record: dict[str, Any]) -> str:
    """Candidate and champion side by side."""
    lines = ["| model | digest | Pass@1 | graded | infrastructure | loops |", "|---|---|---:|---:|---:|---:|"]
    for name in ("candidate", "champion", "base"):
        if m := record.get(name):
            shares = [f"{m[key]:.3f}" if m[key] is not None else "–" for key in ("pass_at_1", "loop_share")]
            lines.append(f"| {name} | {m['digest'][:12]} | {shares[0]} | {m['n']} | {m['n_infra']} | {shares[1]} |")
    return "\n".join(lines) + "\n"
