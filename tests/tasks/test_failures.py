from __future__ import annotations

import pickle

from prefect.states import Failed

from protege.errors import BadRow, ExpertError, GradingError, ProtegeError, SandboxDied, SandboxUnavailable
from tasks.failures import Circumstances, failure_markdown, slug, worth_retrying


def outcome(error: BaseException) -> bool:
    return worth_retrying(None, None, Failed(data=error))


def test_only_infrastructure_that_a_retry_can_help_is_retried() -> None:
    assert outcome(SandboxDied("gone"))
    assert outcome(ExpertError("no answer"))
    assert not outcome(SandboxUnavailable("no engine"))
    assert not outcome(BadRow("rows.jsonl, line 3: ..."))
    assert not outcome(ZeroDivisionError("our own defect"))


def test_the_page_says_what_where_and_what_next() -> None:
    error = SandboxDied("the container vanished")
    first = failure_markdown("toolz-1", error, attempt=1, retries=2)
    assert "the container vanished" in first
    assert "boundary: **sandbox**" in first
    assert "attempt 1 of 3; it is tried again" in first
    assert "masked" in failure_markdown("toolz-1", error, attempt=3, retries=2)
    assert "masked" in failure_markdown("toolz-1", SandboxUnavailable("none"), attempt=1, retries=2)
    assert "only a person" in failure_markdown("toolz-1", BadRow("x"), attempt=1, retries=2)


def test_the_page_carries_the_end_of_the_log() -> None:
    error = ProtegeError("x")
    error.__cause__ = OSError("a" * 5000 + "THE END ``` of it")
    text = failure_markdown("u", error, 1, 0)
    assert "THE END ''' of it" in text and len(text) < 4000


def test_the_page_says_which_image_which_patch_and_how_to_see_it_again() -> None:
    at = Circumstances("toolz-1", "sha256:12ab", "+a fix ``` of it")
    text = failure_markdown(
        "toolz-1.rl-none", GradingError("the container died", log_tail="E  assert 1 == 2"), 1, 2, at
    )
    assert "instance `toolz-1` in image `sha256:12ab`" in text
    assert "`protege inspect toolz-1.rl-none --replay`" in text
    assert "E  assert 1 == 2" in text
    assert "```diff\n+a fix ''' of it\n```" in text


def test_a_grading_error_crosses_to_another_process_whole() -> None:
    error = pickle.loads(pickle.dumps(GradingError("it died", log_tail="the end")))
    assert (str(error), error.log_tail) == ("it died", "the end")


def test_artifact_keys_are_what_prefect_accepts() -> None:
    assert slug("Toolz__dicttoolz-3.base/none") == "toolz-dicttoolz-3-base-none"
