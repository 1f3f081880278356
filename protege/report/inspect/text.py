"""Text of a trajectory made fit to show: it was written by a model, a program or a repository, so nothing of it is trusted."""

from __future__ import annotations

import re

from protege.files import digest

MAX_CHARS = 200_000
"""Characters of one text that are shown; the file has the rest."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")


def visible(text: str) -> str:
    r"""``text`` with everything that a reader would not see, or that a terminal or browser would obey, as a sign.

    Control characters become their Unicode pictures; what reorders or hides text becomes its code point.

    >>> visible("\x1b[31mred\x00")
    '␛[31mred␀'
    >>> visible("user\u202etxt")
    'user‹U+202E›txt'
    """
    return _HIDDEN.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"‹U+{code:04X}›"


def shown(text: str, limit: int = MAX_CHARS) -> str:
    """:func:`visible`, cut after ``limit`` characters with a note of how much is left."""
    text = text.replace("\r\n", "\n")
    if len(text) <= limit:
        return visible(text)
    return f"{visible(text[:limit])}\n[{len(text) - limit} further characters are in the file only]"


def file_name(name: str) -> str:
    """A file name for ``name``, itself where that is safe: no folder, no hidden file, no surprise in a link.

    >>> file_name("calc__calc-1.0.x.rl-oracle")
    'calc__calc-1.0.x.rl-oracle'
    >>> file_name("../../etc/passwd")
    'etc-passwd-cbc2d263'
    """
    if _NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).lstrip(".-+").replace("..", ".")[:100]
    return f"{plain or 'trajectory'}-{digest(name)[:8]}"


def seconds(value: float) -> str:
    """
    >>> seconds(0.004), seconds(9.96), seconds(125)
    ('0.00 s', '10.0 s', '2 min 5 s')
    """
    if value >= 60:
        return f"{int(value) // 60} min {int(value) % 60} s"
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"


def signed(value: float) -> str:
    """
    >>> signed(-0.5), signed(0.0), signed(-0.0001)
    ('−0.50', '0.00', '0.00')
    """
    text = f"{value:.2f}".replace("-", "\u2212")
    return "0.00" if text == "\u22120.00" else text


def diff_lines(patch: str) -> list[tuple[str, str]]:
    """The lines of a diff, each with its CSS class."""
    return [(_kind(line), line) for line in shown(patch).rstrip("\n").split("\n")]


def _kind(line: str) -> str:
    if line.startswith(("diff ", "+++ ", "--- ", "index ")):
        return "file"
    return {"+": "add", "-": "del", "@": "at"}.get(line[:1], "")
