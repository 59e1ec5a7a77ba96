"""The three figures of a report: entropy, outcome, control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from entrocraft.lab.report.curves import group_runs, saturated_spans
from entrocraft.lab.report.grid import entropy_grid, group_color, is_crowded, reward_grid
from entrocraft.lab.report.marks import (
    CROWD,
    MEASURED,
    SMOOTHING,
    Look,
    add_legend,
    draw_noisy,
    label_curves,
    line,
    points,
    say_if_empty,
    smooth,
)
from entrocraft.lab.report.matrix import control_grid
from entrocraft.lab.report.runs import Run
from entrocraft.lab.report.style import (
    BLUE,
    GREEN,
    INK,
    NARROW,
    PALETTE,
    PAPER,
    SHADE,
    SKY,
    SOFT,
    VERMILION,
    WIDE,
    label_steps,
    panels,
    style,
)

SAME_TARGET = 0.02
"""Targets that differ by at most this many nats are drawn as one line with its range."""

REALISED = "entropy/post_update_change"

CONTROL_KEYS = (
    "entropy/kept_fraction",
    "entropy/reachable_up",
    "entropy/reachable_down",
    "entropy/pressure",
)


def entropy_figure(runs: Sequence[Run], width: float = WIDE) -> Figure:
    """Draw entropy (nats per token) against the target, the picture that says if control worked.

    One run: target, band, single batches, the filter's estimate, and the probe with error bars of
    one standard error. Several runs: one color per name (seeds share it), the probe joined by a
    line, the target once if the runs share it. More than six names: a panel for each.

    Args:
        runs: at least one run.
        width: inches; below 6 the figure is laid out for a phone.
    """
    runs = _at_least_one(runs)
    if is_crowded(runs):
        return entropy_grid(runs, width)
    with style():
        narrow = width < 6
        figure, (axis,) = panels(width, [3.9 if narrow else 4.2])
        looks = group_looks(runs)
        handles: dict[str, Any] = {}
        _draw_targets(axis, runs, looks, handles)
        if len(runs) == 1:
            _draw_single_entropy(axis, runs[0], handles)
        else:
            for run in runs:
                _draw_one_of_several(axis, run, looks[run.group], len(runs), handles)
        axis.set_title("Entropy (nats per token)")
        _entropy_limits(axis, runs)
        label_steps([axis])
        several = len(runs) > 1
        if several and not narrow:
            label_curves(axis, runs, looks)
        add_legend(figure, looks if several and narrow else {}, handles, narrow)
        return figure


def reward_figure(runs: Sequence[Run], width: float = WIDE) -> Figure:
    """Draw the reward of the training batches and pass@k on the evaluation prompts.

    pass@1 has filled markers, the largest k open ones; error bars are one standard error. More than
    six names: a panel for the reward of each, and the last evaluation of all of them below.
    """
    runs = _at_least_one(runs)
    if is_crowded(runs):
        return reward_grid(runs, width)
    with style():
        narrow = width < 6
        figure, (reward, passes) = (
            panels(width, [2.7, 2.7]) if narrow else panels(width, [3.2], columns=2)
        )
        looks = group_looks(runs)
        handles: dict[str, Any] = {}
        for run in runs:
            look = looks[run.group]
            draw_noisy(reward, run, "reward", look, len(runs))
            for k in dict.fromkeys([*run.ks[:1], *run.ks[-1:]]):
                _draw_pass_at(passes, run, k, look, len(runs), handles)
        reward.set_title(f"Reward (running mean of {SMOOTHING} steps)")
        passes.set_title("Share of evaluation problems solved")
        passes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        say_if_empty(reward, "no reward logged")
        say_if_empty(passes, "no evaluation logged")
        label_steps([passes] if narrow else [reward, passes])
        add_legend(figure, looks if len(runs) > 1 else {}, handles, narrow)
        return figure


def control_figure(runs: Sequence[Run], width: float = WIDE) -> Figure | None:
    """Draw what the controller did: kept fraction, authority (nats per batch) and pressure.

    One run that measured them also shows predicted and realized changes (nats). Steps on which it
    was saturated are shaded for one run, and marked in a row per run for several. More than six
    names among ``runs``: a row of panels for each that was steered.

    Returns:
        The figure, or None when none of the runs was controlled and logged any of it.
    """
    looks = group_looks(_at_least_one(runs))
    among_others, crowded = len(runs) > 1, is_crowded(runs)
    runs = [run for run in runs if run.controlled and run.has(*CONTROL_KEYS)]
    if not runs:
        return None
    if crowded:
        return control_grid(runs, width)
    looks = {name: look for name, look in looks.items() if name in {run.group for run in runs}}
    with style():
        narrow = width < 6
        several = len(runs) > 1
        changes = not several and runs[0].has(REALISED)
        extra = [0.55 + 0.14 * len(runs)] if several else [1.7] if changes else []
        figure, axes = panels(width, [1.7, 2.0, 1.7, *extra])
        kept, authority, pressure = axes[:3]
        handles: dict[str, Any] = {}
        for run in runs:
            look = looks[run.group]
            draw_noisy(kept, run, "entropy/kept_fraction", look, len(runs))
            draw_noisy(pressure, run, "entropy/pressure", look, len(runs))
            _draw_authority(authority, run, look, several, handles)
        if several:
            _draw_saturation_rows(axes[3], runs, looks)
        else:
            if changes:
                _draw_changes(axes[3], runs[0], handles)
            _shade_saturation(axes, runs[0], handles)
        kept.set_title("Rollouts kept")
        kept.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        kept.set_ylim(top=max(1.02, kept.get_ylim()[1]) if kept.lines else None)
        authority.set_title("Entropy change within reach (nats per batch)")
        pressure.set_title("Pressure (above zero: more entropy wanted)")
        for axis in (kept, authority, pressure):
            say_if_empty(axis, "not logged")
        for axis in (authority, pressure):
            axis.axhline(0, color=SHADE, linewidth=0.8, zorder=0.5)
        label_steps(axes[-1:])
        add_legend(figure, looks if among_others else {}, handles, narrow)
        return figure


def _at_least_one(runs: Sequence[Run]) -> list[Run]:
    if not runs:
        raise ValueError("no runs to draw; give at least one, as load_run returns it")
    return list(runs)


def group_looks(runs: Sequence[Run]) -> dict[str, Look]:
    """Return group -> its color; of many groups the steered ones share one, the rest another."""
    groups = group_runs(runs)
    if is_crowded(runs):
        return {name: {"color": group_color(members)} for name, members in groups.items()}
    return {name: {"color": color} for name, color in zip(groups, PALETTE, strict=False)}


# Entropy ------------------------------------------------------------------------------------


def _draw_single_entropy(axis: Axes, run: Run, handles: dict[str, Any]) -> None:
    low, high = run.column("entropy/low"), run.column("entropy/high")
    both = np.isfinite(low) & np.isfinite(high)
    if run.controlled and both.any():
        axis.fill_between(run.steps[both], low[both], high[both], color=SHADE, alpha=0.3, lw=0)
        handles["band"] = Patch(color=SHADE, alpha=0.3, lw=0)
    if run.has(MEASURED):
        handles["training batch"] = line(axis, run, MEASURED, color=SKY, alpha=0.55, lw=0.8)
    if run.has("entropy/estimate"):
        handles["estimate"] = line(axis, run, "entropy/estimate", color=BLUE, alpha=0.8, lw=1.5)
    if run.has("entropy/probe"):
        handles["probe ± standard error"] = points(
            axis, run, "entropy/probe", color=VERMILION, linestyle="none", markersize=4.8
        )


def _draw_one_of_several(
    axis: Axes, run: Run, look: Look, crowd: int, handles: dict[str, Any]
) -> None:
    if run.has("entropy/probe"):
        if crowd <= CROWD and run.has(MEASURED):
            line(axis, run, MEASURED, **look, alpha=0.3, lw=0.6)
            handles["training batch"] = Line2D([], [], color=SOFT, alpha=0.45, lw=0.7)
        width, size = (1.3, 4.5) if crowd <= CROWD else (1.0, 3.0)
        points(axis, run, "entropy/probe", **look, lw=width, markersize=size)
        handles["probe ± standard error"] = Line2D(
            [], [], color=SOFT, marker="o", markersize=size, lw=width
        )
    else:
        draw_noisy(axis, run, MEASURED, look, crowd)
        handles[f"training batches (running mean of {SMOOTHING})"] = Line2D(
            [], [], color=SOFT, lw=1.5
        )


def _draw_targets(
    axis: Axes, runs: Sequence[Run], looks: dict[str, Look], handles: dict[str, Any]
) -> None:
    """Draw one line for targets that agree, else one per run in the run's color."""
    steered = [run for run in runs if run.controlled and run.has("entropy/target")]
    label = "target" if steered else "schedule (for reference, not applied)"
    shown = steered or [run for run in runs if run.has("entropy/target")]
    if not shown:
        return
    zorder = 2.6 if len(runs) == 1 else 3.5  # above the lines of several runs that sit on it
    dashed: Look = {"lw": 1.6, "linestyle": (0, (4, 2)), "zorder": zorder}
    if not steered:
        dashed = {"lw": 1.4, "linestyle": (0, (1, 2)), "zorder": zorder}
    steps = np.unique(np.concatenate([run.points("entropy/target")[0] for run in shown]))
    targets = np.full((len(shown), len(steps)), np.nan)
    for row, run in zip(targets, shown, strict=True):
        logged_at = run.points("entropy/target")[0]
        inside = (steps >= logged_at[0]) & (steps <= logged_at[-1])
        row[inside] = run.target_at(steps[inside])
    low, high = np.nanmin(targets, axis=0), np.nanmax(targets, axis=0)
    if (high - low).max() <= SAME_TARGET:
        if (high - low).max() > 0:
            axis.fill_between(steps, low, high, color=SOFT, alpha=0.25, lw=0, zorder=2.5)
        (handles[label],) = axis.plot(steps, np.nanmean(targets, axis=0), color=INK, **dashed)
        return
    for run in shown:
        line(axis, run, "entropy/target", **{**dashed, **{"color": looks[run.group]["color"]}})
    handles[f"{label} of each run"] = Line2D([], [], color=SOFT, **dashed)


def _entropy_limits(axis: Axes, runs: Sequence[Run]) -> None:
    """Fit everything but the few wildest batches; start at zero when that costs little."""
    seen = [np.percentile(v, [0.5, 99.5]) for r in runs if len(v := r.points(MEASURED)[1])]
    for run in runs:
        keys = ("entropy/target", "entropy/probe", "entropy/low", "entropy/high")
        seen += [v for key in keys if len(v := run.points(key)[1])]
    if not seen:
        say_if_empty(axis, "no entropy logged")
        return
    low, high = (float(f(np.concatenate(seen))) for f in (np.min, np.max))
    room = 0.06 * (high - low) or 0.05
    axis.set_ylim(0 if 0 <= low < 0.4 * high else low - room, high + room)


# Outcome and control ------------------------------------------------------------------------


def _draw_pass_at(
    axis: Axes, run: Run, k: int, look: Look, crowd: int, handles: dict[str, Any]
) -> None:
    width, size = (1.4, 4.5) if crowd <= CROWD else (1.0, 3.2)
    shape: Look = {"lw": width, "markersize": size}
    if k > 1:
        shape |= {"markerfacecolor": PAPER, "markeredgewidth": width - 0.2}
    points(axis, run, f"eval/pass@{k}", **look, **shape, stderr_alpha=0.5)
    handles[f"pass@{k}"] = Line2D([], [], color=SOFT, marker="o", **shape)


def _draw_authority(
    axis: Axes, run: Run, look: Look, several: bool, handles: dict[str, Any]
) -> None:
    up, down = run.column("entropy/reachable_up"), run.column("entropy/reachable_down")
    both = np.isfinite(up) & np.isfinite(down)
    if several:
        for column in (up, down):
            logged = np.isfinite(column)
            axis.plot(run.steps[logged], smooth(column[logged]), **look, lw=1.2)
        return
    if both.any():
        axis.fill_between(run.steps[both], down[both], up[both], color=GREEN, alpha=0.2, lw=0)
        for column in (up, down):
            axis.plot(run.steps[both], column[both], color=GREEN, lw=0.7, alpha=0.7)
        handles["within reach"] = Patch(facecolor=GREEN, alpha=0.3, lw=0)
    if run.has("entropy/chosen_change"):
        handles["change that was chosen"] = line(
            axis, run, "entropy/chosen_change", color=INK, lw=1.0
        )


def _draw_changes(axis: Axes, run: Run, handles: dict[str, Any]) -> None:
    axis.set_title("Change until the next batch (nats)")
    axis.axhline(0, color=SHADE, linewidth=0.8, zorder=0.5)
    handles["realized change, one standard error"] = points(
        axis, run, REALISED, color=SKY, markersize=2.5, stderr_alpha=0.35, linestyle="none"
    )
    handles["predicted change"] = line(axis, run, "entropy/predicted_change", color=BLUE, lw=1.3)


def _shade_saturation(axes: Sequence[Axes], run: Run, handles: dict[str, Any]) -> None:
    for start, end in saturated_spans(run):
        for axis in axes:
            axis.axvspan(start, end, color=VERMILION, alpha=0.16, lw=0, zorder=0.1)
        handles["saturated"] = Patch(facecolor=VERMILION, alpha=0.25, lw=0)


def _draw_saturation_rows(axis: Axes, runs: Sequence[Run], looks: dict[str, Look]) -> None:
    axis.set_title("Saturated steps, one row per run")
    for row, run in enumerate(runs):
        spans = [(start, end - start) for start, end in saturated_spans(run)]
        axis.broken_barh(spans, (row - 0.36, 0.72), color=looks[run.group]["color"], lw=0)
    axis.set_ylim(len(runs) - 0.4, -0.6)
    axis.set_yticks(range(len(runs)), [""] * len(runs))


__all__ = ["NARROW", "WIDE", "control_figure", "entropy_figure", "group_looks", "reward_figure"]
