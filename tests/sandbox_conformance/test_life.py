"""Opening, closing and dying, for every backend."""

from __future__ import annotations

import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from protege.errors import ImageMissing, SandboxDied
from tests.sandbox.fixtures import BACKENDS, PARAMS


def containers(name: str) -> list:
    from protege.sandbox.images import docker_client

    return docker_client().api.containers(all=True, filters={"label": "protege=1", "id": name})


def vanish(sandbox) -> None:
    """Remove the sandbox under its owner."""
    if sandbox.backend == "docker":
        sandbox._api.kill(sandbox.id)
    else:
        shutil.rmtree(sandbox._dir)


def kill_inside(sandbox) -> None:
    """End process 1, and with it whatever runs, from outside."""
    if sandbox.backend == "docker":
        sandbox._api.kill(sandbox.id)
    else:
        os.killpg(sandbox._runner.pid, signal.SIGKILL)


def test_death_in_the_middle_of_a_command(sandbox):
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sandbox.exec, "echo begun; sleep 30")
        time.sleep(1)
        began = time.monotonic()
        kill_inside(sandbox)
        with pytest.raises(SandboxDied):
            running.result()
        assert time.monotonic() - began < 25
    with pytest.raises(SandboxDied):
        sandbox.exec("true")


def test_the_lifetime_can_be_started_anew(make_provider, provider, tiny):
    with make_provider(provider.backend, PARAMS.model_copy(update={"lifetime_s": 6})).open(tiny.instance) as sandbox:
        for _ in range(3):
            time.sleep(2.5)
            sandbox.live_for(6)
        assert sandbox.exec("echo alive").output == "alive\n"


@pytest.mark.parametrize("call", ["exec", "read", "write", "diff"])
def test_death_under_us(sandbox, call):
    assert sandbox.exec("true").exit_code == 0
    vanish(sandbox)
    with pytest.raises(SandboxDied):
        {"exec": lambda: sandbox.exec("true"), "read": lambda: sandbox.read("calc.py"), "diff": sandbox.diff}.get(
            call, lambda: sandbox.write("x", b"")
        )()
    sandbox.close()


def test_close_is_idempotent_and_leaves_nothing(provider, tiny):
    sandbox = provider.open(tiny.instance)
    sandbox.exec("mkdir a; echo x > a/b; chmod 000 a")
    sandbox.close()
    sandbox.close()
    if sandbox.backend == "docker":
        assert containers(sandbox.id) == []
    else:
        assert not sandbox._dir.exists()
    with pytest.raises(SandboxDied):
        sandbox.exec("true")


def test_close_after_death_does_not_raise(provider, tiny):
    sandbox = provider.open(tiny.instance)
    vanish(sandbox)
    sandbox.close()


def test_two_sandboxes_do_not_share(provider, tiny):
    with provider.open(tiny.instance) as one, provider.open(tiny.instance) as two:
        assert one.id != two.id and one.image_digest == two.image_digest == provider.image_digest(tiny.instance)
        one.exec("echo 1 > /tmp/shared; echo 1 > shared; echo 1 > ~/shared")
        assert two.exec("ls /tmp/shared shared ~/shared 2>/dev/null").output == ""
        assert one.exec("cat /tmp/shared shared ~/shared").output == "1\n1\n1\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_lifetime_is_hard(backend, make_provider, tiny):
    provider = make_provider(backend, PARAMS.model_copy(update={"lifetime_s": 2}))
    with provider.open(tiny.instance) as sandbox, pytest.raises(SandboxDied, match="lifetime"):
        sandbox.exec("sleep 4")
        sandbox.exec("true")


def test_a_missing_image_is_named_before_any_work(provider, tiny):
    other = tiny.instance.model_copy(update={"instance_id": "other__thing-9", "image": "nowhere/other:latest"})
    for call in (
        lambda: provider.check([tiny.instance, other]),
        lambda: provider.open(other),
        lambda: provider.image_digest(other),
    ):
        with pytest.raises(ImageMissing, match="other__thing-9") as caught:
            call()
        assert "docker pull nowhere/other:latest" in str(caught.value)
        assert tiny.instance.instance_id not in str(caught.value)
    provider.check([tiny.instance])


def test_the_builder_is_given_what_is_missing(provider, tiny):
    other = tiny.instance.model_copy(update={"instance_id": "other__thing-9", "image": "nowhere/other:latest"})
    asked: list[str] = []
    provider.builder = lambda instance: asked.append(instance.instance_id)
    with pytest.raises(ImageMissing):
        provider.check([tiny.instance, other])
    assert asked == ["other__thing-9"]
