"""Grading with the official harness (Docker) and with its parsers over bubblewrap."""

from __future__ import annotations

import concurrent.futures
import logging

import pytest

from protege.core.trajectory import patch_digest
from protege.errors import GradingError, ImageMissing
from protege.grading.grade import grade
from protege.sandbox import images
from tests.sandbox.fixtures import PARAMS, cache, docker_image, make_provider, provider, sandbox, tiny  # noqa: F401
from tests.sandbox.tiny import GOLD, WRONG

NAMES = {"docker": "swebench-docker", "bubblewrap": "bubblewrap"}


def prefixed(text: str) -> str:
    """A patch that adds ``text`` at the top of calc.py."""
    lines = text.split("\n")
    body = "".join(f"+{line}\n" for line in lines)
    return f"diff --git a/calc.py b/calc.py\n--- a/calc.py\n+++ b/calc.py\n@@ -1,2 +1,{len(lines) + 2} @@\n{body} def add(a, b):\n     return a - b\n"


def test_the_gold_patch_resolves(provider, tiny, tmp_path):  # noqa: F811
    verdict = grade(tiny.instance, tiny.instance.patch, provider, log_dir=tmp_path)
    assert verdict.resolved and verdict.applied and verdict.reason == "" and not verdict.empty_patch
    assert (verdict.fail_to_pass, verdict.pass_to_pass, verdict.failed_tests) == ((1, 1), (1, 1), [])
    assert verdict.backend == NAMES[provider.backend]
    assert verdict.image_digest == provider.image_digest(tiny.instance)
    assert verdict.instance_digest == tiny.instance.digest and verdict.patch_digest == patch_digest(GOLD)
    assert "2 passed" in verdict.log_tail and "~~record" not in verdict.log_tail
    assert verdict.evidence == "record" and verdict.dropped == []
    assert list(tmp_path.rglob("test_output.txt"))


def test_a_wrong_patch_does_not_resolve(provider, tiny, tmp_path):  # noqa: F811
    verdict = grade(tiny.instance, WRONG, provider, log_dir=tmp_path)
    assert not verdict.resolved and verdict.applied
    assert (verdict.fail_to_pass, verdict.pass_to_pass) == ((0, 1), (1, 1))
    assert verdict.failed_tests == ["tests/test_calc.py::test_add"] and "1 of the deciding tests" in verdict.reason


@pytest.mark.parametrize("empty", ["", "\n", "  \n\n"])
def test_an_empty_patch_is_not_run(provider, tiny, tmp_path, empty):  # noqa: F811
    verdict = grade(tiny.instance, empty, provider, log_dir=tmp_path)
    assert not verdict.resolved and verdict.empty_patch and verdict.backend == "none"
    assert list(tmp_path.iterdir()) == []


def test_a_patch_that_escapes_is_not_run(provider, tiny, tmp_path):  # noqa: F811
    verdict = grade(tiny.instance, GOLD.replace("b/calc.py", "b/../../etc/passwd"), provider, log_dir=tmp_path)
    assert not verdict.resolved and not verdict.applied and "leaves the repository" in verdict.reason
    assert list(tmp_path.iterdir()) == []


def test_a_patch_that_does_not_apply(provider, tiny, tmp_path):  # noqa: F811
    for patch in (GOLD.replace("return a - b", "return a // b"), "this is no patch\n"):
        verdict = grade(tiny.instance, patch, provider, log_dir=tmp_path)
        assert not verdict.resolved and not verdict.applied and verdict.reason == "the patch does not apply"


def test_a_patch_without_its_last_newline_applies(provider, tiny, tmp_path):  # noqa: F811
    assert grade(tiny.instance, GOLD.rstrip("\n"), provider, log_dir=tmp_path).applied


def test_the_diff_of_a_sandbox_is_gradable(provider, sandbox, tiny, tmp_path):  # noqa: F811
    sandbox.exec("sed -i 's/a - b/a + b/' calc.py; echo 'note é' > 'a näme.txt'; rm run.sh; printf '\\0' > x.bin")
    assert grade(tiny.instance, sandbox.diff(), provider, log_dir=tmp_path).resolved


def test_tests_that_hang_count_against_the_patch(make_provider, provider, tiny, tmp_path):  # noqa: F811
    quick = make_provider(provider.backend, PARAMS.model_copy(update={"grade_timeout_s": 3}))
    verdict = grade(
        tiny.instance, prefixed("import time; print('hanging', flush=True); time.sleep(60)"), quick, log_dir=tmp_path
    )
    assert not verdict.resolved and verdict.applied and "longer than 3 s" in verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        "raise SystemExit('Could not resolve host: example.org')",
        "import os; os.write(1, b'Cannot allocate memory\\n'); os._exit(0)",
        "import os; os.write(2, b'\\xff\\xfe'); os._exit(3)",
        "import os; os.kill(os.getpid(), 9)",
        "x = bytearray(4 * 10**9)",
        "open('run.sh', 'wb').write(b'\\xff\\xfe\\x00' * 10)",
        "open('tests/test_calc.py', 'wb').write(b'\\xe9 = 1')",
    ],
)
def test_a_patch_cannot_pass_for_an_infrastructure_failure(provider, tiny, tmp_path, text):  # noqa: F811
    verdict = grade(tiny.instance, prefixed(text), provider, log_dir=tmp_path)
    assert not verdict.resolved and verdict.applied and verdict.reason


def test_a_new_patch_is_not_answered_from_an_old_report(provider, tiny, tmp_path):  # noqa: F811
    assert [grade(tiny.instance, patch, provider, log_dir=tmp_path).resolved for patch in (GOLD, WRONG, GOLD)] == [
        True,
        False,
        True,
    ]


def test_many_threads_grade_the_same_instance(provider, tiny, tmp_path):  # noqa: F811
    patches = [GOLD, WRONG, GOLD.replace("a + b", "b + a"), WRONG.replace("a * b", "a")]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda patch: grade(tiny.instance, patch, provider, log_dir=tmp_path), patches))
    assert [verdict.resolved for verdict in verdicts] == [True, False, True, False]


def test_a_missing_image_is_not_a_verdict(provider, tiny, tmp_path):  # noqa: F811
    other = tiny.instance.model_copy(update={"instance_id": "other__thing-9", "image": "nowhere/other:latest"})
    with pytest.raises(ImageMissing):
        grade(other, GOLD, provider, log_dir=tmp_path)


def test_logging_is_left_alone(provider, tiny, tmp_path):  # noqa: F811
    root = logging.getLogger()
    before = root.level
    grade(tiny.instance, WRONG, provider, log_dir=tmp_path)
    assert root.level == before


@pytest.mark.docker
def test_a_container_that_dies_is_an_infrastructure_failure(make_provider, tiny, tmp_path):  # noqa: F811
    import threading
    import time

    provider = make_provider("docker")  # noqa: F811
    mine = {"label": [f"protege.run={images.owner()}", "protege.kind=grade"]}  # others grade beside this

    def kill() -> None:
        for _ in range(200):
            found = list(provider.client.api.containers(filters=mine))
            if found:
                time.sleep(1.0)
                provider.client.api.kill(found[0]["Id"])
                return
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(GradingError, match=tiny.instance.instance_id):
        grade(tiny.instance, prefixed("import time; time.sleep(20)"), provider, log_dir=tmp_path)
    thread.join()


@pytest.mark.docker
def test_grading_containers_are_limited_and_leave_nothing(make_provider, tiny, tmp_path, monkeypatch):  # noqa: F811
    from protege.grading import grade as grading

    provider = make_provider("docker")  # noqa: F811
    seen: list[dict] = []
    original = grading.limited_client

    def spy(params, facts, recorder):
        client = original(params, facts, recorder)
        start = client.api.start
        client.api.start = lambda container, **kw: (
            start(container, **kw),
            seen.append(client.api.inspect_container(container)),
        )[0]
        return client

    monkeypatch.setattr(grading, "limited_client", spy)
    assert grade(tiny.instance, GOLD, provider, log_dir=tmp_path).resolved
    host, labels = seen[0]["HostConfig"], seen[0]["Config"]["Labels"]
    assert host["NetworkMode"] == "none" and host["Memory"] == host["MemorySwap"] == PARAMS.memory_mb * 2**20
    assert host["PidsLimit"] == PARAMS.pids and host["NanoCpus"] == 10**9
    assert host["CapDrop"] == ["ALL"] and "SYS_ADMIN" not in host["CapAdd"] and "CAP_SYS_ADMIN" not in host["CapAdd"]
    assert labels["protege"] == "1" and labels["protege.run"]
    assert provider.client.api.containers(all=True, filters={"id": seen[0]["Id"]}) == []
