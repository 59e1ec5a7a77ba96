"""Tables of the peers' study and of tilt's options on the same work (variants.yaml).

    python benchmarks/peers.py runs/peers/results.json   # those of an `entrocraft compare`, printed
    python benchmarks/peers.py --docs                    # the committed results, into docs/peers.md
    python benchmarks/peers.py --figure                  # the peers, docs/img/peers_tradeoff.png

From three seeds on a number is the interquartile mean with its 95 % bootstrap interval; of two it
is the mean with the range. Time is relative to GRPO, of the options to tilt.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.pages import into_page, markdown
from entrocraft.lab.report.style import (
    BLUE,
    INK,
    ORANGE,
    SHADE,
    SOFT,
    WIDE,
    empty_figure,
    place_apart,
)
from entrocraft.lab.report.style import style as drawing_style

RESULTS = Path(__file__).parent / "results" / "peers.json"
VARIANTS = RESULTS.with_name("variants.json")
PAGE = Path(__file__).parent.parent / "docs" / "peers.md"
FIGURE = PAGE.parent / "img" / "peers_tradeoff.png"
REFERENCES = ("GRPO", "tilt")
"""Time is relative to the first of these that a comparison has."""
COLLAPSED, EXPLODED = 0.5, 1.5
"""Entropy at the end over entropy at the start, below and above which the table says so."""


def tables(results: dict[str, Any]) -> str:
    """Markdown: every method, nearest to the schedule first, and the values that were tried."""
    rows, tuning = results["groups"], results["tuning"]
    blocks = [_methods(rows, tuning), "\\* follows the schedule; for the others it is a reference."]
    if tuning:
        blocks += ["Values tried first, each on one seed of its own:", _trials(tuning)]
    return "\n\n".join([*blocks, f"Command: `{results['command']}`"])


def page() -> str:
    """Markdown of the committed results: the peers, then tilt's options."""
    peers, variants = (json.loads(path.read_text()) for path in (RESULTS, VARIANTS))
    heading = "### tilt's options on the same work"
    return "\n\n".join([tables(peers), heading, tables(variants)])


def _methods(rows: list[dict[str, Any]], tuning: dict[str, Any]) -> str:
    keys = pass_keys(rows)
    seconds = {row["group"]: row["seconds"]["center"] for row in rows}
    plain = next(seconds[name] for name in REFERENCES if name in seconds)
    head = ["method", "seeds", "value", "tracking error, nats", "final reward", *keys]
    table = []
    for row in sorted(rows, key=lambda row: _center(row["tracking_error"])):
        tried = tuning.get(row["group"])
        table.append(
            [
                row["group"] + (" *" if row["steered"] else ""),
                str(row["runs"]),
                f"{_short(tried['key'])} {tried['chosen']}" if tried else "",
                number(row["tracking_error"], 4),
                number(row["final_reward"]),
                *(number(row.get(key)) for key in keys),
                number(row["entropy_end"]),
                fate(row),
                f"{_center(row['kept_fraction']):.0%}" if row["kept_fraction"] else "",
                f"{row['seconds']['center'] / plain:.2f}",
            ]
        )
    return markdown([*head, "entropy at the end", "", "kept", "time"], table)


def pass_keys(rows: list[dict[str, Any]]) -> list[str]:
    """Every pass@k of the rows, by k: a set alone has another order in every process."""
    keys = {key for row in rows for key in row if key.startswith("pass@")}
    return sorted(keys, key=lambda key: int(key.removeprefix("pass@")))


def _trials(tuning: dict[str, Any]) -> str:
    table = []
    for name, found in tuning.items():
        trials = found.get("trials", {})
        values = [
            f"{value}: {_trial(error, trials.get(value))}"
            for value, error in found["tried"].items()
        ]
        table.append([name, _short(found["key"]), *values])
    widest = max(len(row) for row in table)
    rows = [row + [""] * (widest - len(row)) for row in table]
    columns = ["value: tracking error (entropy at the end), nats"] + [""] * (widest - 3)
    return markdown(["method", "key", *columns], rows)


def _trial(error: float | None, numbers: dict[str, float] | None) -> str:
    """Of one value; results of earlier versions have no more than the error."""
    if error is None:
        return "failed"
    return f"{error:.4f}" + (f" ({numbers['entropy_end']:.2f})" if numbers else "")


def number(spread: dict[str, Any] | None, digits: int = 2) -> str:
    """Centre, and what is around it."""
    if spread is None:
        return "-"
    center, low, high = (f"{spread[key]:.{digits}f}" for key in ("center", "low", "high"))
    return center if spread["n"] == 1 else f"{center} [{low}, {high}]"


def fate(row: dict[str, Any]) -> str:
    """What became of the entropy, in a word."""
    ratio = _center(row["entropy_end"]) / _center(row["entropy_start"])
    return "collapsed" if ratio < COLLAPSED else "exploded" if ratio > EXPLODED else ""


def _center(spread: dict[str, Any] | None) -> float:
    return math.inf if spread is None else spread["center"]


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Reward and pass@k at the end against the entropy that is left, one point per method."""
    widest = pass_keys(rows)[-1]
    rows = [row for row in rows if _center(row["entropy_end"]) < EXPLODED]
    panels = {"final_reward": "reward, last 20 steps", widest: f"{widest} at the end"}
    figure = empty_figure(WIDE, 4.0 * len(panels))
    for axis, (key, title) in zip(figure.subplots(len(panels), 1), panels.items(), strict=True):
        axis.set_title(title)
        axis.set_xlabel("entropy at the end, nats per token")
        _scatter(axis, rows, key)
    dots = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=color)
        for color in (BLUE, ORANGE)
    ]
    figure.legend(
        dots, ["steered by the schedule", "not steered"], loc="outside upper right", ncols=2
    )
    return figure


def _scatter(axis: Axes, rows: list[dict[str, Any]], key: str) -> None:
    """Points, and their names in a column at either side."""
    points = sorted(
        (_center(row["entropy_end"]), _center(row[key]), row["group"], row["steered"])
        for row in rows
    )
    for x, y, _, steered in points:
        axis.plot(x, y, "o", color=BLUE if steered else ORANGE, markersize=5, zorder=3)
    axis.set_xmargin(0.08)
    axis.margins(y=0.08)
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    axis.set_xlim(left, right)
    axis.set_ylim(low, high)
    middle = len(points) // 2
    for side, column in ((0, points[:middle]), (1, points[middle:])):
        gap = (high - low) / 17
        places = place_apart([y for _, y, _, _ in column], gap, low + gap / 2, high - gap / 2)
        for (x, y, name, _), place in zip(column, places, strict=True):
            edge = (left, right)[side]
            axis.plot([x, edge], [y, place], color=SHADE, linewidth=0.5, zorder=1)
            axis.annotate(
                name,
                (edge, place),
                xytext=(5 if side else -5, 0),
                textcoords="offset points",
                ha="left" if side else "right",
                va="center",
                fontsize=8,
                fontweight="bold" if name in REFERENCES else "normal",
                color=INK if name in REFERENCES else SOFT,
            )
    axis.tick_params(axis="y", pad=72)


def main() -> None:
    """Print, or write into the page, or draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="results.json")
    parser.add_argument("--docs", action="store_true", help=f"write into {PAGE.name} and stop")
    parser.add_argument("--figure", action="store_true", help=f"draw {FIGURE.name} and stop")
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    if options.figure:
        with drawing_style():
            draw(results["groups"]).savefig(FIGURE, dpi=160, facecolor="white")
        return
    if options.docs:
        into_page(page(), PAGE)
    else:
        print(tables(results))


if __name__ == "__main__":
    main()
