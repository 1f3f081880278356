"""One picture: overhead of an action by peer, and trajectories side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OURS_COLOUR, PEER_COLOUR = "#1b6e53", "#777777"


def save(results: dict[str, Any], path: Path) -> None:
    """Write ``path`` (PNG) from what :mod:`benchmarks.sandbox` measured; panels without data are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: list[Any] = []
    if "overhead" in results:
        panels += [
            lambda axis, a=action: _peers(axis, a, results["overhead"]["actions"][a])
            for action in results["overhead"]["actions"]
        ]
    if "trajectory" in results:
        panels.append(lambda axis: _scaling(axis, results["trajectory"]))
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(5.6 * len(panels), 4.2), squeeze=False)
    for draw, axis in zip(panels, axes[0], strict=True):
        draw(axis)
        axis.spines[["top", "right"]].set_visible(False)
    machine = results["machine"]
    figure.suptitle(
        f"{machine['cores']} cores, Docker {machine['docker']}, load {machine['load_before'][0]} before, commit {machine['commit']}",
        fontsize=9,
        color="#555555",
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plain(value: float, place: object) -> str:
    return f"{value:g}"


def _peers(axis: Any, action: str, peers: dict[str, Any]) -> None:
    ordered = sorted(peers.items(), key=lambda item: -item[1]["p50"])
    places = range(len(ordered))
    for place, (name, item) in zip(places, ordered, strict=True):
        colour = OURS_COLOUR if name.startswith("ours") else PEER_COLOUR
        middle, high = 1000 * item["p50"], 1000 * item["p99"]
        axis.plot([middle, high], [place, place], color=colour, linewidth=1.5, alpha=0.6)
        axis.plot([high], [place], marker="|", markersize=10, color=colour)
        axis.plot([middle], [place], marker="o", markersize=8, color=colour)
        axis.annotate(
            f"{middle:.1f}", (middle, place), (0, 8), textcoords="offset points", ha="center", fontsize=8, color=colour
        )
    axis.set_yticks(
        list(places),
        [
            name.replace(" DockerDeployment,", "\nDockerDeployment,").replace("agent D", "agent\nD")
            for name, _ in ordered
        ],
        fontsize=8,
    )
    axis.set_xscale("log")
    axis.margins(x=0.12, y=0.12)
    axis.xaxis.set_major_formatter(_plain)
    axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axis.set_xlabel("ms for one action (log): dot p50, end of the line p99")
    axis.set_title(f"One action: {action}" + (" of output" if action != "true" else ""), fontsize=10)


def _scaling(axis: Any, rows: list[dict[str, Any]]) -> None:
    for name in dict.fromkeys(row["peer"] for row in rows):
        own = [row for row in rows if row["peer"] == name]
        colour = OURS_COLOUR if name.startswith("ours") else PEER_COLOUR
        axis.plot([row["at_once"] for row in own], [row["wall"] for row in own], marker="o", color=colour, label=name)
        for row in own:
            note = f"{row['wall']:.1f} s" + (f", {row['failures']} failed" if row["failures"] else "")
            below = name.startswith("ours")
            axis.annotate(
                note,
                (row["at_once"], row["wall"]),
                (0, -14 if below else 8),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(_plain)
    ticks = sorted({row["at_once"] for row in rows})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.margins(x=0.15, y=0.2)
    axis.set_xlabel("trajectories at once")
    axis.set_ylabel("wall seconds for all (log)")
    axis.set_title("50 actions: open, act, test, diff, close", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
