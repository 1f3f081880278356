"""What a start of ``make serve`` finds on its server, and leaves as it is."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from infra.serve import FILE, deployments, keep_paused
from tests.nightly.project import ask

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("how", ["schedule", "deployment", "changed schedule"])
def test_what_people_have_paused_stays_paused(server: str, tmp_path: Path, how: str) -> None:
    name = f"night-{uuid.uuid4()}"
    file = tmp_path / "prefect.yaml"
    text = FILE.read_text(encoding="utf-8").replace("- name: nightly", f"- name: {name}")
    file.write_text(text, encoding="utf-8")
    address = f"{server}/deployments/name/nightly/{name}"

    def serve_again() -> list[str]:
        """As the runner does it: what is served is made on the server anew."""
        made = deployments(file=file)
        kept = keep_paused(made)
        made[0].apply()
        return kept

    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        assert serve_again() == [] and serve_again() == []
        before = ask(address)
        assert not before["paused"] and before["schedules"][0]["active"]
        if how == "deployment":
            client.request("POST", "/deployments/{id}/pause_deployment", path_params={"id": before["id"]})
        else:  # the switch in the UI, and `prefect deployment schedule pause`
            ids = {"id": before["id"], "schedule_id": before["schedules"][0]["id"]}
            client.request(
                "PATCH", "/deployments/{id}/schedules/{schedule_id}", path_params=ids, json={"active": False}
            )
        if how == "changed schedule":
            file.write_text(text.replace("0 2 * * *", "0 3 * * *"), encoding="utf-8")
        for _ in range(2):
            assert serve_again() == [f"nightly/{name}"]
            after = ask(address)
            assert after["paused"] == (how == "deployment")
            assert after["schedules"][0]["active"] == (how == "deployment")
        client.request("DELETE", "/deployments/{id}", path_params={"id": before["id"]})
