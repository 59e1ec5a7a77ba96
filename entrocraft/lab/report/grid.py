"""Small multiples: a panel for each of more groups than one pair of axes can hold."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from entrocraft.lab.report.curves import Curve, curve, entropy_curve, group_runs, usual_limit
from entrocraft.lab.report.groups import group_summaries
from entrocraft.lab.report.intervals import ENOUGH
from entrocraft.lab.report.marks import SMOOTHING, Look, add_legend
from entrocraft.lab.report.runs import Run
from entrocraft.lab.report.shares import draw_shares, shares_height
from entrocraft.lab.report.style import (
    BLUE,
    INK,
    PAPER,
    SHADE,
    SOFT,
    VERMILION,
    empty_figure,
    style,
)
from entrocraft.lab.report.summary import Summary, summarize

TOGETHER = 6
"""Up to this many groups share one pair of axes; more get a panel each."""

PANEL = 1.3
"""Height of a panel with its title, in inches."""
HEAD = 0.8
"""Height of a legend and a step axis, in inches."""
LETTER = 4.7
"""Width of a letter in a panel's title, in points."""
FINE, COARSE = 75, 20
"""Points of a curve in its own panel and in the background of the others."""

_TARGET: Look = {"color": INK, "lw": 1.1, "linestyle": (0, (3.5, 1.8))}
_REFERENCE: Look = {"color": SOFT, "lw": 1.1, "linestyle": (0, (1, 1.8))}
_OWN: Look = {"lw": 1.8}
_SEED: Look = {"lw": 0.8, "alpha": 0.6}
_BAND: Look = {"alpha": 0.22, "lw": 0}
_OTHERS: Look = {"color": SHADE, "lw": 0.6, "alpha": 0.7}


def is_crowded(runs: Sequence[Run]) -> bool:
    """Say whether there are too many groups for one pair of axes."""
    return len(group_runs(runs)) > TOGETHER


def group_color(runs: Sequence[Run]) -> str:
    """Return the color of a group among many: blue when all its runs were steered."""
    return BLUE if all(run.controlled for run in runs) else VERMILION


def entropy_grid(runs: Sequence[Run], width: float) -> Figure:
    """Draw the entropy (nats per token) of each group in its own panel, with its target.

    The vertical axis fits what is usual; a curve that leaves it is marked with how far it goes.
    """
    groups = group_runs(runs)
    curves = {name: entropy_curve(members) for name, members in groups.items()}
    numbers = _numbers(runs, lambda s: s.tracking_error if s.controlled else None, "{:.3f}")
    with style():
        figure = empty_figure(width, PANEL * _shape(len(groups), width)[0] + HEAD)
        axes = _draw_panels(figure, groups, curves, numbers, width)
        handles, asked_for = _draw_targets(axes, groups)
        tops = [float(c.high.max()) for c in curves.values() if c is not None]
        _fit(axes, groups, curves, [usual_limit(tops), *asked_for] if tops else [])
        title = "Entropy (nats per token)"
        if any(numbers.values()):
            title += "; the number is the tracking error"
        add_legend(figure, {}, handles | _handles(groups), width < 6, title)
        return figure


def reward_grid(runs: Sequence[Run], width: float) -> Figure:
    """Draw the reward of each group in its own panel, and below them what every group solved."""
    groups = group_runs(runs)
    curves = {name: curve(members, "reward", smoothed=True) for name, members in groups.items()}
    numbers = _numbers(runs, lambda s: s.final_reward, "{:.2f}")
    evaluated = group_summaries([s for s in map(summarize, runs) if s.pass_at])
    with style():
        heights = [PANEL * _shape(len(groups), width)[0] + HEAD]
        heights += [shares_height(len(evaluated))] if evaluated else []
        figure = empty_figure(width, sum(heights))
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        axes = _draw_panels(parts[0], groups, curves, numbers, width)
        tops = [float(c.high.max()) for c in curves.values() if c is not None]
        _fit(axes, groups, curves, tops)
        title = f"Reward (running mean of {SMOOTHING} steps); the number is the final reward"
        add_legend(parts[0], {}, _handles(groups), width < 6, title)
        if evaluated:
            colors = {name: group_color(members) for name, members in groups.items()}
            draw_shares(parts[1], evaluated, colors, width < 6)
        return figure


# Panels -------------------------------------------------------------------------------------


def _shape(panels: int, width: float) -> tuple[int, int]:
    """Return rows and columns: two columns on a phone, else five or four, whichever fill up."""
    columns = 2 if width < 6 else min((5, 4), key=lambda n: -panels % n)
    return -(-panels // columns), columns


def name_panel(axis: Axes, name: str, number: str, width: float, columns: int) -> None:
    """Write a name over a panel, on two lines where it is long, and a number at the right."""
    letters = int((width / columns - 0.25) * 72 / LETTER) - len(number) - bool(number)
    lines = textwrap.wrap(name, letters, max_lines=2, placeholder="…")
    axis.set_title("\n".join(lines), fontsize=8.5, pad=4)
    axis.set_title(number, loc="right", fontsize=8.5, fontweight="normal", color=SOFT, pad=4)


def _draw_panels(
    figure: FigureBase,
    groups: Mapping[str, Sequence[Run]],
    curves: Mapping[str, Curve | None],
    numbers: Mapping[str, str],
    width: float,
) -> list[Axes]:
    """Draw a panel for each group, in order, and return them."""
    rows, columns = _shape(len(groups), width)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat[: len(groups)])
    for spare in grid.flat[len(groups) :]:
        spare.remove()
    for axis in axes[-columns:]:
        axis.tick_params(labelbottom=True)
    for axis, (name, members) in zip(axes, groups.items(), strict=True):
        name_panel(axis, name, numbers[name], width, columns)
        axis.tick_params(labelsize=8)
        others = [c for other, c in curves.items() if other != name and c is not None]
        if others:
            _draw_others(axis, others)
        own = curves[name]
        if own is None:
            say_not_logged(axis)
        else:
            draw_own(axis, own, group_color(members))
    axes[0].xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes[0].yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    figure.supxlabel("optimizer step", fontsize=9, color=SOFT)
    return axes


def say_not_logged(axis: Axes) -> None:
    """Write into a panel that its group did not log what the others show."""
    look: Look = {"ha": "center", "va": "center", "color": SOFT, "fontsize": 8}
    axis.text(0.5, 0.5, "not logged", transform=axis.transAxes, **look)


def draw_own(axis: Axes, own: Curve, color: str) -> None:
    """Draw the mean of the seeds over their range, or over the seeds when those are two."""
    if len(own.seeds) >= ENOUGH:
        steps, low, high = _thin(FINE, own.steps, own.low, own.high)
        axis.fill_between(steps, low, high, color=color, zorder=2.2, **_BAND)
    elif len(own.seeds) > 1:
        for seed in own.seeds:
            axis.plot(*_thin(FINE, *seed), color=color, zorder=2.2, **_SEED)
    look: Look = {**_OWN, "marker": "o", "markersize": 3} if len(own.steps) == 1 else _OWN
    axis.plot(*_thin(FINE, own.steps, own.mean), color=color, zorder=3, **look)


def _draw_others(axis: Axes, others: Sequence[Curve]) -> None:
    """Draw the means of other groups as one faint line with gaps."""
    lines = [np.array(_thin(COARSE, other.steps, other.mean)) for other in others]
    gap = np.full((2, 1), np.nan)
    axis.plot(*np.hstack([part for line in lines for part in (line, gap)]), zorder=1.5, **_OTHERS)


def _thin(most: int, *columns: np.ndarray) -> list[np.ndarray]:
    """Return at most so many points, evenly spread, the first and the last among them."""
    some = np.unique(np.linspace(0, len(columns[0]) - 1, most).round().astype(int))
    return [column[some] for column in columns]


def _draw_targets(
    axes: Sequence[Axes], groups: Mapping[str, Sequence[Run]]
) -> tuple[dict[str, Any], list[float]]:
    """Draw every group's target; return the legend's entries and the values asked for."""
    lines: dict[bool, Line2D] = {}
    asked_for: list[float] = []
    for axis, members in zip(axes, groups.values(), strict=True):
        target, steered = curve(members, "entropy/target"), group_color(members) == BLUE
        if target is not None:
            look = _TARGET if steered else _REFERENCE
            (lines[steered],) = axis.plot(target.steps, target.mean, **look, zorder=3.5)
            asked_for += target.mean.tolist() if steered else []
    labels = {True: "target", False: "schedule, not applied"}
    handles = {label: lines[steered] for steered, label in labels.items() if steered in lines}
    return handles, asked_for


def _fit(
    axes: Sequence[Axes],
    groups: Mapping[str, Sequence[Run]],
    curves: Mapping[str, Curve | None],
    shown: Sequence[float],
) -> None:
    """Let the shared vertical axis end above all of ``shown``; mark the curves that leave it."""
    if not shown:
        return
    top = max(shown)
    low = min(*shown, *(float(c.low.min()) for c in curves.values() if c is not None))
    room = 0.06 * (top - low) or 0.05
    axes[0].set_ylim(0 if 0 <= low < 0.4 * top else low - room, top + room)
    for axis, (name, members) in zip(axes, groups.items(), strict=True):
        own = curves[name]
        if own is not None:
            mark_leaving(axis, own, group_color(members))


def mark_leaving(axis: Axes, own: Curve, color: str) -> None:
    """Write how far a curve goes where it leaves the axis, if it does."""
    bottom, top = axis.get_ylim()
    ways = (
        (own.mean > top, own.high > top, "↑", own.high.max(), 1),
        (own.mean < bottom, own.low < bottom, "↓", own.low.min(), 0),
    )
    for mean, outermost, arrow, end, edge in ways:
        if not outermost.any():
            continue
        first = int(np.argmax(mean if mean.any() else outermost))
        late = own.steps[first] > 0.6 * axis.get_xlim()[1]
        step = own.steps[max(first - 1, 0) if late else first]
        axis.annotate(
            f"{arrow} to {end:.2g}",
            xy=(step, edge),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if late else 5, -2 if edge else 2),
            textcoords="offset points",
            ha="right" if late else "left",
            va="top" if edge else "bottom",
            color=color,
            fontsize=8,
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
            zorder=4,
        )


def seed_handles(groups: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Return the legend's entries for the seeds of each group."""
    seeds = {len(members) for members in groups.values()}
    mean = ", mean of the seeds" if max(seeds) > 1 else ""
    colors = {group_color(members) for members in groups.values()}
    handles: dict[str, Any] = {
        label + mean: Line2D([], [], color=color, **_OWN)
        for label, color in (("steered", BLUE), ("not steered", VERMILION))
        if color in colors
    }
    if max(seeds) >= ENOUGH:
        handles["lowest to highest seed"] = Patch(facecolor=SOFT, **_BAND)
    if 2 in seeds:
        handles["single seeds, of two"] = Line2D([], [], color=SOFT, **_SEED)
    return handles


def _handles(groups: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    return {**seed_handles(groups), "the others": Line2D([], [], **_OTHERS)}


def _numbers(
    runs: Sequence[Run], value: Callable[[Summary], float | None], form: str
) -> dict[str, str]:
    """Return group -> the middle of ``value`` over its seeds as text, empty without any."""
    groups = group_summaries([summarize(run) for run in runs])
    spreads = {group.name: group.spread(value) for group in groups}
    return {name: form.format(s.center) if s else "" for name, s in spreads.items()}
