from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protege.cli import main as cli
from protege.cli.main import app, exit_code, results_table
from protege.errors import BadInput, BadParams, ExpertError, ModelServerError, ProtegeError, SandboxError, StorageError
from tests.helpers import hear_interrupts

ROOT = Path(__file__).parents[1]
COMMANDS = {"profile", "results", "score", "doctor", "solve", "inspect", "plan", "provenance"}
REPORT = """# Report

Some words.

| system | Pass@1 | n |
|---|---:|---:|
| base, no expert | 0.0% | 6 |
| sft + oracle | 33.3% | 6 |

More words, and another table:

| x | y |
|---|---|
| 1 | 2 |
"""


@pytest.fixture
def project(in_tmp: Path) -> Path:
    (in_tmp / "profiles").mkdir()
    for name in ("desk", "smoke"):
        (in_tmp / f"profiles/{name}.yaml").write_text(f"profile: {name}\n")
    return in_tmp


def test_profile_replaces_params(project: Path) -> None:
    done = CliRunner().invoke(app, ["profile", "desk"])
    assert done.exit_code == 0, done.output
    assert (project / "params.yaml").read_text() == "profile: desk\n"


def test_an_unknown_profile_names_the_known(project: Path) -> None:
    done = CliRunner().invoke(app, ["profile", "dask"])
    assert done.exit_code == 1 and "desk" in done.output
    assert not (project / "params.yaml").exists()


def test_results_are_the_first_table_aligned(in_tmp: Path) -> None:
    (in_tmp / "data/report").mkdir(parents=True)
    (in_tmp / "data/report/report.md").write_text(REPORT)
    assert results_table().splitlines() == [
        "system           Pass@1  n",
        "--------------------------",
        "base, no expert  0.0%    6",
        "sft + oracle     33.3%   6",
    ]


def test_no_results_yet(in_tmp: Path) -> None:
    with pytest.raises(BadInput, match="make demo"):
        results_table()
    assert CliRunner().invoke(app, ["results"]).exit_code == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadParams("a\nb"), 1),
        (BadInput("x"), 1),
        (SandboxError("x"), 3),
        (ExpertError("x"), 3),
        (ModelServerError("x"), 3),
        (StorageError("x"), 3),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(monkeypatch: pytest.MonkeyPatch, error: ProtegeError, code: int) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(cli, "results_table", fail)
    done = CliRunner().invoke(app, ["results"])
    assert done.exit_code == code == exit_code(error)
    assert done.stderr == f"protege: {' '.join(str(error).split())}\n" and not done.stdout


def test_a_bug_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "results_table", fail)
    assert isinstance(CliRunner().invoke(app, ["results"]).exception, ZeroDivisionError)


def test_wrong_usage_is_2_and_the_codes_stand_in_the_help() -> None:
    assert CliRunner().invoke(app, ["nonsense"]).exit_code == 2
    assert CliRunner().invoke(app, ["score"]).exit_code == 2
    help_text = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    for code in ("0 done", "1 bad input", "2 wrong usage", "3 infrastructure", "130 interrupted"):
        assert code in help_text


def test_interrupted_is_130(in_tmp: Path) -> None:
    """A real SIGINT, while the command waits for its input: score reads from a pipe that nobody writes."""
    os.mkfifo(in_tmp / "params.yaml")
    (in_tmp / "t.json").write_text("{}")
    process = subprocess.Popen(
        [sys.executable, "-m", "protege.cli.main", "score", "t.json"],
        cwd=in_tmp,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    deadline = time.monotonic() + 60
    pipe = -1
    while pipe < 0 and process.poll() is None and time.monotonic() < deadline:
        try:
            pipe = os.open(in_tmp / "params.yaml", os.O_WRONLY | os.O_NONBLOCK)  # refused until somebody reads
        except OSError:
            time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    os.close(pipe)
    assert process.returncode == 130
    assert err == "protege: interrupted\n" and not out


def timed(compiled: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A Python program's end, and the least of three runs' seconds of processor time, its modules compiled before."""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    took = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return done, min(took[1:])


def test_every_command_is_there_and_starts_fast(tmp_path: Path) -> None:
    """The processor's time, since the machine may be busy; and no heavy package before a command asks for it."""
    least = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"
    done, spent = timed(tmp_path, "-m", "protege.cli.main", "--help")
    _, peer = timed(tmp_path, "-c", least)
    assert done.returncode == 0 and spent < 1.5 * peer  # a ratio: what typer alone takes differs by machine
    assert all(f" {name} " in done.stdout for name in COMMANDS)
    heavy = (
        "pydantic",
        "yaml",
        "numpy",
        "pandas",
        "matplotlib",
        "torch",
        "transformers",
        "docker",
        "openai",
        "httpx",
        "prefect",
    )
    code = f"import sys, protege.cli.main; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert loaded.stdout.strip() == "[]"


def complete(words: str, folder: Path) -> list[str]:
    """What bash would offer for ``words``."""
    parts = words.split(" ")
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_PROTEGE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(parts) - 1),
    }
    program = "import sys; sys.argv[0] = 'protege'; from protege.cli.main import app; app(prog_name='protege')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    return done.stdout.split()


def test_completion_knows_commands_and_profiles(project: Path) -> None:
    assert set(complete("protege ", project)) >= COMMANDS
    assert complete("protege pro", project) == ["profile", "provenance"]
    assert complete("protege profile ", project) == ["desk", "smoke"]
    assert complete("protege profile d", project) == ["desk"]
    assert complete("protege plan --profile s", project) == ["smoke"]


def test_json_for_a_script(project: Path) -> None:
    for arguments in (["doctor", "--json"], ["plan", "--profile", "tiny", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "protege.cli.main", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode in (0, 1) and not done.stderr
        assert isinstance(json.loads(done.stdout), dict)
