"""One message to a webhook: verdict, table, link. It never fails what it tells about."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from typing import Any

from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

from tasks.progress import say
from tasks.server import ui

URL = "PROTEGE_WEBHOOK_URL"
"""Environment variable: where to POST; it may hold a secret, so it is never printed."""
TRIES, TIMEOUT_S, PAUSE_S = 3, 10.0, 1.0


def link(flow_run_id: str) -> str:
    """The page of a flow run in the UI that people reach (PREFECT_UI_URL, else beside the API)."""
    base = PREFECT_UI_URL.value() or ui(str(PREFECT_API_URL.value()))
    return f"{str(base).rstrip('/')}/runs/flow-run/{flow_run_id}"


def notify(verdict: str, table: str, address: str, **fields: Any) -> bool:
    """POST ``{"text": …, "verdict": …, "table": …, "link": …, **fields}``; ``text`` is what Slack, Mattermost and others show.

    True when it was taken, or where no webhook is set; three tries, never an exception.
    """
    target = os.environ.get(URL)
    if not target:
        return True
    text = "\n\n".join(part for part in (f"*{verdict}*", table, address) if part)
    body = json.dumps({"text": text, "verdict": verdict, "table": table, "link": address, **fields}).encode()
    why = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            request = urllib.request.Request(target, body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                if answer.status < 300:
                    return True
                why = f"status {answer.status}"
        except Exception as error:  # whatever it is, the night is worth more than the message
            why = type(error).__name__ + (f" {code}" if (code := getattr(error, "code", "")) else "")
    say("nightly", f"the webhook did not take the message ({why}, {TRIES} tries); the night goes on")
    return False
