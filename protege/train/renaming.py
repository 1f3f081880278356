"""Rename what a conversation is about, so that fine-tuning teaches to copy names instead of to know them.

A suite of a few packages names some twenty files again and again; a small model then writes a path that it knows in
place of the one that it was just told (docs/log/2026-11.md, the desk experiment). A renamed copy of a conversation has other
packages, files, functions and variables throughout, in every message alike.
"""

from __future__ import annotations

import builtins
import keyword
import random
import re
from collections.abc import Sequence

Chat = Sequence[dict[str, str]]

_PATH = re.compile(r"(?:[\w.-]+/)+[\w-]+\.py\b")
_CODE = re.compile(r"<parameter=(?:old_str|new_str)>(.*?)</parameter>", re.DOTALL)
_PROSE = re.compile(r"#.*|\"[^\"\n]*\"|'[^'\n]*'")
_QUOTED = re.compile(r"`([A-Za-z_][\w.]*)`")
_NAME = re.compile(r"[A-Za-z_]\w{2,}")
_KEPT = frozenset(
    {
        *keyword.kwlist,
        *dir(builtins),
        *"testbed tests test src lib self cls python pytest init main args kwargs".split(),
    }
    | set(
        "and any are but can does for from had has have here how into its more not now one only other out over same see that the "
        "then there these they this too was what when where which who why will you your advised after again all before both "
        "cause change come default edit else exit fix found give leads let made make must need never new number old place "
        "repository reproduce run said same say says search should stuck submit take taken tell test that think try tries "
        "actual advice changed check checked code error example expected expert fails file following gives instead issue "
        "line lines look minimal missing mistake none raised raises read result return returns right running should "
        "text unexpected value with wrong".split()
    )
)
"""Never renamed: the language's own names, and words that stand in prose as often as in code."""

_WORDS = (
    "anchor arrow atlas badge basin beacon blend block bloom bolt border branch bridge bucket bundle cabin canal canvas "
    "carbon cargo carve cedar chain chart chord cipher circle clamp cliff cloud clover coast cobalt coil comet copper coral "
    "cradle crane crate creek crest curve cycle dagger delta depot dial dock draft drift dune eagle echo ember engine epoch "
    "fabric falcon feather fence ferry fiber field filter flame flint float forge fossil frame frost gadget garden gauge "
    "glacier glide globe grain granite graph grid grove hammer harbor hatch haven hinge hollow horizon index inlet island "
    "ivory jacket jasper jewel kernel kettle ladder lagoon lantern lattice ledger lever lichen linen locket lumber magnet "
    "maple marble margin marsh matrix meadow mesh meteor mirror module mosaic motor nectar needle nickel notch oasis orbit "
    "orchard otter paddle panel parcel patch pebble pepper pillar pilot pivot planet plasma plaza pocket polar portal prairie "
    "prism pulley quarry quartz quill radar radius rail rapid raven reef relay ribbon ridge ripple river rocket rotor saddle "
    "sail sample satin scale scout script seed sensor shard shell shore signal silver sketch slate socket spark spindle spiral "
    "spring spruce stable stamp steam stone stream summit swift table tally tango thicket thread thrift tidal timber token "
    "torch tower track trail tunnel valley valve vapor vector velvet vessel violet walnut weaver wharf willow window winter yarn"
).split()


_STYLES = (
    str,
    str,
    lambda word: word[0] + re.sub("[aeiou]", "", word[1:]),
    lambda word: word[:4],
    lambda word: word + random.Random(word).choice(("ify", "ing", "er", "utils", "lib", "ize", "s", "2")),
)
"""How a word is written as a name: names of real packages are abbreviated, bent and run together as well."""


def renamed(chat: Chat, rng: random.Random) -> list[dict[str, str]]:
    """A copy of ``chat`` under other names: the packages and files on its paths, the functions and classes that are
    quoted, and the variables on the edited lines. Roles, tool calls, numbers and operators stay.

    Each name is replaced everywhere or nowhere, by one that is not in the conversation and is written alike (case,
    underscores). Now and then the package moves into or out of ``src/``, or the file becomes ``__init__.py`` or
    ``__main__.py``.
    """
    text = "\n".join(message["content"] for message in chat)
    spoken = "\n".join(m["content"] for m in chat[1:] if m["role"] == "assistant" or "<expert" in m["content"])
    names: dict[str, str] = {}
    taken = set(_NAME.findall(text))
    for name in _names(spoken):
        names[name] = _fresh(name, taken, rng)
    pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})(?!\w)")
    moves = _moves(sorted(set(_PATH.findall(spoken))), rng)

    def rewrite(content: str) -> str:
        for old, new in moves:
            before = r"(?<=/)" if new.startswith("__") else r"(?:(?<![\w/])|(?<=/testbed/))"
            content = re.sub(before + re.escape(old), new, content)
        return pattern.sub(lambda match: names[match.group()], content) if names else content

    # The system prompt is the same for every instance.
    return [{**m, "content": m["content"] if m["role"] == "system" else rewrite(m["content"])} for m in chat]


def _names(spoken: str) -> list[str]:
    found: dict[str, None] = {}
    for path in _PATH.findall(spoken):
        found |= dict.fromkeys(re.split(r"[/.]", path)[:-1])
    for quoted in _QUOTED.findall(spoken):
        found |= dict.fromkeys(quoted.split("."))
    for code in _CODE.findall(spoken):
        found |= dict.fromkeys(_NAME.findall(_PROSE.sub("", code)))
    return [name for name in found if len(name) > 2 and name not in _KEPT and not re.match(r"__|test_|-", name)]


def _fresh(name: str, taken: set[str], rng: random.Random) -> str:
    """A name written like ``name`` that is not in ``taken``; it is added there."""
    head = name[: len(name) - len(name.lstrip("_"))]
    while True:
        words = rng.sample(_WORDS, 2 if len(name) > 6 and rng.random() < 0.5 else 1)
        words = [rng.choice(_STYLES)(word) for word in words]
        if name.isupper():
            new = "_".join(words).upper()
        elif name.lstrip("_")[:1].isupper():
            new = "".join(word.capitalize() for word in words)
        else:
            new = rng.choice(("_", "_", "")).join(words)
        if head + new not in taken:
            taken.add(head + new)
            return head + new


def _moves(paths: Sequence[str], rng: random.Random) -> list[tuple[str, str]]:
    """(old, new) prefixes or paths: into or out of ``src/``, and a module that becomes its package's ``__init__.py``."""
    moves: list[tuple[str, str]] = []
    inner = [path.removeprefix("testbed/") for path in paths]
    tops = {path.split("/")[0] for path in inner} - {"src", "tests", "testbed"}
    if any(path.startswith("src/") for path in inner):
        if rng.random() < 0.4:
            moves.append(("src/", ""))
    elif rng.random() < 0.4:
        moves += [(f"{top}/", f"{rng.choice(('src', 'lib', 'src'))}/{top}/") for top in sorted(tops)]
    files = {path.rsplit("/", 1)[-1] for path in inner}
    if len(files) == 1 and rng.random() < 0.25:
        moves.append((files.pop(), rng.choice(("__init__.py", "__init__.py", "__main__.py"))))
    return moves
