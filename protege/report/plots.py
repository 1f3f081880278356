"""Charts as inline SVG: no script, no network; colours come from the page's CSS, so light and dark both work."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape

from protege.core.loops import longest_run
from protege.report.metrics import MODEL_ORDER, Score, System, calls

WIDTH, LABELS, RIGHT = 560, 132, 16
PALETTE = 6


def pass_intervals(scores: Sequence[Score], confidence: float) -> str:
    """Pass@1 with its interval, one row a system; hollow without an expert."""
    row, top = 34, 10
    height = top + row * len(scores) + 34
    x = _scale(0, 1, LABELS, WIDTH - RIGHT - 88)
    parts = _x_axis(x, [i / 5 for i in range(6)], top, height - 34, lambda v: f"{v:.0%}")
    for i, s in enumerate(scores):
        y = top + row * i + row / 2
        parts.append(_text(LABELS - 12, y + 4, s.system.label, "end"))
        if s.pass_at_1 is None:
            parts.append(_text(x(0) + 6, y + 4, "nothing graded", "start", "muted"))
            continue
        style = series_class(s.system)
        parts.append(_line(x(s.ci[0]), y, x(s.ci[1]), y, f"stroke {style} thick"))
        parts += [_line(x(end), y - 5, x(end), y + 5, f"stroke {style} thick") for end in s.ci]
        fill = "hollow" if s.system.expert == "none" else "fill"
        tip = f"{s.system.label}: {s.resolved} of {s.n}, {s.ci[0]:.1%} to {s.ci[1]:.1%}"
        parts.append(
            f'<circle class="stroke {style} {fill}" cx="{x(s.pass_at_1):.1f}" cy="{y:.1f}" r="6"><title>{escape(tip)}</title></circle>'
        )
        parts.append(_text(WIDTH - RIGHT, y + 4, f"{s.resolved} of {s.n}", "end", "muted"))
    described = "; ".join(f"{s.system.label} {s.resolved} of {s.n}" for s in scores)
    return _svg(height, f"Pass@1 with {confidence:.0%} intervals", described, parts)


def loop_survival(systems: Sequence[System], longer_than: int) -> str:
    """Share of trajectories whose longest run of one base command is longer than k, over k."""
    runs = {s.name: [longest_run(t) for t in s.graded] for s in systems if s.graded}
    end = max([longer_than + 2, *(max(r) for r in runs.values())])
    height, left, top = 300, 52, 26
    x, y = _scale(0, end, left, WIDTH - RIGHT), _scale(0, 1, height - 44, top)
    parts = _x_axis(x, nice_ticks(0, end, 8), top, height - 44, lambda v: f"{v:g}", grid=False)
    parts += _y_axis(y, [0, 0.25, 0.5, 0.75, 1], left, lambda v: f"{v:.0%}")
    parts.append(_line(x(longer_than), top, x(longer_than), height - 44, "reference"))
    side = "end" if longer_than > end / 2 else "start"
    parts.append(
        _text(
            x(longer_than) + (-5 if side == "end" else 5),
            top - 8,
            f"counted as a loop: longer than {longer_than}",
            side,
            "muted",
        )
    )
    for system in systems:
        lengths = runs.get(system.name)
        if not lengths:
            continue
        path, previous = f"M{x(0):.1f},{y(sum(r > 0 for r in lengths) / len(lengths)):.1f}", None
        for k in range(1, end + 1):
            share = sum(r > k for r in lengths) / len(lengths)
            if share != previous:
                path += f"H{x(k):.1f}V{y(share):.1f}"
            previous = share
        parts.append(
            f'<path class="line {series_class(system)}" d="{path}H{x(end):.1f}"><title>{escape(system.label)}</title></path>'
        )
    parts.append(
        _text((left + WIDTH - RIGHT) / 2, height - 6, "length of the longest run, k (steps)", "middle", "muted")
    )
    return _svg(
        height, "Share of trajectories with a run longer than k", f"one line for each of {len(runs)} systems", parts
    )


def distribution(systems: Sequence[System], title: str, unit: str, value: Callable[..., int]) -> str:
    """One histogram a system on a shared axis, each scaled to its own tallest bar; the tick is the median."""
    data = {s.name: sorted(value(t) for t in s.graded) for s in systems}
    top_value = max((max(v) for v in data.values() if v), default=1) or 1
    width = max(1, math.ceil((top_value + 1) / 40))
    row, top = 42, 8
    height = top + row * len(systems) + 46
    x = _scale(0, (top_value // width + 1) * width, LABELS, WIDTH - RIGHT)
    ticks = [t for t in nice_ticks(0, top_value, 8) if t == int(t)]
    shift = 0.5 if width == 1 else 0.0
    parts = _x_axis(lambda v: x(v + shift), ticks, top, height - 46, lambda v: f"{v:g}")
    for i, system in enumerate(systems):
        base = top + row * (i + 1) - 6
        parts.append(_text(LABELS - 12, base - 9, system.label, "end"))
        values = data[system.name]
        bins = Counter(v // width for v in values)
        for b, count in sorted(bins.items()):
            tall = (row - 12) * count / max(bins.values())
            covered = f"{b * width}" if width == 1 else f"{b * width} to {(b + 1) * width - 1}"
            parts.append(
                f'<rect class="bar {series_class(system)}" x="{x(b * width) + 1:.1f}" y="{base - tall:.1f}" '
                f'width="{max(1.0, x(width) - x(0) - 2):.1f}" height="{tall:.1f}"><title>{escape(system.label)}: {count} with {covered} {unit}</title></rect>'
            )
        parts.append(_line(x(0), base, WIDTH - RIGHT, base, "axis"))
        if values:
            middle = x(_median(values) + shift)
            parts.append(_line(middle, base - row + 10, middle, base + 4, "median"))
    parts.append(_text((LABELS + WIDTH - RIGHT) / 2, height - 8, f"{unit} (tick: median)", "middle", "muted"))
    described = "; ".join(f"{s.label}: median {_median(data[s.name]):g}" for s in systems if data[s.name])
    return _svg(height, title, described, parts)


def steps_distribution(systems: Sequence[System]) -> str:
    return distribution(systems, "Steps", "steps", lambda t: len(t.turns))


def calls_distribution(systems: Sequence[System]) -> str:
    with_expert = [s for s in systems if s.expert != "none"]
    return distribution(with_expert, "Expert calls", "expert calls", calls)


def curve(
    points: Sequence[tuple[float, float]], title: str, x_label: str, *, small: bool = False, mark: float | None = None
) -> str:
    """One measure over steps, with a line before step ``mark``. A ``small`` one is for a grid of several."""
    width, height, left, top = (310, 170, 48, 12) if small else (WIDTH, 280, 52, 14)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = _padded(min(ys), max(ys))
    first, last = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    x, y = _scale(first, last, left + 8, width - RIGHT), _scale(low, high, height - 42, top)
    ticks = [t for t in nice_ticks(first, last, 4 if small else 8) if t == int(t)]
    parts = _x_axis(x, ticks, top, height - 42, lambda v: f"{v:g}", grid=False)
    levels = next(t for about in (3 if small else 5, 5, 8, 13) if len(t := nice_ticks(low, high, about)) > 1)
    parts += _y_axis(y, levels, left, lambda v: f"{v:g}", width)
    if mark is not None and first < mark <= last:
        parts.append(_line(x(mark - 0.5), top, x(mark - 0.5), height - 42, "reference"))
    parts.append(f'<path class="line c1" d="M{"L".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)}"/>')
    if len(points) <= 60:
        parts += [
            f'<circle class="dot c1" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"><title>step {a:g}: {b:.4g}</title></circle>'
            for a, b in points
        ]
    parts.append(_text((left + width - RIGHT) / 2, height - 6, x_label, "middle", "muted"))
    return _svg(height, title, f"from {ys[0]:.3g} to {ys[-1]:.3g} over {len(points)} points", parts, width)


def series_class(system: System) -> str:
    """CSS classes of a system: colour by model, dashes without an expert."""
    order = MODEL_ORDER.index(system.model) if system.model in MODEL_ORDER else 3 + sum(system.model.encode()) % 3
    return f"c{order % PALETTE} {'alone' if system.expert == 'none' else 'helped'}"


def swatch(system: System) -> str:
    """The legend's line for a system; the name beside it is HTML."""
    return f'<svg class="swatch" viewBox="0 0 28 10" aria-hidden="true"><path class="line {series_class(system)}" d="M1,5H27"/></svg>'


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round tick values (1, 2 or 5 times a power of ten) within [low, high].

    >>> nice_ticks(0, 12, 6)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    """
    if high <= low:
        return [low]
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    start = math.ceil(low / step - 1e-9)
    stop = math.floor(high / step + 1e-9)
    return [round(i * step, 10) + 0.0 for i in range(start, stop + 1)]


def _padded(low: float, high: float) -> tuple[float, float]:
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return (0.0 if low >= 0 else low - (high - low) * 0.08), (0.0 if high <= 0 else high + (high - low) * 0.08)


def _median(values: Sequence[int]) -> float:
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _x_axis(
    x: Callable[[float], float],
    ticks: Sequence[float],
    top: float,
    bottom: float,
    label: Callable[[float], str],
    grid: bool = True,
) -> list[str]:
    parts = []
    for tick in ticks:
        parts.append(_line(x(tick), top if grid else bottom, x(tick), bottom + 4, "grid"))
        parts.append(_text(x(tick), bottom + 18, label(tick), "middle", "muted"))
    return parts


def _y_axis(
    y: Callable[[float], float], ticks: Sequence[float], left: float, label: Callable[[float], str], width: int = WIDTH
) -> list[str]:
    parts = []
    for tick in ticks:
        parts.append(_line(left, y(tick), width - RIGHT, y(tick), "grid"))
        parts.append(_text(left - 7, y(tick) + 4, label(tick), "end", "muted"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, css: str = "") -> str:
    shape = f' class="{css}"' if css else ""
    return f'<text{shape} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, title: str, described: str, parts: Sequence[str], width: int = WIDTH) -> str:
    label = escape(f"{title}: {described}" if described else title, quote=True)
    return f'<svg class="chart" viewBox="0 0 {width} {height:g}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
