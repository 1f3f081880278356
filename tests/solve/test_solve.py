"""Solve on a real repository, in a real sandbox, with a policy that says what it is told to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from protege.cli.solve import Solution, SolveParams, solve
from protege.cli.solve.progress import summary
from protege.config import SandboxParams
from protege.core.trajectory import Identity, Trajectory
from protege.errors import BadInput, ModelServerError
from protege.expert.base import ExpertReply
from protege.expert.oracle import OracleExpert
from tests.solve.conftest import FILES, SUBMIT, Parrot, bash, fill, fingerprint, git, say

EDITS = bash(
    "sed -i 's/x [*] 3/x * 2/' pkg/core.py && sed -i 's/b = 2/b = 20/' pkg/crlf.py && sed -i 's/echo 2/echo 22/' pkg/attributes.bat"
    " && printf 'first\\nchanged' > pkg/no_newline.txt && rm pkg/gone.py && sed -i \"s/h\u00e9llo/ad\u00e9/\" m*/*.py"
    " && printf 'one\\ntwo' > 'with space.txt' && chmod -x run.sh && mkdir -p new/d && printf 'x = \"\u00e4\"\\n' > 'new/d/\u00f6 1.py'"
)
AFTER = {
    "pkg/crlf.py": b"a = 1\r\nb = 20\r\nc = 3\r\n",
    "pkg/attributes.bat": b"echo 1\r\necho 22\r\n",
    "pkg/no_newline.txt": b"first\nchanged",
    "m\u00fcnchen/stra\u00dfe \u2713.py": "gru\u00df = 'ad\u00e9'\n".encode(),
    "with space.txt": b"one\ntwo",
    "new/d/\u00f6 1.py": 'x = "\u00e4"\n'.encode(),
}


def check_after(root: Path) -> None:
    for name, data in AFTER.items():
        assert (root / name).read_bytes() == data, name
    assert b"x * 2" in (root / "pkg/core.py").read_bytes()
    assert not (root / "pkg/gone.py").exists()
    assert not (root / "run.sh").stat().st_mode & 0o100
    assert (root / "pkg/__init__.py").read_bytes() == b""


def test_the_patch_applies_and_the_repository_was_not_touched(repo, params, elsewhere):
    before, lines = fingerprint(repo), []
    done = solve(repo, "double(2) gives 6", Parrot(EDITS, SUBMIT), params=params, report=lines.append)
    assert fingerprint(repo) == before and not (repo.parent / "hook-ran").exists()
    assert done.exit_status == "submitted" and done.notes == [] and done.files == 9
    assert done.patch_file == elsewhere / "My repo.patch"
    assert any(line.startswith("step  1/40   bash   sed -i") for line in lines), lines
    assert "read it, then: git -C '" in summary(done)
    assert Solution.model_validate_json(done.model_dump_json()) == done
    subprocess.run(done.apply_command, check=True)
    check_after(repo)
    assert "not committed" in (repo / "pkg/core.py").read_text()
    kept = Trajectory.load(done.trajectory_file)
    assert kept.patch == done.patch_file.read_bytes().decode() and len(kept.turns) == 2


def test_a_plain_folder_and_a_folder_of_a_repository(tmp_path, params, elsewhere):
    plain = fill(tmp_path / "plain")
    (plain / "debug.log").write_text("ignored\n")
    (plain / "__pycache__").mkdir()
    (plain / "__pycache__" / "x.pyc").write_bytes(b"\0")
    look = bash("ls; ls /testbed/__pycache__")
    done = solve(plain, "i", Parrot(look, EDITS, SUBMIT), params=params, out=elsewhere / "a.patch")
    assert "debug.log" not in (seen := Trajectory.load(done.trajectory_file).turns[0].observation)
    assert "No such file" in seen and done.notes == []
    subprocess.run(done.apply_command, check=True)
    check_after(plain)

    top = tmp_path / "top"
    sub = fill(top / "lib" / "sub")
    (top / "other.py").write_text("o = 1\n")
    git(top, "init", "-q")
    git(top, "add", "-A")
    done = solve(sub, "i", Parrot(bash("ls -a"), EDITS, SUBMIT), params=params, out=elsewhere / "b.patch")
    assert "other.py" not in Trajectory.load(done.trajectory_file).turns[0].observation
    subprocess.run(done.apply_command, check=True)
    check_after(sub)


def test_nothing_of_git_of_links_or_of_secrets_comes_along(repo, params, elsewhere):
    (repo / "behind").symlink_to(repo.parent / "outside")
    git(
        repo,
        "update-index",
        "--add",
        "--cacheinfo",
        f"100644,{git(repo, 'hash-object', '-w', 'run.sh').strip()},behind/private.txt",
    )
    look = bash(
        "cat .git/config .git/hooks/* .env link_out behind/private.txt /proc/self/environ; git log --format=%an; git status --short; ls -a; env"
    )
    done = solve(repo, "i", Parrot(look, SUBMIT), params=params)
    seen = Trajectory.load(done.trajectory_file).turns[0].observation
    for secret in ("the-credential", "the-secret", "the-outside", "hook-ran", "t@example.org", "debug.log"):
        assert secret not in seen, secret
    assert "untracked.py" in seen and "link_in" in seen
    assert any(line.startswith("behind/private.txt: lies behind the link") for line in done.left_out)
    assert done.patch_file is None and done.apply_command == [] and not list(elsewhere.iterdir())


def test_tests_before_and_after_are_information(repo, params, elsewhere):
    command = "python3 -c 'from pkg.core import double; import sys; print(double(2)); sys.exit(double(2) != 4)'"
    done = solve(repo, "i", Parrot(EDITS, SUBMIT), params=params, test_command=command)
    assert done.tests_before.exit_code == 1 and done.tests_before.tail == "6\n"
    assert done.tests_after.exit_code == 0 and done.tests_after.last_line == "4"
    done = solve(repo, "i", Parrot(SUBMIT), params=params, test_command="python3 -c 'import numpy'", force=True)
    assert done.tests_after is None and "no module numpy" in done.notes[0]


def test_expert_calls_are_marked_and_counted(repo, params, elsewhere):
    class Advisor:
        identity = Identity(name="advisor", digest="0", kind="api")

        def reply(self, instance, query, recent, call_index):
            assert not instance.patch
            return ExpertReply("look at \x1b[31mcore", completion_tokens=5, cost_usd=0.01)

    lines = []
    ask = say("ask_expert", query="where\x1b[2J is it?")
    done = solve(repo, "i", Parrot(ask, SUBMIT), params=params, expert=Advisor(), report=lines.append)
    assert (done.expert_calls, done.expert_tokens, done.cost_usd, done.tokens) == (1, 5, 0.01, 6)
    assert any("* expert where?[2J is it?" in line for line in lines)
    with pytest.raises(BadInput, match="gold patch"):
        solve(repo, "i", Parrot(SUBMIT), params=params, expert=OracleExpert())


def test_a_failure_keeps_what_there_is(repo, params, elsewhere):
    with pytest.raises(ModelServerError) as caught:
        solve(repo, "i", Parrot(EDITS, ModelServerError("the server died")), params=params)
    note = caught.value.__notes__[0]
    partial = Path(note.split("stood: ")[1].split("; ")[0])
    assert "x * 2" in partial.read_text(encoding="utf-8") and not partial.is_relative_to(elsewhere)
    kept = Trajectory.load(partial.with_name(partial.name.replace(".partial.patch", ".json")))
    assert kept.failure.boundary == "model_server" and len(kept.turns) == 1
    assert not list(elsewhere.iterdir())


def test_a_patch_that_makes_a_link_is_withheld(repo, params, elsewhere):
    done = solve(repo, "i", Parrot(bash("ln -s /etc/passwd evil"), SUBMIT), params=params)
    assert done.patch_file is None and "a symbolic link" in done.notes[0] and not list(elsewhere.iterdir())


def test_a_repository_that_changed_meanwhile_is_told(repo, params, elsewhere):
    def change(line: str) -> None:
        if line.startswith("step"):
            (repo / "pkg" / "core.py").write_text("something else\n")

    done = solve(repo, "i", Parrot(EDITS, SUBMIT), params=params, report=change)
    assert done.patch_file and "does not apply" in done.notes[0]


def test_where_the_patch_goes(repo, params, elsewhere, monkeypatch, cache):
    (elsewhere / "My repo.patch").write_text("mine")
    work = Parrot(bash("echo >> run.sh"), SUBMIT)
    with pytest.raises(BadInput, match="--force"):
        solve(repo, "i", work, params=params)
    with pytest.raises(BadInput, match="is a folder"):
        solve(repo, "i", work, params=params, out=elsewhere)
    with pytest.raises(BadInput, match="does not exist"):
        solve(repo, "i", work, params=params, out=elsewhere / "no" / "a.patch")
    assert (elsewhere / "My repo.patch").read_text() == "mine"
    before = fingerprint(repo)
    monkeypatch.chdir(repo / "pkg")
    monkeypatch.delenv("PROTEGE_CACHE")  # by which bubblewrap else unpacks its root in the current folder
    done = solve(repo, "i", work, params=params, home=cache)
    assert "PROTEGE_CACHE" not in os.environ
    assert done.patch_file.parent == done.trajectory_file.parent and fingerprint(repo) == before
    asked = solve(repo, "i", work, params=params, home=cache, out="asked.patch")
    assert asked.patch_file == repo / "pkg" / "asked.patch"
    subprocess.run(asked.apply_command, check=True)


def test_a_patch_that_cannot_be_written_is_not_lost(repo, params, elsewhere):
    def block(line: str) -> None:
        if line.startswith("step"):
            (elsewhere / "My repo.patch").mkdir(exist_ok=True)

    with pytest.raises(BadInput, match="the patch is in") as caught:
        solve(repo, "i", Parrot(EDITS, SUBMIT), params=params, report=block)
    assert "x * 2" in Trajectory.load(str(caught.value).split("the patch is in ")[1]).patch


def test_without_an_engine_it_says_what_it_falls_back_to(repo, params, elsewhere, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    auto = params.model_copy(update={"sandbox": params.sandbox.model_copy(update={"backend": "auto"})})
    lines = []
    assert solve(repo, "i", Parrot(SUBMIT), params=auto, report=lines.append).backend == "bubblewrap"
    assert any("no Docker engine answers" in line for line in lines)
    with pytest.raises(BadInput, match="needs a Docker engine"):
        solve(repo, "i", Parrot(SUBMIT), params=params, image="x")


@pytest.mark.docker
def test_in_docker_with_the_base_and_with_an_image_of_the_users(repo, elsewhere):
    from protege.sandbox import images

    client = images.docker_client()
    users = "solve-test-users:1"
    base = images.base_image(client, "host")
    container = client.containers.create(base, command=["true"], labels={"protege": "1"})
    container.commit("solve-test-users", "1", changes=['ENTRYPOINT ["/bin/false"]', "USER 12345"])
    container.remove()
    params = SolveParams(sandbox=SandboxParams(backend="docker", memory_mb=512, images_gb=0))
    before = fingerprint(repo)

    def solved() -> set[str]:  # other tests make images beside this one
        return {
            tag for item in client.api.images() for tag in item["RepoTags"] or () if tag.startswith("protege-solve")
        }

    images_before = solved()
    try:
        for image in (None, users):
            work = Parrot(bash("id -u; ls; echo $PYTHONPATH"), EDITS, SUBMIT)
            done = solve(repo, "i", work, params=params, image=image, out=elsewhere / "d.patch", force=True)
            assert done.backend == "docker" and done.notes == []
            seen = Trajectory.load(done.trajectory_file).turns[0].observation
            assert seen.startswith("1000\n") and "untracked.py" in seen and "/testbed:" in seen
        assert solved() == images_before
    finally:
        client.images.remove(users)
    assert fingerprint(repo) == before
    subprocess.run(done.apply_command, check=True)
    check_after(repo)


def test_the_files_are_those_that_this_test_speaks_of():
    assert set(AFTER) - set(FILES) == {"new/d/\u00f6 1.py"} and shutil.which("git")
