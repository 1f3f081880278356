"""Where a solve writes, never into the repository unless it was asked to."""

from __future__ import annotations

import tempfile
from pathlib import Path

from protege.cli.solve.params import cache_home, project_folder
from protege.errors import BadInput


def default_keep(root: Path) -> Path:
    """Where trajectories are kept: the project's ``data/solve``, else the user's cache."""
    project = project_folder()
    folders = [project / "data" / "solve"] if project else []
    return outside(root, *folders, cache_home(None) / "solve")


def default_home(root: Path) -> Path:
    """Where caches, logs and pid files go: PROTEGE_CACHE, the project's cache, else the user's."""
    return outside(root, cache_home(project_folder()), cache_home(None))


def outside(root: Path, *folders: Path) -> Path:
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
