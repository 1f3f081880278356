"""A SWE-bench item, with exactly the official fields (SWE-bench 5.x rows)."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from protege.errors import BadRow
from protege.files import digest


class Instance(BaseModel):
    """One repository with one issue, the gold patch and the tests that decide.

    The fields up to ``eval_type`` are those of a SWE-bench 5.x row; whatever else a row carries
    (``hints_text``, ``image_assets``, our own ``split`` and ``package``) is kept in the model's extras
    and written back by :meth:`to_row`. ``FAIL_TO_PASS`` and ``PASS_TO_PASS`` may come as lists or as
    JSON strings (both exist in official files) and are lists of test ids here.

    ``patch``, ``test_patch``, ``FAIL_TO_PASS``, ``PASS_TO_PASS`` and ``eval_script`` are the secrets of an
    instance: no prompt and no sandbox that an agent can see may contain them (docs/architecture.md, rule 6).
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    instance_id: str
    repo: str
    base_commit: str
    problem_statement: str
    patch: str
    test_patch: str
    FAIL_TO_PASS: tuple[str, ...]
    PASS_TO_PASS: tuple[str, ...]
    version: str = ""
    image: str
    eval_script: str
    log_parser: str
    eval_type: str = "pass_and_fail"

    @field_validator("FAIL_TO_PASS", "PASS_TO_PASS", mode="before")
    @classmethod
    def _accept_json_strings(cls, value: Any) -> Any:
        try:
            found = json.loads(value) if isinstance(value, str) else value
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, list | tuple):
            raise ValueError("it should be a list of test ids, or a string of JSON that is one")
        return found

    @property
    def digest(self) -> str:
        """Content hash of the whole row; the same id with other content is another instance."""
        return digest(self.to_row())

    def to_row(self) -> dict[str, Any]:
        """The row as the official harness reads it (lists stay lists)."""
        return self.model_dump(mode="json")

    @classmethod
    def from_row(cls, row: dict[str, Any], where: str = "row") -> Instance:
        """Build from an official row.

        Raises:
            BadRow: a field is missing or of the wrong kind; the message names ``where`` and the field.
        """
        try:
            return cls.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "(row)"
            name = row.get("instance_id", "without an instance_id") if isinstance(row, dict) else "not an object"
            raise BadRow(
                f"{where} ({name}): field '{field}': {first['msg'].removeprefix('Value error, ')}; a SWE-bench 5.x row is needed"
            ) from error
