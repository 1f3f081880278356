"""The templates of reports and pages, and how a figure is written in them."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protege.report.inspect.text import diff_lines, seconds, shown, signed, visible

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def markdown(page: str, **values: Any) -> str:
    """A page of templates/markdown.md: ``report``, ``seeds`` or ``frontier``."""
    return str(getattr(environment(html=False).get_template("markdown.md").module, page)(**values)).strip() + "\n"


@cache
def style(name: str) -> str:
    """The sheet of a page, after the colours that all pages share."""
    return "".join((TEMPLATES / file).read_text(encoding="utf-8") for file in ("base.css", f"{name}.css"))


@cache
def environment(html: bool) -> Environment:
    """Every text is made :func:`visible`, then (in ``html``) escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    made.filters.update(
        pct=pct, num=num, percent=percent, points=points, p=p_value, signed=signed, secs=seconds, wbr=wbr, tables=tables
    )
    made.filters.update(
        cut=shown,
        difflines=diff_lines,
        brief=lambda text: text if len(text) <= 300 else text[:300] + " …",
        lines=lambda text: f"{n} line{'s' if n != 1 else ''}" if (n := len(text.splitlines())) else "empty",
        capitalise=lambda text: text[:1].upper() + text[1:],
    )
    return made


def pct(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def num(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """In a hundred, without the sign."""
    return "–" if share is None else f"{100 * share:.1f}"


def points(share: float) -> str:
    """A difference of shares in percentage points, signed; a true minus, and no sign on zero.

    >>> points(0.05), points(-0.123), points(-0.0001)
    ('+5.0', '−12.3', '0.0')
    """
    text = f"{100 * share:+.1f}".replace("-", "\u2212")
    return "0.0" if text[1:] == "0.0" else text


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def wbr(name: str) -> Any:
    """A name that may be broken after ``_`` and ``.``."""
    from markupsafe import Markup

    return Markup("<wbr>").join(map(visible, re.split(r"(?<=[_.])(?![_.])", name)))


def tables(value: Any, title: str = "") -> list[tuple[str, list[tuple[str, str]]]]:
    """Nested counts as flat two-column tables: ``[(title, [(name, value), ...]), ...]``, one for each inner object."""
    own: list[tuple[str, str]] = []
    inner: list[tuple[str, list[tuple[str, str]]]] = []
    for key, item in value.items():
        name = str(key).replace("_", " ")
        if isinstance(item, dict):
            inner += tables(item, f"{title}: {name}" if title else name)
        elif isinstance(item, str | int | float | bool) or item is None:
            own.append((name, f"{item:,}" if isinstance(item, int) and not isinstance(item, bool) else str(item)))
        else:
            text = json.dumps(item, ensure_ascii=False)
            own.append((name, text if len(text) <= 120 else f"{len(item)} entries"))
    return ([(title, own)] if own else []) + inner
