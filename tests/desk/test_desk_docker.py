"""Real instances of a real package, proved in Docker and graded by the official harness."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import tarfile
from pathlib import Path

import pytest

from protege.config import InstancesParams, SandboxParams
from protege.desk import desk
from protege.desk.modifiers import candidates
from protege.desk.sources import ensure_site, load_packages
from protege.desk.testbed import members
from protege.desk.verify import Dropped, Verified, gold, verify

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
DESK = ROOT / "data/desk"
PARAMS = InstancesParams(splits={"sft": {"packages": ("inflection",), "count": 2}}, repeats=2, test_timeout_s=120)
SANDBOX = SandboxParams(backend="docker", memory_mb=512, cpus=2, grade_timeout_s=180)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory):
    """Two instances with the providers that the rest of the project would use."""
    from protege.desk.desk_images import make_builder
    from protege.sandbox.images import docker_client
    from protege.sandbox.open import open_provider

    root = tmp_path_factory.mktemp("desk")
    cache = ROOT / ".cache/protege"
    client = docker_client()
    package = load_packages(DESK / "packages.yaml")["inflection"]
    prepared = desk.prepare(package, cache)
    prepared = dataclasses.replace(prepared, testbeds=cache / "pristine")
    site = ensure_site(DESK / "requirements-desk.txt", cache)
    provider = open_provider(
        SANDBOX, cache / "pristine", site, make_builder(client, cache / "pristine", desk=DESK, cache=cache)
    )
    provider.check([prepared.pristine])
    baseline = gold(prepared, provider, PARAMS)
    found = {"inflection": candidates(package, prepared.tree, PARAMS)}
    results: list[Verified | Dropped] = []
    while batch := desk.next_batch(found, results, PARAMS):
        results += [verify(c, prepared, baseline, provider, PARAMS) for c in batch]
    rows = desk.write_suite(desk.select(results, PARAMS), results, {"inflection": prepared}, root / "instances")["sft"]
    beds = root / "instances/testbeds"
    final = open_provider(SANDBOX, beds, site, make_builder(client, beds, desk=DESK, cache=cache))
    final.check(rows)
    return client, final, rows, root, prepared


def added(patch: str) -> list[str]:
    return [line[1:].strip() for line in patch.splitlines() if line.startswith("+") and not line.startswith("+++")]


def changed_file(patch: str) -> str:
    return next(line[6:] for line in patch.splitlines() if line.startswith("+++ b/"))


def test_gold_resolves_and_an_idle_patch_does_not(suite):
    from protege.grading.grade import grade

    _, provider, rows, root, _ = suite
    idle = "diff --git a/NOTE b/NOTE\nnew file mode 100644\n--- /dev/null\n+++ b/NOTE\n@@ -0,0 +1 @@\n+nothing\n"
    for row in rows:
        verdict = grade(row, row.patch, provider, log_dir=root / "logs")
        assert verdict.resolved, verdict.log_tail
        assert verdict.backend == "swebench-docker"
        nothing = grade(row, idle, provider, log_dir=root / "logs")
        assert nothing.applied and not nothing.resolved
        assert nothing.fail_to_pass[0] == 0 and nothing.pass_to_pass[0] == nothing.pass_to_pass[1]


def test_the_sandbox_holds_neither_the_tests_nor_the_correct_line(suite):
    _, provider, rows, _, prepared = suite
    for row in rows:
        names = {t.split("[")[0].split("::")[-1] for t in row.FAIL_TO_PASS}
        path = changed_file(row.patch)
        original = prepared.files[path]
        lines = [line for line in added(row.patch) if len(line) > 10 and original.decode().count(line) == 1]
        blob = hashlib.sha1(b"blob %d\0" % len(original) + original).hexdigest()
        with provider.open(row) as sandbox:
            for name in names:
                assert sandbox.exec(f"grep -rnw 'def {name}' .").exit_code == 1
            assert sandbox.exec("git log --all --format=%H").output.split() == [row.base_commit]
            assert sandbox.exec("git fsck --lost-found --no-progress 2>&1").output.strip() == ""
            assert sandbox.exec("git status --porcelain").output == ""
            blobs = sandbox.exec("git cat-file --batch-all-objects --batch").output
            assert sandbox.exec(f"git cat-file -e {blob}").exit_code != 0
            copies = f"find / -xdev -type f -size {len(original)}c -exec sha1sum {{}} + 2>/dev/null"
            assert hashlib.sha1(original).hexdigest() not in sandbox.exec(copies).output
            for line in lines:
                everywhere = "/testbed /opt /usr/local /home /tmp /root"
                assert sandbox.exec(f"grep -rlF -- {shlex.quote(line)} {everywhere} 2>/dev/null").output == ""
                assert line not in blobs
            assert sandbox.exec("python3 -m pytest -q -p no:cacheprovider").exit_code == 0
            assert sandbox.exec("git status --porcelain").output == ""


def test_the_statement_gives_nothing_away(suite):
    for row in suite[2]:
        text = row.problem_statement
        assert "inflection" in text and len(text) <= 1200
        assert not any(line in text for line in added(row.patch) if len(line) > 5)
        assert not any(t.split("[")[0].split("::")[-1] in text for t in row.FAIL_TO_PASS)


def test_each_instance_is_one_thin_layer_on_a_package_image(suite):
    client, _, rows, _, _ = suite

    def layers(tag: str) -> list[str]:
        return client.api.inspect_image(tag)["RootFS"]["Layers"]

    packages = [layers(tag) for image in client.images.list("protege-desk-package-inflection") for tag in image.tags]
    for row in rows:
        assert layers(row.image)[:-1] in packages
        assert client.api.history(row.image)[0]["Size"] <= 1_000_000


def test_no_layer_holds_the_correct_file_or_a_hidden_test(suite, tmp_path: Path):
    """Even in the saved image, where a whiteout would not help."""
    client, _, rows, _, prepared = suite
    row = rows[0]
    with (tmp_path / "image.tar").open("wb") as handle:
        for chunk in client.images.get(row.image).save():
            handle.write(chunk)
    path = changed_file(row.patch)
    original = prepared.files[path].decode()
    seen = []
    with tarfile.open(tmp_path / "image.tar") as image:
        for member in image:
            handle = image.extractfile(member)
            if handle is None or handle.read(2) == b"":
                continue
            handle.seek(0)
            try:
                with tarfile.open(fileobj=handle) as layer:
                    seen += [layer.extractfile(m).read().decode() for m in layer if m.name == f"testbed/{path}"]  # type: ignore[union-attr]
            except tarfile.ReadError:
                continue
    assert len(seen) == 1
    assert seen[0] != original
    assert not any(line in seen[0] for line in added(row.patch) if len(line) > 10 and original.count(line) == 1)


def test_a_missing_image_is_rebuilt_from_its_testbed(suite):
    client, provider, rows, _, _ = suite
    row = rows[-1]
    client.images.remove(row.image, force=True)
    provider.check([row])
    packed = (provider.testbeds / f"{row.instance_id}.tar.gz").read_bytes()
    wanted = {i.name for i, _ in members(packed) if i.isfile() and "/.git/" not in i.name}
    with provider.open(row) as sandbox:
        there = sandbox.exec("find /testbed -path /testbed/.git -prune -o -type f -print").output.split()
        assert {name.lstrip("/") for name in there} == wanted
        assert sandbox.exec("stat -c %u . .git pkg 2>/dev/null | sort -u").output.split() == ["1000"]
