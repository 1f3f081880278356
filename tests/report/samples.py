"""A small folder of trajectories that has one of each kind, and one that is hostile in every field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protege.core.trajectory import ExpertCall, Failure, Identity, Trajectory, Turn
from protege.files import write_atomic
from tests.helpers import make_instance, make_trajectory, make_turn, make_verdict

INSTANCE = make_instance()
ORACLE = Identity(name="oracle", digest="o" * 64, kind="oracle", sees_gold=True)
MODEL = Identity(name="rl", digest="m" * 64, kind="served")
HOSTILE = (
    "</script><script>window.ran=1</script><img src=x onerror=window.ran=2><svg onload=window.ran=3>"
    "\"'><a href=javascript:window.ran=4>{{ 7 * 7 }}</style></pre></details><!-- \x1b[31m\x00\x07\x9b\u202e\u200b ]]>"
)
LITERAL = {"exit_status", "boundary", "role", "instance_id", "instance_digest", "trajectory_id"}


def turn(index: int, tool: str | None, **arguments: str) -> Turn:
    made = make_turn(index, tool, observation=f"line one of {index}\nline two", message=f"thought {index}", **arguments)
    return made.model_copy(update={"model_seconds": 1.5, "tool_seconds": 0.5, "prompt_tokens": 100 + index})


def trajectory(name: str, **changes: Any) -> Trajectory:
    return make_trajectory(
        changes.pop("turns", [turn(0, "bash", command="ls"), turn(1, "submit")]),
        changes.pop("calls", None),
        **{
            "trajectory_id": name,
            "instance_id": INSTANCE.instance_id,
            "instance_digest": INSTANCE.digest,
            "policy": MODEL,
            "sandbox_backend": "docker",
            "image_digest": "sha256:" + "a" * 64,
            "seconds": 12.5,
            **changes,
        },
    )


def looping() -> Trajectory:
    """12 times the same look, then a malformed message, a question, an edit, and two tests that do not pass."""
    turns = [turn(i, "bash", command=f"grep -n f{i} calc/core.py") for i in range(12)]
    turns += [turn(12, None), turn(13, "ask_expert", query="where is it?")]
    turns += [
        turn(14, "str_replace_editor", command="str_replace", path="/testbed/calc/core.py", old_str="+", new_str="*")
    ]
    call = ExpertCall(turn=13, query="where is it?", reply="look at the sign", warrant=0.9, follow=0.2, overlap_chars=4)
    verdict = make_verdict(False).model_copy(
        update={
            "fail_to_pass": (0, 1),
            "pass_to_pass": (1, 1),
            "failed_tests": ["t.py::a"],
            "log_tail": "E assert 8 == 2",
        }
    )
    patch = "--- a/calc/core.py\n+++ b/calc/core.py\n@@ -1 +1 @@\n-    result = first + second\n+    result = first * second\n"
    return trajectory(
        "loop.rl-oracle",
        turns=turns,
        calls=[call],
        expert=ORACLE,
        exit_status="step_limit",
        verdict=verdict,
        patch=patch,
    )


def lost() -> Trajectory:
    failure = Failure(boundary="sandbox", error="SandboxOutOfMemory", message="killed at 1024 MB", attempts=3)
    return trajectory("lost.rl-none", turns=[], messages=[], patch="", exit_status="infrastructure", failure=failure)


def hostile() -> Trajectory:
    """:func:`looping` with the hostile text in every field that holds free text."""

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        return value + HOSTILE if isinstance(value, str) and key not in LITERAL else value

    record = poison(looping().model_dump())
    for made in record["turns"]:  # names that decide how a turn is shown stay
        if made["call"]:
            made["call"]["name"] = made["call"]["name"].removesuffix(HOSTILE)
    record["turns"][0]["call"]["name"] = HOSTILE
    record["turns"][0]["call"]["arguments"] = {HOSTILE: HOSTILE}
    return Trajectory.model_validate(record | {"trajectory_id": HOSTILE, "verdict": record["verdict"]})


def folder(root: Path) -> Path:
    """``root/data`` as the stages leave it, with rows; returns it."""
    data = root / "data"
    write_atomic(data / "instances" / "eval.jsonl", INSTANCE.model_dump_json() + "\n")
    for system, made in (
        ("rl-oracle", looping()),
        ("rl-none", lost()),
        ("rl-none", trajectory("good.rl-none", verdict=make_verdict(True))),
        ("rl-none", trajectory("ungraded.rl-none")),
    ):
        made.save(data / "evaluation" / system / "trajectories")
    write_atomic(data / "evaluation" / "rl-none" / "trajectories" / "hostile.json", hostile().model_dump_json())
    return data
