from __future__ import annotations

import pytest

from tasks import notify as module
from tasks.notify import notify
from tests.nightly.webhook import webhook


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)


def test_one_message_with_verdict_table_and_link(monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook() as hook:
        monkeypatch.setenv(module.URL, hook.url)
        assert notify("promoted", "| a |", "http://ui/runs/1", night="2026-11-22")
    (message,) = hook.messages
    assert message["text"] == "*promoted*\n\n| a |\n\nhttp://ui/runs/1"
    assert (message["verdict"], message["night"]) == ("promoted", "2026-11-22")


def test_a_webhook_that_stumbles_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook() as hook:
        hook.refuse = 2
        monkeypatch.setenv(module.URL, hook.url)
        assert notify("kept", "", "")
    assert hook.asked == 3 and len(hook.messages) == 1


def test_a_webhook_that_is_broken_or_misspelt_fails_nothing_and_stays_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with webhook() as hook:
        hook.refuse = 99
        monkeypatch.setenv(module.URL, hook.url)
        assert not notify("kept", "", "")
    assert hook.asked == 3
    for url in ("no address", "http://127.0.0.1:9/secret-path", "secret-path://x"):
        monkeypatch.setenv(module.URL, url)
        assert not notify("kept", "", "")
    said = capsys.readouterr().out
    assert "did not take the message" in said and "secret-path" not in said


def test_without_a_webhook_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(module.URL, raising=False)
    assert notify("kept", "", "")
