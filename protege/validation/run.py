"""Validate the trajectories of the SFT split and, when everything holds, write the SFT dataset."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pydantic
from pydantic import BaseModel, ConfigDict

from protege.config import ValidateParams
from protege.core.instance import Instance
from protege.core.trajectory import Trajectory
from protege.desk.conversation import ExerciseRow, load_rows
from protege.errors import BadInput, BadRow, ValidationFailed
from protege.files import write_atomic, write_json
from protege.validation.docs import markdown
from protege.validation.expectations import ALL, EXERCISES, KEPT, SAMPLE, Check, run_suites, suites
from protege.validation.table import CountTokens, conversation, exercise_table, flatten, is_kept


class ValidationResult(BaseModel):
    """What validation found and where it wrote it. ``metrics`` are flat numbers for ``dvc metrics show``."""

    model_config = ConfigDict(extra="forbid")

    success: bool
    checks: list[Check]
    metrics: dict[str, float]
    docs: Path
    markdown: Path
    dataset: Path | None = None

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.success]


def validate(
    trajectory_dir: Path | str,
    instances_dir: Path | str,
    out_dir: Path | str,
    train_path: Path | str,
    params: ValidateParams,
    count_tokens: CountTokens,
    max_length: int,
    exercises_path: Path | str | None = None,
) -> ValidationResult:
    """Check every trajectory in ``trajectory_dir`` and write the kept ones, and the edit exercises, as the SFT dataset.

    Args:
        trajectory_dir: folder of Trajectory JSON files (``data/trajectories/sft``).
        instances_dir: folder with ``sft.jsonl`` (what may be trained on) and ``eval.jsonl`` (what must not be).
        out_dir: gets ``result.json``, ``validation.md`` and ``docs/index.html`` (Data Docs, usable offline).
        train_path: the Parquet file; columns instance_id, trajectory_id, messages (list of {role, content}).
        count_tokens: length of a conversation in tokens; see :func:`token_counter`.
        max_length: the SFT stage's context, in tokens.
        exercises_path: edit exercises (protege/desk), which become rows with an empty instance_id; there may be none.

    Raises:
        ValidationFailed: an expectation is violated; the message names it and the trajectories. ``out_dir`` is
            complete by then and ``train_path`` does not exist.
        BadInput: a folder or file is missing or unreadable.
    """
    out_dir, train_path = Path(out_dir), Path(train_path)
    trajectories = _load(Path(trajectory_dir))
    known = {row.instance_id: row for row in _rows(Path(instances_dir) / "sft.jsonl")}
    held_out = _rows(Path(instances_dir) / "eval.jsonl")
    train_path.unlink(missing_ok=True)

    table = flatten(trajectories, known, count_tokens, held_out)
    expectations = suites(
        max_length=max_length,
        max_overlap_chars=params.max_overlap_chars,
        max_malformed=params.max_malformed,
        fits_share=params.fits_share,
        min_kept=params.min_kept,
    )
    practice = load_rows(exercises_path) if exercises_path else []
    frames = {ALL: table, KEPT: table[table["kept"]].reset_index(drop=True)}
    if practice:
        frames[EXERCISES] = exercise_table(practice, held_out, count_tokens)
    checks = run_suites(frames, expectations, out_dir / "docs")
    kept = [trajectory for trajectory in trajectories if is_kept(trajectory)]
    metrics = _metrics(trajectories, {row["trajectory_id"]: row["n_tokens"] for row in table.to_dict("records")})
    metrics["exercises"] = sum(len(row.sources) for row in practice)
    metrics["expectations"], metrics["violations"] = len(checks), sum(not check.success for check in checks)
    result = ValidationResult(
        success=all(check.success for check in checks),
        checks=checks,
        metrics=metrics,
        docs=out_dir / "docs" / "index.html",
        markdown=write_atomic(out_dir / "validation.md", markdown(checks, metrics)),
    )
    if result.success:
        result.dataset = _write_dataset(kept, practice, train_path)
    write_json(out_dir / "result.json", json.loads(result.model_dump_json(exclude={"docs", "markdown", "dataset"})))
    if not result.success:
        raise ValidationFailed(_complaint(result))
    return result


def token_counter(model_dir: Path | str) -> CountTokens:
    """Count tokens as the chat template and tokenizer of the model in ``model_dir`` do."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model_dir))

    def count(messages: list[dict[str, str]]) -> int:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def _load(folder: Path) -> list[Trajectory]:
    if not folder.is_dir():
        raise BadInput(f"no folder of trajectories at {folder}: run the stage 'trajectories' first")
    loaded = []
    for path in sorted(folder.glob("*.json")):
        try:
            loaded.append(Trajectory.load(path))
        except (pydantic.ValidationError, UnicodeDecodeError) as error:
            raise BadInput(f"{path} is no trajectory record: {error}; delete it and run its stage again") from error
    return loaded


def _rows(path: Path) -> list[Instance]:
    if not path.is_file():
        raise BadInput(f"no instances at {path}: run the stage 'instances' first")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                rows.append(Instance.from_row(json.loads(line), where=f"{path}, line {number}"))
            except json.JSONDecodeError as error:
                raise BadRow(f"{path}, line {number}: not JSON: {error}") from error
    return rows


def _metrics(trajectories: Sequence[Trajectory], lengths: dict[str, int]) -> dict[str, float]:
    kept = [trajectory for trajectory in trajectories if is_kept(trajectory)]
    tokens = [int(lengths[trajectory.trajectory_id]) for trajectory in kept]
    calls = [sum(call.answered for call in trajectory.expert_calls) for trajectory in kept]
    metrics: dict[str, float] = {
        "n": len(trajectories),
        "kept": len(kept),
        "instances": len({trajectory.instance_id for trajectory in trajectories}),
        "instances_kept": len({trajectory.instance_id for trajectory in kept}),
    }
    for status in sorted({trajectory.exit_status for trajectory in trajectories}):
        metrics[f"exit_{status}"] = sum(trajectory.exit_status == status for trajectory in trajectories)
    metrics["kept_turns_mean"] = _mean([len(trajectory.turns) for trajectory in kept])
    metrics["kept_expert_calls_mean"] = _mean(calls)
    metrics["kept_without_expert"] = sum(call == 0 for call in calls)
    metrics["malformed_turns"] = sum(turn.malformed for trajectory in trajectories for turn in trajectory.turns)
    metrics["kept_tokens_mean"] = _mean(tokens)
    metrics["kept_tokens_max"] = max(tokens, default=0)
    return metrics


def _mean(values: Sequence[int]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0


def _write_dataset(kept: Sequence[Trajectory], practice: Sequence[ExerciseRow], path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("instance_id", pa.string()), ("trajectory_id", pa.string()), ("messages", pa.list_(message))])
    rows = [{"instance_id": t.instance_id, "trajectory_id": t.trajectory_id, "messages": conversation(t)} for t in kept]
    rows += [{"instance_id": "", "trajectory_id": row.row_id, "messages": row.messages} for row in practice]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return write_atomic(path, buffer.getvalue())


def _complaint(result: ValidationResult) -> str:
    parts = []
    for check in result.failed:
        more = f" and {len(check.rows) - SAMPLE} more" if len(check.rows) > SAMPLE else ""
        named = ", ".join(check.rows[:SAMPLE]) + more if check.rows else f"observed {check.observed or 'nothing'}"
        parts.append(f"'{check.title}' ({check.column or 'table'}): {named}")
    return (
        f"{len(result.failed)} of {len(result.checks)} expectations violated: {'; '.join(parts)}. "
        f"See {result.markdown} and {result.docs}, then fix or delete the named trajectories"
    )
