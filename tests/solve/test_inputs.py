"""What solve refuses, with which words, and with which exit code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protege.cli.main import app
from protege.cli.solve import ServedModel, SolveParams
from protege.cli.solve.params import choose_model, load_params, read_issue
from protege.cli.solve.progress import plain, turn_line
from protege.cli.solve.tree import list_tree
from protege.core.trajectory import ToolCall, Turn
from protege.errors import BadInput
from tests.solve.conftest import fill, git


@pytest.fixture
def cli(elsewhere, monkeypatch):
    """Calls the command and gives (exit code, stdout, stderr)."""
    monkeypatch.setattr("protege.cli.solve.command.project_folder", lambda: None)
    for who in ("BASE_URL", "MODEL", "API_KEY"):
        monkeypatch.delenv(f"PROTEGE_EXPERT_{who}", raising=False)

    def call(*arguments: object, stdin: bytes | None = None) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["solve", *(str(a) for a in arguments)], input=stdin)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model's until its tokenizer is read."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 2048, "model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


ISSUES = {
    "missing": (None, "cannot be read"),
    "empty": (b" \n", "is empty"),
    "latin-1": ("stra\u00dfe".encode("latin-1"), "not UTF-8 text (byte 4)"),
    "binary": (b"a\0b", "NUL"),
    "huge": (b"x" * 200_001, "has 200001 bytes"),
}


@pytest.mark.parametrize("kind", ISSUES)
def test_bad_issues(kind, tmp_path, cli, repo):
    raw, words = ISSUES[kind]
    path = tmp_path / "issue.md"
    if raw is not None:
        path.write_bytes(raw)
        code, out, err = cli("--repo", repo, "--issue", "-", stdin=raw)
        assert (code, out) == (1, "") and words in err
    code, out, err = cli("--repo", repo, "--issue", path)
    assert (code, out) == (1, "") and words in err and "--issue" in err and len(err.splitlines()) == 1


def test_a_byte_order_mark_is_no_part_of_the_issue(tmp_path):
    (tmp_path / "i").write_bytes("\ufeffIt fails\n".encode())
    assert read_issue(str(tmp_path / "i")) == "It fails\n"


def test_bad_options(cli, repo, model, tmp_path):
    (issue := tmp_path / "i.md").write_text("It fails")
    base = ["--repo", repo, "--issue", issue]
    for more, words in {
        (): "no trained model",
        ("--model", tmp_path / "nowhere"): "is no model folder",
        ("--expert", "oracle", "--model", model): "gold patch",
        ("--expert", "gpt", "--model", model): "none or api",
        ("--expert", "api", "--model", model): "PROTEGE_EXPERT_BASE_URL",
        ("--url", "localhost:1", "--model", model): "not an http(s) address",
    }.items():
        code, out, err = cli(*base, *more)
        assert (code, out) == (1, "") and words in err, (more, err)
    assert cli("--issue", issue)[0] == 2 and cli(*base, "--backend", "cloud")[0] == 2
    code, _, err = cli(*base, "--model", model, "--url", "http://127.0.0.1:9")
    assert code == 3 and "no vLLM server answers at http://127.0.0.1:9" in err


def test_bad_folders(tmp_path, repo):
    with pytest.raises(BadInput, match="does not exist"):
        list_tree(tmp_path / "no")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        list_tree(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="the folder is empty"):
        list_tree(tmp_path / "empty")
    ignoring = tmp_path / "ignoring"
    (ignoring / "build").mkdir(parents=True)
    (ignoring / "build" / "a").write_text("a")
    (ignoring / ".gitignore").write_text("*\n")
    with pytest.raises(BadInput, match="ignores every file"):
        list_tree(ignoring)
    git(tmp_path, "init", "-q", "--bare", "bare.git")
    for folder in (tmp_path / "bare.git", repo / ".git"):
        with pytest.raises(BadInput, match="without a work tree"):
            list_tree(folder)
    (repo / "data").mkdir()
    (repo / "data" / "big.bin").write_bytes(b"\0" * 3_000_000)
    with pytest.raises(BadInput, match=r"too large: 15 files, 2\.9 MiB.*data \(2\.9 MiB\)"):
        list_tree(repo, max_mb=1)
    with pytest.raises(BadInput, match="too large"):
        list_tree(repo, max_files=10)
    assert list_tree(repo).size > 3_000_000


def test_what_is_left_out_is_named(repo):
    (repo / os.fsdecode(b"latin-\xe4.py")).write_text("x")
    os.mkfifo(repo / "pipe")
    inner = fill(repo / "vendored")
    git(inner, "init", "-q")
    (repo / "run.sh").unlink()
    tree = list_tree(repo)
    said = "\n".join(tree.left_out)
    assert "not UTF-8" in said and "vendored/: a repository of its own" in said
    assert not {"pipe", "run.sh", "debug.log", ".env"} & set(tree.files) and "link_out" in tree.files


def test_git_variables_of_a_surrounding_command_do_not_count(repo, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    tree = list_tree(repo)
    assert tree.top == repo and "pkg/core.py" in tree.files


def test_the_best_model_of_the_project_is_taken(tmp_path):
    with pytest.raises(BadInput, match="make demo"):
        choose_model(None, tmp_path)
    for name in ("data/models/sft", "data/models/rl", "data/champion/model"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        assert choose_model(None, tmp_path) != folder if any(tmp_path.rglob("*.safetensors")) else True
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
        assert choose_model(None, tmp_path) == folder


def test_limits_come_from_the_projects_params(tmp_path):
    root = Path(__file__).parents[2]
    (tmp_path / "params.yaml").write_bytes((root / "profiles" / "smoke.yaml").read_bytes())
    found = load_params(tmp_path)
    assert found.agent.step_limit == 16 and found.sandbox.lifetime_s >= found.agent.time_limit_s + 180
    assert load_params(None).agent.step_limit == 40


def test_a_turn_on_one_line():
    turn = Turn(
        index=2, message="m", call=ToolCall(name="bash", arguments={"command": "a\n\x07b " + "c" * 200}), observation=""
    )
    line = turn_line(turn, 16, True)
    assert (
        "\n" not in line and "\x07" not in line and line.startswith("step  3/16   bash   a ?b ccc") and len(line) < 130
    )
    assert "no well-formed call" in turn_line(turn.model_copy(update={"call": None}), 16, True)
    assert plain("\u202eevil") == "?evil"


@pytest.mark.slow
def test_an_issue_that_leaves_no_room_is_refused_before_anything_starts(tmp_path, cli, repo):
    from protege.policy.tiny import tiny_model

    folder = tiny_model(tmp_path / "tiny")
    (issue := tmp_path / "i.md").write_text("It fails. " * 5000)
    code, _, err = cli("--repo", repo, "--issue", issue, "--model", folder)
    assert code == 1 and "too long for this model" in err
    # the server must not import modules from the current folder, which may be the user's repository
    served = ServedModel(folder, SolveParams(), tmp_path)
    assert served._server is not None and served._server.environment["PYTHONSAFEPATH"] == "1"
