"""The pages: their links resolve, the files they name exist, their lines are short, and the index leads to each."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WIDE = ("docs/bad-inputs.md", "docs/security.md", "docs/results/", "docs/log/")
"""Pages whose table rows may be longer than a line: messages word for word, the names of tests, figures as printed."""
HISTORY = ("docs/log/", "docs/results/", "CHANGELOG.md")
"""Pages that tell what was: a file that they name may be gone."""
ROOTS = ("protege", "tasks", "flows", "infra", "tests", "docs", "profiles", "machines", "benchmarks", "frontier")
LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```[^\n]*$", re.MULTILINE | re.DOTALL)


def prose(name: str) -> str:
    return CODE.sub("", (ROOT / name).read_text(encoding="utf-8"))


def links(name: str) -> list[str]:
    return [target for target in LINK.findall(prose(name)) if not re.match(r"[a-z]+:", target)]


def anchors(name: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose(name), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", LINK.sub(lambda m: m.group(0), title).lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("name", NAMES)
def test_links_resolve(name: str) -> None:
    broken = []
    for target in links(name):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        if not file.exists() or (
            anchor and file.suffix == ".md" and anchor not in anchors(str(file.resolve().relative_to(ROOT)))
        ):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("name", NAMES)
def test_no_line_is_over_120_characters(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    wide = name.startswith(WIDE)
    long = [
        f"{number}: {len(one)}"
        for number, one in enumerate(lines, 1)
        if len(one) > 120 and not (wide and one.startswith("|"))
    ]
    assert not long


def test_every_page_is_reached_from_the_index() -> None:
    reached: set[str] = set()
    todo = ["README.md", "docs/README.md"]
    while todo:
        name = todo.pop()
        if name in reached:
            continue
        reached.add(name)
        for target in links(name):
            file = ((ROOT / name).parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.is_file() and file.is_relative_to(ROOT):
                todo.append(str(file.relative_to(ROOT)))
    assert not set(NAMES) - reached
    from_the_index = set(links("docs/README.md"))
    assert not {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} - from_the_index


def named_files(text: str) -> set[str]:
    """What stands in `backquotes` as a file or folder of this repository; {a,b} stands for two."""
    found = set()
    for quoted in re.findall(r"`([^`\n]+)`", text):
        for word in re.split(r"[\s:]", quoted):
            if re.fullmatch(rf"(?:{'|'.join(ROOTS)})/[\w./{{}},-]*|[\w./{{}},-]+/[\w{{}},-]+\.py", word):
                choices = re.search(r"\{([^}]*)\}", word)
                options = choices.group(1).split(",") if choices else [""]
                found |= {re.sub(r"\{[^}]*\}", one, word) for one in options}
    return found


def files() -> list[str]:
    """Those of the repository, with new ones that are not committed yet."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [one for one in listed if (ROOT / one).is_file()]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(HISTORY)])
def test_the_files_that_a_page_names_are_there(name: str) -> None:
    code = CODE.findall((ROOT / name).read_text(encoding="utf-8"))
    own = set(re.findall(r"# file: (\S+)", "".join(code)))  # an example of the page itself
    there = ["/" + one for one in files()]
    missing = [
        one
        for one in named_files(prose(name)) - own
        if not (ROOT / one).exists() and not any(path.endswith("/" + one) for path in there)
    ]
    assert not missing


def test_a_named_file_is_seen() -> None:
    text = "see `protege/gone.py`, `pytest tests/{train,gone}`, `data/x.json`, `gone.py`, `room/gone.py` and `protege/core/reward.py:79`"
    assert named_files(text) == {
        "protege/gone.py",
        "tests/train",
        "tests/gone",
        "room/gone.py",
        "protege/core/reward.py",
    }


def test_nothing_cites_a_page_that_is_not_here() -> None:
    """In code, settings and pages: every docs/….md exists, and every bare ….md is a file of this repository."""
    tracked = files()
    there = {Path(one).name for one in tracked}
    gone = []
    for one in tracked:
        if not one.endswith((".py", ".yaml", ".toml", ".sh", ".md", "Makefile", ".service")) or one.startswith(
            ("docs/log/", "tests/")
        ):
            continue
        text = (ROOT / one).read_text(encoding="utf-8")
        gone += [
            f"{one}: {cited}" for cited in re.findall(r"\bdocs/[\w/.-]+\.md", text) if not (ROOT / cited).is_file()
        ]
        if one.endswith(".py"):
            cited_names = re.findall(r"\(([\w-]+\.md)[,)]|\bin ([\w-]+\.md)\b", text)
            gone += [f"{one}: {name}" for pair in cited_names for name in pair if name and name not in there]
        gone += [f"{one}: {cited}" for cited in re.findall(r"architecture rule \d+", text)]
    assert not gone
