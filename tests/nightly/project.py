"""A folder that is a project: git, DVC, params.yaml of profile tiny, and the small pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.helpers import hear_interrupts, read_settings, write_settings
from tests.nightly.small import PIPELINE

ROOT = Path(__file__).parents[2]
SETTINGS = {
    # here a worse model must not be promoted, which profile tiny does
    "nightly": {"model": "rl", "expert": "none", "retries": 1, "backoff_s": 0.1, "keep_days": 0, "margin": 0.05},
    "evaluate": {"models": ["rl"], "experts": ["none"]},
    "sandbox": {"backend": "bubblewrap"},
}


class Project:
    def __init__(self, folder: Path, pipeline: str = PIPELINE) -> None:
        import yaml

        self.folder, self.log = folder, folder / "done.log"
        raw = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text())
        for section, values in SETTINGS.items():
            raw.setdefault(section, {}).update(values)
        (folder / "dvc.yaml").write_text(pipeline)
        write_settings(folder, raw)
        (folder / ".gitignore").write_text(
            "/data/*\n!/data/champion.dvc\n.cache/\n/machine.yaml\n/done.log\n/hold\n/break\n/lose\n"
        )
        self.env = {
            k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "PROTEGE_", "AWS_", "DVC_"))
        } | {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "SHELL": "/bin/sh",  # as for a service; bash would put the stage in its own place, as DVC's child
            "SMALL_LOG": str(self.log),
        }
        for command in (
            "git init -q .",
            "dvc init -q",
            "dvc config core.analytics false",
            "git add -A",
            "git -c user.name=t -c user.email=t@t commit -qm start",
        ):
            subprocess.run(command.split(), cwd=folder, env=self.env, check=True, timeout=60)

    def set(self, section: str, **values: object) -> None:
        raw = read_settings(self.folder)
        raw.setdefault(section, {}).update(values)
        write_settings(self.folder, raw)

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=hear_interrupts,
        )

    def run(self, *command: str, status: int = 0, timeout: float = 600, **env: str) -> str:
        process = self.start(*command, **env)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == status, output
        return output

    def done(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())


def ask(url: str, body: dict[str, object] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)
