"""The keys of one unit of each kind, before and after each of the changes on standard input (test_identity.py).

Run in a copy of the checkout, which it changes. A change is [file, old text, new text] or [distribution, version].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flows.rl import Rollouts
from protege import identity
from protege.config import AgentParams, SandboxParams, load
from protege.core.trajectory import Identity
from protege.desk.teacher import ScriptedTeacher
from protege.expert.judge import HeuristicJudge
from protege.expert.oracle import OracleExpert
from protege.files import digest
from protege.grading.preflight import preflight_key
from protege.identity import code_of
from protege.sandbox.bubblewrap import BubblewrapProvider
from tasks.keys import grade_key, rollout_key
from tasks.serving import Serving
from tasks.units import Bench
from tests.helpers import make_instance

CACHED = (
    identity._code_of,
    identity.version_of,
    identity._tree,
    identity._content,
    identity._names,
    identity._data_files,
)
GIVEN = {
    "image_digest": "sha256:1",
    "agent": AgentParams(),
    "sandbox": SandboxParams(),
    "backend": "bubblewrap",
    "seed": 1,
}


def units() -> dict[str, str]:
    for cached in CACHED:
        cached.cache_clear()
    instance, params = make_instance(), load("params.yaml")
    provider = BubblewrapProvider(SandboxParams(), Path())
    provider.image_digest = lambda instance: "sha256:1"  # type: ignore[method-assign]
    serving = Serving(Path(), params, workers=1, seed=0, progress=print)
    teacher, served = ScriptedTeacher().identity, Identity(name="base", digest="d", kind="served")
    bench = Bench(provider, AgentParams(), SandboxParams(), retries=0)
    own = serving.deciding(0.0)
    return {
        "teacher's rollout": rollout_key(instance, policy=teacher, expert=OracleExpert().identity, judge=None, **GIVEN),  # type: ignore[arg-type]
        "served rollout": rollout_key(instance, policy=served, expert=None, judge=None, extra=own, **GIVEN),  # type: ignore[arg-type]
        "verdict": grade_key(instance, "p", "sha256:1", SandboxParams(), "bubblewrap"),
        "scores": HeuristicJudge().identity.digest,
        "preflight": preflight_key(instance, provider, 1),
        "candidate": code_of("protege.desk.verify", "protege.desk.modifiers", "protege.sandbox.bubblewrap"),
        "exercises": code_of("protege.desk.rehearse", "protege.desk.side_by_side"),
        "sft": code_of("protege.train.sft"),
        "rl": digest(code_of("protege.train.grpo"), Rollouts(params, bench, {"i": instance}, serving).identity()),
    }


def after(change: list[str]) -> dict[str, str]:
    if len(change) == 2:
        real = identity.metadata.version
        identity.metadata.version = lambda name: change[1] if name == change[0] else real(name)  # type: ignore[assignment]
        try:
            return units()
        finally:
            identity.metadata.version = real
    path = Path(change[0])
    text = path.read_text(encoding="utf-8")
    assert change[1] in text, change
    path.write_text(text.replace(change[1], change[2], 1) if change[1] else change[2] + text, encoding="utf-8")
    try:
        return units()
    finally:
        path.write_text(text, encoding="utf-8")


assert Path(identity.__file__).is_relative_to(Path.cwd()), "the keys are those of this folder"
before = units()
assert units() == before
changed = [after(change) for change in json.load(sys.stdin)]
print(json.dumps([[name for name in before if before[name] != keys[name]] for keys in changed]))
