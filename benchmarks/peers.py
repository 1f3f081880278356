"""Ours and the peers behind one small interface: open, run one shell command in /testbed, close.

Each peer is the real thing, used as its own documentation or configuration says. Nothing here is timed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import subprocess
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from benchmarks.lab import PARAMS, Lab
from protege.sandbox.bubblewrap import BubblewrapProvider, problem
from protege.sandbox.docker import DockerProvider


class Box(Protocol):
    """One open sandbox of a peer."""

    def run(self, command: str) -> tuple[int, str]:
        """Exit status and output."""
        ...

    def close(self) -> None: ...


class Ours:
    """A sandbox from one of our providers, or from a pool above it."""

    def __init__(self, opener: Any, lab: Lab) -> None:
        self.sandbox = opener.open(lab.tiny.instance)

    def run(self, command: str) -> tuple[int, str]:
        result = self.sandbox.exec(command)
        return result.exit_code, result.output

    def close(self) -> None:
        self.sandbox.close()


class DockerCli:
    """``docker exec`` by subprocess, which is what most harnesses do."""

    def __init__(self, lab: Lab) -> None:
        self.name = f"bench-cli-{uuid.uuid4().hex[:8]}"
        start = ["docker", "run", "-d", "--rm", "--network", "none", *lab.labels, "--name", self.name]
        subprocess.run([*start, lab.image, "sleep", "3600"], check=True, capture_output=True, timeout=120)

    def run(self, command: str) -> tuple[int, str]:
        argv = ["docker", "exec", "-w", "/testbed", self.name, "bash", "-c", command]
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=120
        )
        return done.returncode, done.stdout

    def close(self) -> None:
        subprocess.run(["docker", "rm", "-f", self.name], capture_output=True, timeout=60)


class DockerSdk:
    """``Container.exec_run`` of the Docker SDK for Python."""

    def __init__(self, lab: Lab) -> None:
        key, _, value = lab.label.partition("=")
        self.container = lab.client.containers.run(
            lab.image, ["sleep", "3600"], detach=True, network_mode="none", labels={key: value}
        )

    def run(self, command: str) -> tuple[int, str]:
        code, output = self.container.exec_run(["bash", "-c", command], workdir="/testbed")
        return code, output.decode(errors="replace")

    def close(self) -> None:
        self.container.remove(force=True)


class MiniSweAgent:
    """mini-swe-agent's DockerEnvironment with the environment section of its own SWE-bench configuration.

    Without a network, as ours, which makes its start faster than its default.
    """

    def __init__(self, lab: Lab) -> None:
        os.environ["MSWEA_SILENT_STARTUP"] = "1"
        os.environ.setdefault("MSWEA_GLOBAL_CONFIG_DIR", str(lab.folder / "mini"))
        import minisweagent
        import yaml
        from minisweagent.environments.docker import DockerEnvironment

        logging.getLogger("minisweagent").setLevel(logging.WARNING)
        shipped = minisweagent.package_dir / "config" / "benchmarks" / "swebench.yaml"
        config = yaml.safe_load(shipped.read_text())["environment"]
        config.pop("environment_class")
        self.environment = DockerEnvironment(
            image=lab.image, run_args=["--rm", "--network", "none", *lab.labels], **config
        )

    def run(self, command: str) -> tuple[int, str]:
        answer = self.environment.execute({"command": command})
        return answer["returncode"], answer["output"]

    def close(self) -> None:
        # it removes the container in the background and does not wait; its __del__ must not do it once more
        self.environment.cleanup()
        self.environment.container_id = None


class SweRex:
    """SWE-ReX's DockerDeployment: ``run`` in a bash session, as SWE-agent does, ``execute`` without one.

    Its server in the container needs a network: the engine's bridge, or the host's where there is no bridge.
    """

    def __init__(self, lab: Lab) -> None:
        from swerex.deployment.docker import DockerDeployment
        from swerex.runtime.abstract import CreateBashSessionRequest
        from swerex.utils.free_port import find_free_port

        port = find_free_port()
        network = [] if lab.bridge else ["--network", "host", "-e", f"SWEREX_PORT={port}"]
        arguments = [*lab.labels, *network, "-w", "/testbed"]
        self.loop = asyncio.new_event_loop()
        self.deployment = DockerDeployment(
            image=lab.with_swerex(), port=port, pull="never", docker_args=arguments, startup_timeout=60
        )
        for name in ("rex-deploy", "rex-runtime"):  # they report each failed look at a server that is starting
            logging.getLogger(name).disabled = True
        try:
            self.loop.run_until_complete(self.deployment.start())
            self.loop.run_until_complete(self.deployment.runtime.create_session(CreateBashSessionRequest()))
        except BaseException:
            self.close()
            raise

    def run(self, command: str) -> tuple[int, str]:
        from swerex.runtime.abstract import BashAction

        action = BashAction(command=command, timeout=60)
        seen = self.loop.run_until_complete(self.deployment.runtime.run_in_session(action))
        return int(seen.exit_code or 0), seen.output

    def execute(self, command: str) -> tuple[int, str]:
        from swerex.runtime.abstract import Command

        action = Command(command=command, shell=True, cwd="/testbed", timeout=60, merge_output_streams=True)
        done = self.loop.run_until_complete(self.deployment.runtime.execute(action))
        return int(done.exit_code or 0), done.stdout

    def close(self) -> None:
        try:
            self.loop.run_until_complete(self.deployment.stop())
        except Exception as error:  # open_lab removes the container
            logging.getLogger(__name__).info("SWE-ReX could not be stopped: %s", error)
        finally:
            self.loop.close()


class SweRexExecute:
    """The same deployment through its ``execute`` call, which mini-swe-agent's SWE-ReX environment uses."""

    def __init__(self, box: SweRex) -> None:
        self.run = box.execute

    def close(self) -> None:
        """The deployment is closed by the one that opened it."""


MINI = "mini-swe-agent DockerEnvironment"
OURS = "ours, Docker"
POOL = "ours, warm pool"
REX = "SWE-ReX DockerDeployment, session"
REX_EXECUTE = "SWE-ReX DockerDeployment, execute"


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def docker_provider() -> DockerProvider:
    return DockerProvider(PARAMS)


def openers(lab: Lab) -> dict[str, Callable[[], Box]]:
    """Every peer that can be had here, by the name that the tables give it."""
    docker = docker_provider()
    found: dict[str, Callable[[], Box]] = {OURS: lambda: Ours(docker, lab)}
    if not problem():
        process = BubblewrapProvider(PARAMS, lab.tiny.testbeds, lab.tiny.site)
        found["ours, bubblewrap"] = lambda: Ours(process, lab)
    found["docker exec (CLI)"] = lambda: DockerCli(lab)
    found["Docker SDK exec_run"] = lambda: DockerSdk(lab)
    if installed("minisweagent"):
        found[MINI] = lambda: MiniSweAgent(lab)
    if installed("swerex"):
        found[REX] = lambda: SweRex(lab)
    return found
