"""One exercise: the oracle's full advice about a bug, and the teacher carrying it out with the agent's own editor."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from protege.agent.tools import OBSERVATION_PREFIX, Toolbox, parse_call, truncate
from protege.config import LEVELS, OracleParams
from protege.core.instance import Instance
from protege.core.markers import EXPERT_CLOSE, EXPERT_OPEN, defuse
from protege.core.patches import changes
from protege.core.trajectory import Message
from protege.desk.modifiers import Candidate
from protege.desk.teacher import TeacherSession
from protege.expert import verbalise
from protege.expert.oracle import OracleExpert
from protege.expert.spoken import is_complete
from protege.sandbox.base import WORKDIR, ExecResult

VIEW_LINES = 8
"""Fewer than in a trajectory: the advice names the line, and every line read is paid for in training."""

Function = tuple[str, str, str]
"""Package, path and qualified name of a function."""


@dataclass(frozen=True)
class Exercise:
    """``advice`` as the expert gives it, and ``said``: (assistant message, observation) pairs up to the edit's own."""

    exercise_id: str
    package: str
    patch: str
    advice: str
    said: tuple[tuple[str, str], ...]


def bugs(found: Mapping[str, Sequence[Candidate]], away: Collection[Function], count: int) -> Iterator[Candidate]:
    """At most ``count`` of the candidates ``found`` by package, packages in turn, none in a function of ``away``."""
    queues = [iter(items) for _, items in sorted(found.items())]
    while queues and count > 0:
        for queue in list(queues):
            candidate = next((c for c in queue if (c.package, c.path, c.entity) not in away), None)
            if candidate is None:
                queues.remove(queue)
            elif count > 0:
                count -= 1
                yield candidate


def rehearse(candidate: Candidate, max_overlap_chars: int, observation_chars: int, seed: int) -> Exercise | None:
    """The exercise that ``candidate`` makes; None where words cannot say the whole change without quoting it, or where
    the teacher's edit does not give the original code back."""
    instance = _instance(candidate)
    expert = OracleExpert(OracleParams(first_level=LEVELS - 1, max_overlap_chars=max_overlap_chars))
    advice = expert.reply(instance, "", [], 0).text
    told = [verbalise.fix(c.removed, c.added) for c in changes(instance.patch)]
    if not told or not all(words in advice and is_complete(words) for words in told):
        return None
    file = _File(f"{WORKDIR}/{candidate.path}", candidate.buggy)
    toolbox = Toolbox(file, command_timeout=1.0)
    script = TeacherSession(instance, seed).carry_out(f"{EXPERT_OPEN}\n{advice}\n{EXPERT_CLOSE}", VIEW_LINES)
    said: list[tuple[str, str]] = []
    try:
        text = next(script)
        while True:
            observation = defuse(truncate(toolbox.run(parse_call(text), 1.0).observation, observation_chars)[0])
            said.append((text, observation))
            text = script.send(observation)
    except StopIteration:
        pass
    if ast.dump(ast.parse(file.text)) != ast.dump(ast.parse(candidate.original)):
        return None
    return Exercise(candidate.candidate_id, candidate.package, instance.patch, advice, tuple(said))


def messages(exercise: Exercise) -> list[Message]:
    """From the advice to the edit: user and assistant in turn."""
    chat = [Message(role="user", content=f"{OBSERVATION_PREFIX}{EXPERT_OPEN}\n{exercise.advice}\n{EXPERT_CLOSE}")]
    for text, observation in exercise.said:
        chat.append(Message(role="assistant", content=text))
        chat.append(Message(role="user", content=OBSERVATION_PREFIX + observation))
    return chat[:-1]


def _instance(candidate: Candidate) -> Instance:
    """What oracle and teacher read of an instance; there are no tests, because nothing is graded."""
    return Instance.model_validate(
        {
            "instance_id": candidate.candidate_id,
            "repo": candidate.package,
            "base_commit": "",
            "problem_statement": "",
            "patch": candidate.patch,
            "test_patch": "",
            "FAIL_TO_PASS": (),
            "PASS_TO_PASS": (),
            "image": "",
            "eval_script": "",
            "log_parser": "",
            "entity": candidate.entity,
        }
    )


class _File:
    """A sandbox of one file, for the editor: nothing else of one is asked for."""

    id, backend, workdir, image_digest = "exercise", "memory", WORKDIR, ""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text

    def read(self, path: str) -> bytes:
        if path != self.path:
            raise FileNotFoundError(path)
        return self.text.encode()

    def write(self, path: str, data: bytes) -> None:
        if path != self.path:
            raise FileNotFoundError(path)
        self.text = data.decode()

    def exec(
        self,
        command: str,
        *,
        timeout: float | None = None,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
    ) -> ExecResult:
        raise NotImplementedError("an exercise runs no command")

    def diff(self) -> str:
        raise NotImplementedError("an exercise has no diff")

    def live_for(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exc: object) -> None:
        pass
