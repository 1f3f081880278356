"""Exercises put together into conversations, and the file that holds them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from protege.config import ExercisesParams
from protege.desk.rehearse import Exercise, messages
from protege.errors import BadInput
from protege.files import write_atomic
from protege.train.renaming import renamed

OPENING = "Carry out what the expert advises in the repository /testbed, one advice after the other."


class Source(BaseModel):
    """What an exercise came from: kept so that its advice can be audited against its patch."""

    model_config = ConfigDict(extra="forbid")

    exercise_id: str
    package: str
    patch: str
    advice: str


class ExerciseRow(BaseModel):
    """One conversation: system, user, assistant, ..., assistant (the last edit)."""

    model_config = ConfigDict(extra="forbid")

    row_id: str
    sources: list[Source]
    messages: list[dict[str, str]]


def rows(exercises: Sequence[Exercise], params: ExercisesParams, system: str) -> list[ExerciseRow]:
    """``exercises`` shuffled, ``params.per_row`` to a conversation that opens with the agent's ``system`` prompt.

    An edit's own observation gives way to the next advice: nothing is said about it.
    """
    rng = random.Random(f"exercises:{params.seed}")
    order = list(exercises)
    rng.shuffle(order)
    made = []
    for start in range(0, len(order), params.per_row):
        part = order[start : start + params.per_row]
        chat = [{"role": "system", "content": system}]
        for index, exercise in enumerate(part):
            said = [{"role": m.role, "content": m.content} for m in messages(exercise)]
            if not index:
                said[0]["content"] = f"{OPENING}\n\n{said[0]['content']}"
            chat += said
        if rng.random() < params.renamed:
            chat = renamed(chat, rng)
        sources = [Source(exercise_id=e.exercise_id, package=e.package, patch=e.patch, advice=e.advice) for e in part]
        made.append(ExerciseRow(row_id=f"exercises-{start // params.per_row:04}", sources=sources, messages=chat))
    return made


def save_rows(path: Path | str, made: Sequence[ExerciseRow]) -> Path:
    """One row a line."""
    return write_atomic(path, "".join(json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in made))


def load_rows(path: Path | str) -> list[ExerciseRow]:
    """Raises BadInput, naming file and line, for a row that is none; [] where there is no file (no exercises asked for)."""
    path = Path(path)
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text().split("\n"), start=1):
        if line:
            try:
                found.append(ExerciseRow.model_validate_json(line))
            except ValidationError as error:
                wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
                raise BadInput(
                    f"{path}, line {number}: no exercise row: {wrong}; run the stage 'trajectories' again"
                ) from error
    return found
