"""Pages on disk: one a trajectory, and their index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from protege.cli.score import reward_params
from protege.errors import BadInput
from protege.files import write_atomic
from protege.report.inspect.model import View, view
from protege.report.inspect.page import Line, index_page, line_of, trajectory_page
from protege.report.inspect.sources import SEARCHED, Found, Material, read, rows_in
from protege.report.inspect.text import file_name

PARAMS = Path("params.yaml")


@dataclass(frozen=True)
class Placed:
    """A trajectory and where its page goes: ``group`` is the folder below the index, "" for none."""

    found: Found
    group: str = ""

    @property
    def page(self) -> Path:
        """Relative to the index."""
        stem = self.found.path.stem if self.found.path else self.found.trajectory.trajectory_id
        return Path(*(file_name(part) for part in Path(self.group).parts), f"{file_name(stem)}.html")


@dataclass
class Written:
    """What :func:`write_pages` left: the index, the pages in the order of the index's input, and what it could not read."""

    index: Path
    pages: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def open_material(near: Path, instances: list[Path] | None = None, params: Path | None = None) -> Material:
    """Gold patches and reward params for trajectories at ``near``.

    Without ``instances`` the rows of the ``instances`` folder beside the trajectories' stage, else of data/instances;
    without ``params`` the params.yaml beside that, else in the current folder, else the defaults.

    Raises:
        BadInput: a file that was named is missing or wrong. A wrong file that was not named is said on the page.
    """
    data = data_folder(near)
    material = Material()
    if instances is not None:
        material.rows = rows_in(instances)
    else:
        load_rows(material, data / "instances")
    chosen = params or next((p for p in (data.parent / PARAMS, PARAMS) if p.is_file()), None)
    if chosen is not None:
        material.reward, material.params_from = reward_params(chosen), f"section reward of {chosen}"
    return material


def load_rows(material: Material, folder: Path) -> None:
    """Add the rows of ``folder``'s files; a file that cannot be read is one of the material's problems."""
    for source in sorted(folder.glob("*.jsonl")):
        try:
            material.rows = {**rows_in([source]), **material.rows}
        except BadInput as error:
            material.problems.append(str(error))


def data_folder(near: Path) -> Path:
    """The pipeline's ``data`` that ``near`` lies in, else the current folder's."""
    here = near.resolve()
    for folder in (here, *here.parents):
        if (folder / "instances").is_dir() and any((folder / name).is_dir() for name in SEARCHED):
            try:
                return folder.relative_to(Path.cwd())
            except ValueError:
                return folder
    return Path("data")


def placed(files: Iterable[Path], root: Path, problems: list[str]) -> Iterator[Placed]:
    """``files`` read one by one, grouped by their folder below ``root``; what cannot be read goes to ``problems``."""
    for path in files:
        try:
            found = read(path)
        except BadInput as error:
            problems.append(str(error))
            continue
        parts = path.parent.relative_to(root).parts
        yield Placed(found, "/".join(part for part in parts if part != "trajectories"))


def write_page(found: Found, material: Material, out: Path) -> View:
    """The page of one trajectory as the file ``out``."""
    seen = view(found, material)
    write_atomic(out, trajectory_page(seen))
    return seen


def write_pages(
    items: Iterable[Placed],
    material: Material,
    folder: Path,
    title: str,
    *,
    back: str = "",
    problems: list[str] | None = None,
) -> Written:
    """A page each, and ``folder/index.html``. ``problems`` (filled while ``items`` is read) stand on the index.

    Raises:
        BadInput: none of ``items`` could be read.
    """
    written = Written(folder / "index.html", problems=problems if problems is not None else [])
    lines: list[Line] = []
    oracles: dict[str, None] = {}
    taken: set[Path] = set()
    for item in items:
        page = item.page
        while page in taken:
            page = page.with_name(f"{page.stem}-{len(taken)}.html")
        taken.add(page)
        seen = view(item.found, material)
        up = "../" * (len(page.parts) - 1)
        write_atomic(folder / page, trajectory_page(seen, index=f"{up}index.html"))
        lines.append(line_of(seen, quote(page.as_posix()), item.group))
        written.pages.append(folder / page)
        if seen.expert and seen.expert.sees_gold:
            oracles[f"expert {seen.expert.name}"] = None
        if seen.policy.sees_gold:
            oracles[f"policy {seen.policy.name}"] = None
    if not lines and written.problems:
        more = f" (and {len(written.problems) - 1} more)" if len(written.problems) > 1 else ""
        raise BadInput(written.problems[0] + more)
    text = index_page(lines, title, material.longer_than, list(oracles), written.problems, back)
    write_atomic(written.index, text)
    return written
