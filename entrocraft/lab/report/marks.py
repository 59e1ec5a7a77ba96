"""Marks that the figures share: lines, points with error bars, names and the legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D

from entrocraft.lab.report.runs import Run
from entrocraft.lab.report.style import PAPER, SOFT, place_apart

MEASURED = "entropy/measured"

SMOOTHING = 11
"""Steps in the running mean drawn over noisy curves."""
CROWD = 4
"""Above this many runs the single training batches are left out of the entropy figure."""

Look = dict[str, Any]


def line(axis: Axes, run: Run, key: str, **look: Any) -> Line2D:
    """Draw the curve of ``key`` over the steps that logged it."""
    return axis.plot(*run.points(key), **look)[0]


def points(
    axis: Axes, run: Run, key: str, stderr_alpha: float = 0.8, **look: Any
) -> ErrorbarContainer:
    """Draw the values of ``key`` as points with error bars of one standard error."""
    steps, values = run.points(key)
    stderr = run.column(f"{key}_stderr")[np.isfinite(run.column(key))]
    container = axis.errorbar(
        steps,
        values,
        yerr=np.nan_to_num(stderr) if np.isfinite(stderr).any() else None,
        marker="o",
        markeredgecolor=look["color"] if "markerfacecolor" in look else PAPER,
        markeredgewidth=look.pop("markeredgewidth", 0.7 if look["markersize"] > 4 else 0.0),
        elinewidth=1.1,
        zorder=3,
        **look,
    )
    for bar in container[2]:
        bar.set_alpha(stderr_alpha)
        bar.set_linestyle("-")
    return container


def draw_noisy(axis: Axes, run: Run, key: str, look: Look, crowd: int) -> None:
    """Draw a curve of single batches: light as it is, and its running mean over it."""
    steps, values = run.points(key)
    if not len(steps):
        return
    if crowd <= CROWD:
        axis.plot(steps, values, **look, alpha=0.28, lw=0.7)
    axis.plot(steps, smooth(values), **look, lw=1.7 if crowd <= CROWD else 1.2)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over SMOOTHING values, over what there is at the ends."""
    n, reach = len(values), SMOOTHING // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(n) - reach, 0)
    last = np.minimum(np.arange(n) + reach + 1, n)
    return (total[last] - total[first]) / (last - first)


def say_if_empty(axis: Axes, text: str) -> None:
    """Write ``text`` into axes that hold no data."""
    if not axis.lines and not axis.collections:
        axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=SOFT)
        axis.set_yticks([])


def add_legend(
    figure: FigureBase,
    names: dict[str, Look],
    handles: dict[str, Any],
    narrow: bool,
    title: str | None = None,
) -> None:
    """Add the legend: ``names`` of the runs with their looks, then the kinds of mark.

    Args:
        figure: gets the legend at its upper left.
        names: run or group -> how it looks.
        handles: kind of mark -> an example.
        narrow: two columns.
        title: makes the legend the head of the whole figure; it then has two rows at most.
    """
    entries: list[tuple[str, Any]] = [
        (short_name(name), Line2D([], [], lw=2.4, **look)) for name, look in names.items()
    ]
    entries += handles.items()
    if not entries:
        return
    columns = min(len(entries), 5)
    if title is not None and len(entries) > 4:
        columns = -(-len(entries) // 2)
    legend = figure.legend(
        [handle for _, handle in entries],
        [f"entry {i}" for i in range(len(entries))],
        loc="outside upper left",
        ncols=2 if narrow else columns,
        columnspacing=1.6,
        handlelength=1.9,
        borderpad=0.2,
        title=title,
        alignment="left",
    )
    legend.get_title().set(fontweight="bold", fontsize=9.5)
    for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(name)  # set afterwards: matplotlib drops labels that begin with "_"


def label_curves(axis: Axes, runs: Sequence[Run], looks: dict[str, Look]) -> None:
    """Write each group's name at the right end of its curves, moved apart where they meet."""
    ends: dict[str, list[float]] = {}
    for run in runs:
        logged = (run.points(key)[1] for key in ("entropy/probe", MEASURED))
        values = next((values for values in logged if len(values)), None)
        if values is not None:
            ends.setdefault(run.group, []).append(float(values[-1]))
    low, high = axis.get_ylim()
    gap = 0.055 * (high - low)
    wanted = [float(np.mean(values)) for values in ends.values()]
    for name, y in zip(ends, place_apart(wanted, gap, low + gap / 2, high), strict=True):
        axis.annotate(
            short_name(name),
            xy=(1, y),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=looks[name]["color"],
            fontweight="bold",
            annotation_clip=False,
        )


def short_name(name: str, length: int = 26) -> str:
    """Return the name on one line, cut to ``length``."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"
