from __future__ import annotations

import subprocess
import sys

import pytest

from protege.config import SandboxParams
from protege.errors import ImageMissing, SandboxError, SandboxUnavailable
from protege.sandbox import images
from protege.sandbox.docker import DockerProvider, DockerSandbox
from tests.helpers import by
from tests.sandbox.fixtures import PARAMS

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def client():
    return images.docker_client()


@pytest.fixture
def scratch(client):
    """A tag that is removed afterwards."""
    tag = "protege-test-layer:t"
    yield tag
    client.images.remove(tag, force=True)


def test_the_base_is_made_once_and_labelled(client):
    tag = images.base_image(client, "host")
    assert images.base_image(client, "host") == tag and tag.startswith("protege-base:")
    config = client.images.get(tag).attrs["Config"]
    assert (
        config["Labels"]["protege"] == "1" and config["StopSignal"] == "SIGKILL" and config["WorkingDir"] == "/testbed"
    )
    assert "LANG=C.UTF-8" in config["Env"] and "PYTHONDONTWRITEBYTECODE=1" in config["Env"]


def test_a_base_that_cannot_be_had_is_named(client):
    with pytest.raises(SandboxError, match="localhost:1/nowhere"):
        images.base_image(client, "localhost:1/nowhere:1")


def test_a_layer_adds_deletes_and_is_one_layer(client, scratch):
    base = images.base_image(client, "host")
    files = images.make_tar({"/testbed/a b.py": b"x = 1\n", "/opt/site/p.py": b""})
    made = images.build_layer(
        client, scratch, base, files, ["rm -f /usr/bin/less", "echo hi > /made"], {"k": "v w"}, {"NEW": "a b"}
    )
    assert made == images.image_id(client, scratch)
    history, parent = client.images.get(scratch).history(), client.images.get(base).history()
    assert len(history) == len(parent) + 1 and history[0]["Size"] < 10_000
    config = client.images.get(scratch).attrs["Config"]
    assert config["Labels"]["k"] == "v w" and config["Labels"]["protege"] == "1" and "NEW=a b" in config["Env"]
    assert config["Cmd"] == ["/bin/bash"] and not config["Entrypoint"] and config["StopSignal"] == "SIGKILL"
    output = client.containers.run(
        scratch,
        ["bash", "-c", "cat '/testbed/a b.py' /made; ls /usr/bin/less 2>&1; stat -c %u '/testbed/a b.py'; true"],
        remove=True,
        network_mode="none",
    ).decode()
    assert output.startswith("x = 1\nhi\n") and "No such file" in output and output.endswith("1000\n")


def test_a_failing_build_says_what_it_printed_and_leaves_nothing(client):
    def building() -> set[str]:
        return {item["Id"] for item in client.api.containers(all=True, filters={"label": "protege.kind=build"})}

    before = building()
    with pytest.raises(SandboxError, match="the reason"):
        images.build_layer(
            client, "protege-test-layer:bad", images.base_image(client, "host"), commands=["echo the reason; exit 3"]
        )
    assert images.image_id(client, "protege-test-layer:bad") is None
    left = building() - before  # those of a build beside this test go by themselves
    assert by(120, lambda: not left & building())


def test_an_image_made_for_root_is_handed_to_the_agent(client, scratch, tiny, docker_image):
    harsh = ["chown -R 0:0 /testbed", "rm -rf /home/agent", "sed -i /agent/d /etc/passwd"]
    made = images.build_layer(client, scratch, docker_image, commands=harsh)
    provider, instance = DockerProvider(PARAMS), tiny.instance.model_copy(update={"image": scratch})
    for _ in range(2):
        with provider.open(instance) as sandbox:
            assert sandbox.image_digest == made == provider.image_digest(instance)
            assert sandbox.exec("id -u; touch new ~/new calc.py && echo ok").output == "1000\nok\n"
            sandbox.exec("sed -i 's/a - b/a + b/' calc.py")
            assert "+    return a + b" in sandbox.diff()
    client.images.remove(f"protege-agent:{made[7:19]}", force=True)


def test_an_image_without_a_repository_is_refused_and_removed(client, scratch):
    images.build_layer(client, scratch, images.base_image(client, "host"), commands=["chown 1000:1000 /testbed"])
    before = {item["Id"] for item in client.api.containers(all=True, filters={"ancestor": scratch})}
    with pytest.raises(SandboxError, match="git repository"):
        DockerSandbox(client, scratch, "x", PARAMS)
    assert {item["Id"] for item in client.api.containers(all=True, filters={"ancestor": scratch})} == before


def test_the_container_is_confined(sandbox_docker):
    host = sandbox_docker._api.inspect_container(sandbox_docker.id)["HostConfig"]
    assert host["NetworkMode"] == "none" and host["CapDrop"] == ["ALL"] and not host["Privileged"]
    # what process 1 alone holds; test_not_root_and_no_way_up shows that a command holds nothing
    assert {name.removeprefix("CAP_") for name in host["CapAdd"]} == {
        "SETUID",
        "SETGID",
        "SETPCAP",
        "KILL",
        "DAC_READ_SEARCH",
    }
    assert host["SecurityOpt"] == ["no-new-privileges"] and not host["Binds"]
    assert host["Memory"] == host["MemorySwap"] == PARAMS.memory_mb * 2**20 and host["PidsLimit"] == PARAMS.pids


@pytest.fixture
def sandbox_docker(make_provider, tiny):
    with make_provider("docker").open(tiny.instance) as opened:
        yield opened


def test_background_processes_outlive_their_command(sandbox_docker):
    sandbox_docker.exec("nohup sh -c 'sleep 1; echo done > later' >/dev/null 2>&1 &")
    assert sandbox_docker.exec("sleep 2; cat later").output == "done\n"


def test_a_killed_flood_does_not_slow_what_follows(sandbox_docker):
    """The engine holds back a container's events when a client hangs up on a process that prints."""
    for _ in range(4):
        assert sandbox_docker.exec("(setsid sleep 300 &); yes", timeout=1).timed_out
        result = sandbox_docker.exec("ps axo args | grep -cE '^(yes|sleep 300)'")
        assert result.output.strip() == "0" and result.seconds < 15


def test_a_command_cannot_imitate_a_failed_start(sandbox_docker):
    result = sandbox_docker.exec("echo OCI runtime exec failed: exec failed; exit 126")
    assert result.exit_code == 126 and result.output == "OCI runtime exec failed: exec failed\n"


def test_orphans_are_reaped_and_the_living_are_not(client, docker_image, sandbox_docker):
    code = (
        "import sys, os; from protege.sandbox import images; from protege.config import SandboxParams\n"
        "from protege.sandbox.docker import DockerSandbox\n"
        f"print(DockerSandbox(images.docker_client(), {docker_image!r}, 'x', SandboxParams()).id, flush=True); os._exit(9)"
    )
    orphan = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    assert orphan

    def states() -> set[str]:  # none once another worker's provider took it away
        return {item["State"] for item in client.api.containers(all=True, filters={"id": orphan})}

    assert by(60, lambda: states() <= {"exited"}), "by itself: its owner's end is the end of its stdin"
    images.reap_orphans(client)
    assert client.api.containers(all=True, filters={"id": orphan}) == []
    assert sandbox_docker.exec("echo alive").output == "alive\n"


def test_owner_labels():
    assert not images.owner_gone(images.owner())
    assert images.owner_gone(images.owner().replace(".", ".9", 1))
    assert not images.owner_gone("1.1@elsewhere/pid:[1]")


def test_no_engine(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(SandboxUnavailable, match="no Docker engine answers"):
        DockerProvider(SandboxParams())


def test_a_missing_image_when_opening(client):
    with pytest.raises(ImageMissing):
        DockerSandbox(client, "protege-absent:1", "x", PARAMS)
