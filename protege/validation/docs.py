"""Great Expectations' Data Docs without the network, and the same result as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from protege.files import write_atomic

if TYPE_CHECKING:
    from protege.validation.expectations import Check

# Stands in for the Bootstrap that Data Docs fetch from a CDN: only the classes that their pages use.
STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d9dde3, #3a404a); --soft: light-dark(#f4f6f8, #1d2128); }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1180px; padding: 1rem;
  color: light-dark(#1b1f24, #e3e6ea); background: light-dark(#fff, #14171c); }
a { color: light-dark(#0b57d0, #8ab4f8); }
h1, h2, h3, h4, h5 { line-height: 1.25; margin: 1.2em 0 .4em; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
th { background: var(--soft); }
.card, .alert { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .9rem; margin: .6rem 0; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; } .row > * { min-width: 0; }
.col-12, .col-lg-12, .col-md-12 { flex: 1 1 100%; } .col-lg-2, .col-md-2 { flex: 0 0 190px; }
.col-lg-10, .col-md-10 { flex: 1 1 0; }
.badge { border: 1px solid var(--line); border-radius: 4px; padding: 0 .35em; font-family: ui-monospace, monospace;
  font-size: .92em; background: var(--soft); }
.breadcrumb, .nav, .navbar ul { display: flex; flex-wrap: wrap; gap: .8rem; list-style: none; padding: 0; margin: 0; }
.text-success { color: light-dark(#13752b, #6ddb86); } .text-danger { color: light-dark(#b3261e, #ff8a80); }
.fa-check-circle::before { content: "\\2713"; } .fa-times::before, .fa-exclamation-triangle::before { content: "\\2717"; }
.card:has(input[type=radio]), .modal, .ge-walkthrough-modal, .navbar-brand, footer, form, .navbar img, .ge-sign-up, .cooltip > span { display: none; }
img { max-width: 100%; }
"""

_REMOTE = re.compile(
    r"""<script\b[^>]*\bsrc\s*=\s*["'](?:https?:)?//[^>]*>\s*</script>|<link\b[^>]*\bhref\s*=\s*["'](?:https?:)?//[^>]*>"""
    r"""|<img\b[^>]*\bsrc\s*=\s*["'](?:https?:)?//[^>]*>""",
    re.IGNORECASE,
)
_SCRIPT = re.compile(r"<script\b.*?</script>", re.IGNORECASE | re.DOTALL)
_REMOTE_URL = re.compile(r"""url\(\s*["']?(?:https?:)?//[^)]*\)""", re.IGNORECASE)
_FOOTER = re.compile(r"<footer\b.*?</footer>", re.IGNORECASE | re.DOTALL)
_TIME = re.compile(r"(?<=[>\s])\d{4}-?\d\d-?\d\dT\d\d:?\d\d:?\d\d(?:\.\d+)?Z(?=[<\s])")
_RANDOM_ID = re.compile(r"(?<=collapse-body)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UNUSED = (".gif", ".otf")


def make_offline(docs_dir: Path) -> None:
    """Rewrite every page under ``docs_dir`` so that it loads nothing from the network and is readable on its own.

    Scripts go entirely: without the CDN's jQuery they can only raise errors. Animated images and fonts that
    serve the removed walk-through are deleted. Run times and random ids go as well: DVC follows the pages by content.
    """
    for path in docs_dir.rglob("*"):
        if path.suffix == ".html":
            page = path.read_text()
            for pattern in (_REMOTE, _SCRIPT, _FOOTER, _RANDOM_ID):
                page = pattern.sub("", page)
            page = _TIME.sub("not kept", _REMOTE_URL.sub("none", page))
            write_atomic(path, page.replace("</head>", f"<style>{STYLE}</style>\n</head>", 1))
        elif path.suffix == ".css":
            write_atomic(path, _REMOTE_URL.sub("none", path.read_text()))
        elif path.suffix in _UNUSED:
            path.unlink()


def write_index(docs_dir: Path, checks: Sequence[Check]) -> Path:
    """Replace the index (which a CDN's script would fill) by a plain one: failures first, then a link to every page."""
    rows = "".join(
        f"<tr><td class='{'text-success' if c.success else 'text-danger'}'>{'holds' if c.success else 'violated'}</td>"
        f"<td>{escape(c.title)}</td><td>{escape(c.suite)}</td><td>{escape(c.column or 'table')}</td>"
        f"<td>{escape(', '.join(c.rows) or ('' if c.success else c.observed))}</td></tr>"
        for c in sorted(checks, key=lambda check: check.success)
    )
    pages = sorted(
        p.relative_to(docs_dir)
        for folder in ("validations", "expectations")
        for p in (docs_dir / folder).rglob("*.html")
    )
    links = "".join(f"<li><a href='{escape(str(page))}'>{escape(_page_name(page))}</a></li>" for page in pages)
    violated = sum(not check.success for check in checks)
    return write_atomic(
        docs_dir / "index.html",
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Data validation</title><style>{STYLE}</style>"
        f"</head><body><h1>Data validation</h1><p>{violated} of {len(checks)} expectations violated.</p><ul>{links}</ul>"
        "<table><thead><tr><th>Result</th><th>Expectation</th><th>Suite</th><th>Column</th><th>Trajectories</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></body></html>\n",
    )


def _page_name(page: Path) -> str:
    return f"{page.parts[1]}: what was found" if page.parts[0] == "validations" else f"{page.stem}: what is expected"


def markdown(checks: Sequence[Check], metrics: dict[str, float]) -> str:
    """The result as one page of Markdown: verdict, failures first with their rows, then numbers and what held."""
    failed = [check for check in checks if not check.success]
    lines = ["# Data validation", ""]
    lines += [
        f"**{len(failed)} of {len(checks)} expectations violated.**" if failed else "**Every expectation holds.**",
        "",
    ]
    lines += [f"{metrics['kept']:g} of {metrics['n']:g} trajectories kept for fine-tuning.", ""]
    for check in failed:
        rows = ", ".join(f"`{row}`" for row in check.rows) or f"observed {check.observed or 'nothing'}"
        lines.append(f"- **{check.title}** (`{check.suite}`, `{check.column or 'table'}`): {rows}")
    lines += ["", "| measure | value |", "|---|---:|"]
    lines += [f"| {name} | {value:g} |" for name, value in metrics.items()]
    typed = [c for c in checks if c.success and c.expectation.endswith("_of_type")]
    lines += ["", "## What holds", ""]
    lines += [f"- {c.title} (`{c.suite}`)" for c in checks if c.success and c not in typed]
    lines += [f"- {len(typed)} columns have their types"] if typed else []
    return "\n".join(lines) + "\n"
