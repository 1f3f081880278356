"""What decides a solve: limits, model and issue, and the folders it reads and writes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from protege.config import SETTLE_S, AgentParams, ApiParams, ExpertParams, ModelParams, SandboxParams
from protege.errors import BadInput

MODELS = ("data/champion/model", "data/models/rl", "data/models/sft")
"""Where a trained model is looked for in the project, best first."""
ISSUE_BYTES = 200_000


class SolveParams(BaseModel):
    """Sections ``agent``, ``sandbox``, ``expert``, ``api`` and ``model`` of params.yaml, and what only solve has.

    ``temperature`` 0 is greedy: the seed then changes nothing. ``max_mb`` (MiB) and ``max_files`` bound what is copied
    of the user's folder.
    """

    model_config = ConfigDict(extra="forbid")

    agent: AgentParams = AgentParams(
        step_limit=40, context_tokens=8192, max_new_tokens=512, observation_chars=2000, time_limit_s=1800.0
    )
    sandbox: SandboxParams = SandboxParams()
    expert: ExpertParams = ExpertParams()
    api: ApiParams = ApiParams()
    model: ModelParams = ModelParams()
    temperature: float = Field(0.0, ge=0)
    max_mb: float = Field(200.0, gt=0)
    max_files: int = Field(20_000, ge=1)

    def with_lifetime(self) -> SolveParams:
        """With a sandbox that outlives the time limit."""
        lifetime = max(self.sandbox.lifetime_s, self.agent.time_limit_s + SETTLE_S)
        return self.model_copy(update={"sandbox": self.sandbox.model_copy(update={"lifetime_s": lifetime})})


def project_folder() -> Path | None:
    """The project: the current folder, else the checkout that this library runs from, else None."""
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / "dvc.yaml").is_file() and (folder / "profiles").is_dir():
            return folder
    return None


def load_params(project: Path | None) -> SolveParams:
    """The project's params.yaml, else the defaults. Raises BadParams."""
    if project is None or not (project / "params.yaml").is_file():
        return SolveParams()
    from protege.config import load

    found = load(project / "params.yaml")
    return SolveParams(
        agent=found.agent, sandbox=found.sandbox, expert=found.expert, api=found.api, model=found.model
    ).with_lifetime()


def choose_model(given: Path | str | None, project: Path | None) -> Path:
    """``given``, else the first of :data:`MODELS` that the project has.

    Raises:
        BadInput: none is there, or the one given is no model folder.
    """
    if given is not None:
        folder = Path(given).expanduser()
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise BadInput(
                f"--model {given} is no model folder (config.json and *.safetensors are needed); give a folder made by "
                "save_pretrained, such as data/models/rl"
            )
        return folder.resolve()
    tried = [project / name for name in MODELS] if project else []
    for folder in tried:
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    where = f"in {project} ({', '.join(MODELS)})" if project else "here, and this is not the project's folder"
    raise BadInput(f"no trained model {where}; run `make demo` (or `dvc pull`) in the project, or give --model FOLDER")


def read_issue(source: str, stdin: bytes | None = None) -> str:
    """The issue's text: of the file ``source``, or ``stdin`` where it is ``-``.

    Raises:
        BadInput: it cannot be read, is empty, is not UTF-8 text, or is longer than :data:`ISSUE_BYTES`.
    """
    name = "the issue on standard input" if source == "-" else f"--issue {source}"
    if source == "-":
        raw = stdin or b""
    else:
        try:
            raw = Path(source).expanduser().read_bytes()
        except OSError as error:
            raise BadInput(
                f"{name} cannot be read ({error.strerror}); give a text file, or - for standard input"
            ) from error
    if len(raw) > ISSUE_BYTES:
        raise BadInput(f"{name} has {len(raw)} bytes, at most {ISSUE_BYTES}; keep what tells the fault apart")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise BadInput(f"{name} holds a NUL character; give plain text")
    if not text.strip():
        raise BadInput(f"{name} is empty; say what happens and what you expected")
    return text


def cache_home(project: Path | None) -> Path:
    """``PROTEGE_CACHE``, else the project's cache, else the user's."""
    if given := os.environ.get("PROTEGE_CACHE"):
        return Path(given).resolve()
    if project is not None:
        return project / ".cache" / "protege"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "protege"


def default_keep(root: Path) -> Path:
    """Where trajectories are kept: the project's ``data/solve``, else the user's cache."""
    project = project_folder()
    folders = [project / "data" / "solve"] if project else []
    return _outside(root, *folders, cache_home(None) / "solve")


def default_home(root: Path) -> Path:
    """Where caches, logs and pid files go: PROTEGE_CACHE, the project's cache, else the user's."""
    return _outside(root, cache_home(project_folder()), cache_home(None))


def _outside(root: Path, *folders: Path) -> Path:
    """The first of ``folders`` that is not in ``root``, else one for temporary files."""
    for folder in folders:
        if not folder.resolve().is_relative_to(root):
            return folder.resolve()
    return Path(tempfile.gettempdir()).resolve() / "protege-solve"


def patch_target(out: Path | str | None, root: Path, other: Path, force: bool) -> Path:
    """Where the patch goes: ``out``, else the current folder, but ``other`` where that is in ``root``.

    Raises:
        BadInput: it cannot be written there, or something is there already.
    """
    if out is None:
        here = Path.cwd().resolve()
        target = other if here.is_relative_to(root) else here / f"{root.name or 'repository'}.patch"
    else:
        target = Path(out).expanduser().absolute()
        if target.is_dir():
            raise BadInput(f"--out {out} is a folder; name a file in it")
        if not target.parent.is_dir():
            raise BadInput(f"--out {out}: the folder {target.parent} does not exist; make it first")
    if target.exists() and not force:
        raise BadInput(f"{target} is there already; give another --out, or --force to replace it")
    return target
