"""Overlapping calls count once in the busy share, each in the number in flight."""

import pytest

from protege.train.busy import Busy


def test_overlapping_calls_count_once() -> None:
    now = [0.0]
    busy = Busy(lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    def outer() -> None:
        wait(1)
        busy.wrap(wait)(2)

    wait(1)
    busy.wrap(outer)()
    wait(4)
    assert busy.figures() == {"busy": 3 / 8, "in_flight": 5 / 8, "calls": 2, "seconds": 8.0}
    busy.restart()
    assert busy.figures() == {"busy": 0.0, "in_flight": 0.0, "calls": 0, "seconds": 0.0}


def test_a_call_that_fails_is_over() -> None:
    now = [0.0]
    busy = Busy(lambda: now[0])
    with pytest.raises(ZeroDivisionError):
        busy.wrap(lambda: 1 / 0)()
    now[0] = 5.0
    assert busy.figures()["busy"] == 0.0
