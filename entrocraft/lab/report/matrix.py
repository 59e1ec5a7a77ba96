"""What the controller did in more groups than one pair of axes can hold: a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from entrocraft.lab.report.curves import Curve, curve, group_runs, saturated_spans, usual_limit
from entrocraft.lab.report.grid import (
    HEAD,
    draw_own,
    mark_leaving,
    name_panel,
    say_not_logged,
    seed_handles,
)
from entrocraft.lab.report.marks import add_legend
from entrocraft.lab.report.runs import Run
from entrocraft.lab.report.style import BLUE, SHADE, SOFT, VERMILION, empty_figure, style

ROW = 0.95
"""Height of a group's row with its name, in inches."""

COLUMNS = {
    "Rollouts kept": ("entropy/kept_fraction",),
    "Change within reach (nats per batch)": ("entropy/reachable_up", "entropy/reachable_down"),
    "Pressure (above zero: more entropy)": ("entropy/pressure",),
}
NARROW_TITLES = ("Rollouts kept", "Within reach", "Pressure")

_SATURATED = 0.3


def control_grid(runs: Sequence[Run], width: float) -> Figure | None:
    """Draw kept fraction, authority (nats per batch) and pressure, one row per group.

    A group that kept every rollout and logged nothing else has no row.

    The curves are running means, over the seeds as well; saturated steps are shaded, darker where
    more seeds were saturated.

    Args:
        runs: steered runs that logged any of it.
        width: inches; below 6 the figure is laid out for a phone.

    Returns:
        The figure, or None when no group has a row.
    """
    groups = {name: found for name, found in group_runs(runs).items() if _chose(found)}
    if not groups:
        return None
    with style():
        narrow = width < 6
        figure = empty_figure(width, ROW * len(groups) + HEAD + 0.3)
        grid = figure.subplots(len(groups), len(COLUMNS), sharex=True, sharey="col", squeeze=False)
        for row, (name, found) in zip(grid, groups.items(), strict=True):
            name_panel(row[0], name, "", width, len(COLUMNS))
            for axis in row:
                axis.tick_params(labelsize=8)
                _shade_saturation(axis, found)
        members = list(groups.values())
        kept, authority, pressure = (
            _draw_column(column, members, keys)
            for column, keys in zip(grid.T, COLUMNS.values(), strict=True)
        )
        if any(kept):
            grid[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            grid[0, 0].set_ylim(top=max(1.02, grid[0, 0].get_ylim()[1]))
        _fit_about_zero(list(grid[:, 1]), authority)
        _fit_about_zero(list(grid[:, 2]), pressure)
        lines = grid[0, 0].get_title(loc="left").count("\n") + 1
        for axis, title in zip(grid[0], NARROW_TITLES if narrow else COLUMNS, strict=True):
            axis.annotate(
                title,
                xy=(0, 1),
                xycoords="axes fraction",
                xytext=(0, 11 + 11 * lines),
                textcoords="offset points",
                color=SOFT,
            )
        grid[0, 0].xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        figure.supxlabel("optimizer step", fontsize=9, color=SOFT)
        handles: dict[str, Any] = seed_handles(groups)
        if any(saturated_spans(run) for found in members for run in found):
            handles["saturated"] = Patch(facecolor=VERMILION, alpha=_SATURATED, lw=0)
        add_legend(figure, {}, handles, narrow, "What the controller did")
        return figure


def _chose(runs: Sequence[Run]) -> bool:
    """Say whether any of the runs chose between rollouts or could tell what a choice would do."""
    kept, *others = COLUMNS.values()
    keys = [key for column in others for key in column]
    return any(run.has(*keys) or (run.points(*kept)[1] < 1).any() for run in runs)


def _draw_column(
    axes: Sequence[Axes], groups: Sequence[Sequence[Run]], keys: Sequence[str]
) -> list[list[Curve]]:
    """Draw one quantity of every group, and return its curves by group."""
    curves = []
    for axis, members in zip(axes, groups, strict=True):
        found = [curve(members, key, smoothed=True) for key in keys]
        curves.append([one for one in found if one is not None])
        for one in curves[-1]:
            draw_own(axis, one, BLUE)
        if not curves[-1]:
            say_not_logged(axis)
    return curves


def _fit_about_zero(axes: Sequence[Axes], curves: Sequence[Sequence[Curve]]) -> None:
    """Fit the shared axis to zero and what is usual, and mark the curves that leave it."""
    logged = [found for found in curves if found]
    if not logged:
        return
    top = usual_limit([max(0.0, *(c.high.max() for c in found)) for found in logged])
    low = -usual_limit([max(0.0, *(-c.low.min() for c in found)) for found in logged])
    room = 0.06 * (top - low) or 0.05
    axes[0].set_ylim(low - room, top + room)
    for axis, found in zip(axes, curves, strict=True):
        axis.axhline(0, color=SHADE, linewidth=0.8, zorder=0.5)
        for one in found:
            mark_leaving(axis, one, BLUE)


def _shade_saturation(axis: Axes, runs: Sequence[Run]) -> None:
    for run in runs:
        axis.broken_barh(
            [(start, end - start) for start, end in saturated_spans(run)],
            (0, 1),
            transform=axis.get_xaxis_transform(),
            color=VERMILION,
            alpha=_SATURATED / len(runs),
            lw=0,
            zorder=0.1,
        )
