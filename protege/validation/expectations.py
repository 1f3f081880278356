"""The expectation suites, and running them with Great Expectations into checks and Data Docs."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from protege.validation.docs import make_offline, write_index
from protege.validation.table import COLUMNS, EXERCISE_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

ALL, KEPT, EXERCISES = "all_trajectories", "kept_trajectories", "exercises"
SAMPLE = 20


class Check(BaseModel):
    """One expectation's outcome. ``rows`` are the trajectory ids that violate it (empty for table-wide ones)."""

    model_config = ConfigDict(extra="forbid")

    suite: str
    title: str
    expectation: str
    column: str = ""
    success: bool
    rows: list[str] = Field(default_factory=list)
    values: list[Any] = Field(default_factory=list)
    observed: str = ""


def suites(
    *, max_length: int, max_overlap_chars: int, max_malformed: int, min_kept: int, fits_share: float = 1.0
) -> dict[str, list[Any]]:
    """The expectations of both suites, in the order in which they are shown; ``notes`` holds each one's title."""
    import great_expectations.expectations as gxe

    def always(column: str, title: str, value: bool = True) -> Any:
        return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[value], notes=title)

    def at_most(column: str, title: str, limit: int = 0) -> Any:
        return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=0, max_value=limit, notes=title)

    overlap = f"no expert reply shares more than {max_overlap_chars} characters in a row with a changed gold line"
    everything = [
        gxe.ExpectTableColumnsToMatchSet(column_set=list(COLUMNS), exact_match=True, notes="the table has its columns"),
        *(
            gxe.ExpectColumnValuesToBeOfType(column=column, type_=kind, notes=f"{column} is {kind}")
            for column, kind in COLUMNS.items()
        ),
        gxe.ExpectColumnValuesToBeUnique(column="trajectory_id", notes="no trajectory id twice"),
        always("known_instance", "the instance is a row of the sft split, unchanged since the rollout"),
        always("held_out_instance", "no instance of the eval split", value=False),
        always("held_out_package", "no package of the eval split", value=False),
        always("failure_attributed", "an infrastructure failure names its boundary, and nothing else does"),
        always("linear", "the history is linear: turns numbered without a gap, nothing rewritten"),
        always("roles_alternate", "roles alternate: system, user, assistant, user, ..."),
        at_most("n_turns_unaccounted", "a turn is one tool call or is marked malformed"),
        at_most("n_unanswered", "every call is answered by an observation"),
        at_most("n_expert_unanswered", "every expert call is an ask_expert turn that got its reply"),
        at_most("n_leaked_lines", "no expert reply holds a whole added gold line"),
        at_most("max_overlap_chars", overlap, max_overlap_chars),
        always("verdict_matches", "a verdict is about this patch of this instance, and its test counts bear it out"),
    ]
    kept = [
        gxe.ExpectTableRowCountToBeBetween(min_value=min_kept, notes=f"at least {min_kept} trajectories kept"),
        always("resolved", "every kept one is resolved"),
        gxe.ExpectColumnValuesToBeInSet(
            column="exit_status", value_set=["submitted"], notes="every kept one submitted"
        ),
        gxe.ExpectColumnValuesToBeBetween(column="n_turns", min_value=1, notes="every kept one has a turn"),
        gxe.ExpectColumnValuesToBeUnique(column="content_hash", notes="no conversation twice"),
        at_most("n_malformed", f"at most {max_malformed} malformed messages", max_malformed),
        at_most("n_turns_with_several_calls", "one tool call a turn"),
        gxe.ExpectColumnValuesToBeBetween(
            column="n_tokens",
            min_value=1,
            max_value=max_length,
            mostly=fits_share,
            notes=f"fits in the context of {max_length} tokens" + (f" ({fits_share:.0%} of them)" * (fits_share < 1)),
        ),
    ]
    exercises = [
        gxe.ExpectTableColumnsToMatchSet(
            column_set=list(EXERCISE_COLUMNS), exact_match=True, notes="the table of exercises has its columns"
        ),
        gxe.ExpectColumnValuesToBeUnique(column="content_hash", notes="no exercise conversation twice"),
        always("held_out_package", "no exercise from a package of the eval split", value=False),
        always("roles_alternate", "exercises: roles alternate and end with the assistant"),
        at_most("n_turns_without_call", "exercises: one well-formed tool call a turn"),
        at_most("n_leaked_lines", "exercises: no advice holds a whole added gold line"),
        at_most("max_overlap_chars", f"exercises: {overlap}", max_overlap_chars),
        gxe.ExpectColumnValuesToBeBetween(
            column="n_tokens",
            min_value=1,
            max_value=max_length,
            mostly=fits_share,
            notes="exercises fit in the context",
        ),
    ]
    return {ALL: everything, KEPT: kept, EXERCISES: exercises}


def run_suites(frames: dict[str, pd.DataFrame], expectations: dict[str, list[Any]], docs_dir: Path) -> list[Check]:
    """Validate each frame by the suite of its name, write Data Docs that work offline to ``docs_dir``, return every check.

    The same frames give the same files: pages are named by the run's time, so it is always the same one.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.base import ProgressBarsConfig

    shutil.rmtree(docs_dir, ignore_errors=True)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for name in list(context.get_site_names()):
        context.delete_data_docs_site(name)
    context.add_data_docs_site(
        site_name="trajectories",
        site_config={
            "class_name": "SiteBuilder",
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(docs_dir.resolve()),
            },
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        },
    )
    source = context.data_sources.add_pandas("trajectories")
    run_id = RunIdentifier(run_time=datetime.fromtimestamp(0, UTC))
    checks: list[Check] = []
    for name, frame in frames.items():
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations[name]))
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(
                name=name,
                validation_definitions=[definition],
                result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["trajectory_id"]},
            )
        )
        outcome = checkpoint.run(batch_parameters={"dataframe": frame}, run_id=run_id)
        for run in outcome.run_results.values():
            order = {str(e.notes): i for i, e in enumerate(expectations[name])}
            found = [_check(name, result.to_json_dict()) for result in run.results]
            checks += sorted(found, key=lambda check: order.get(check.title, len(order)))
    context.build_data_docs()
    make_offline(docs_dir)
    write_index(docs_dir, checks)
    return checks


def _check(suite: str, result: dict[str, Any]) -> Check:
    config, details = result["expectation_config"], result.get("result") or {}
    column = str(config["kwargs"].get("column", ""))
    raised = result.get("exception_info") or {}
    message = raised.get("exception_message") or next(
        (str(info.get("exception_message")) for info in raised.values() if isinstance(info, dict)), ""
    )
    bad = details.get("unexpected_index_list") or []
    return Check(
        suite=suite,
        title=str(config.get("notes") or config["type"]),
        expectation=config["type"],
        column=column,
        success=bool(result["success"]),
        rows=list(dict.fromkeys(str(item["trajectory_id"]) for item in bad)),
        values=[item.get(column) for item in bad[:SAMPLE]],
        observed=str(details.get("observed_value", "")) or message,
    )
