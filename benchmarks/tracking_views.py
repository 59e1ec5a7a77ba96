"""Tables and figure of `tracking.py`, from its result file alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from benchmarks.pages import markdown
from benchmarks.tracking_study import Part, Study
from entrocraft import schedules
from entrocraft.lab.report.style import (
    BLUE,
    DASHES,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    SOFT,
    VERMILION,
    WIDE,
    label_steps,
    style,
)

BOUND = 0.010
"""Nats of mean tracking error that count as following the schedule ..."""
BOUND_SHARE = 0.01
"""... or this share of the initial entropy, whichever is larger."""
RESAMPLES = 10_000
COLUMNS = 3
SMALLEST_SPAN = 0.1
"""Nats that a panel shows at least: a flat curve is not blown up to noise."""

Cells = dict[str, dict[str, Any]]


# Tables -------------------------------------------------------------------------------------


DOCS = ("method", "schedule", "seeds", "tracking error", "bias", "bound", "holds")
DOCS += ("final reward", "pass@8, start -> end", "kept", "saturated")
"""Columns that the documentation shows."""


def tables(
    study: Study, cells: Cells, missing: list[str], columns: tuple[str, ...] | None = None
) -> str:
    """Markdown: one table for every part, and the answers to jumps and factors where it has any.

    `columns` names those of the parts' tables that are shown; None shows all.
    """
    blocks = [
        "Means over seeds with 95 % intervals (Student's t). Tracking error: mean distance of the "
        "probe from the target after step 20, in nats per token; bias: with its sign. The bound is "
        f"{BOUND:.3f} nats or {BOUND_SHARE:.0%} of the initial entropy, whichever is larger, times "
        "the schedule's factor; it holds if mean and upper end of the interval are within."
    ]
    for part in study.parts:
        blocks.append(f"### {part.name}: {part.title}" if part.title else f"### {part.name}")
        blocks.append(_part_table(study, part, cells, columns))
        blocks += [text for text in (_step_table(study, part, cells),) if text]
        blocks += [text for text in (_factor_table(part, cells),) if text]
        absent = [
            f"{method}/{schedule}/{seed}"
            for method in _methods(part)
            for schedule in part.schedules
            for seed in part.seeds
            if f"{method}/{schedule}/{seed}" in missing
        ]
        if absent:
            shown = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
            blocks.append(f"{len(absent)} cells of this table are missing: {shown}")
    return "\n\n".join(blocks) + "\n\nCommand: `python benchmarks/tracking.py`"


def readme_table(study: Study, cells: Cells) -> str:
    """Markdown: the reference of the part `peers` and, of each rival, its best setting."""
    [part] = [part for part in study.parts if part.name == "peers"]
    if part.reference is None:
        raise ValueError("the part 'peers' has no reference, which this table starts from")
    rows = []
    for name, methods in {part.reference: [part.reference], **part.better_of}.items():
        groups = []
        for schedule in part.schedules:
            best = _best(part, cells, methods, schedule)
            groups.append(_group(cells, part, best[0], schedule) if best else [])
        row = [f"**{name}**" if name == part.reference else name]
        row += ["/".join(sorted({str(len(group)) for group in groups}))]
        for key, digits in (("tracking_error", 3), ("final_reward", 2), ("kept_fraction", 2)):
            for group in groups:
                row += [_interval(_values(group, lambda cell, key=key: cell[key]), digits)]
        rows.append(row)
    columns = ("error", "reward", "kept")
    head = [f"{column}, {schedule}" for column in columns for schedule in part.schedules]
    return markdown(["method", "seeds", *head], rows)


def _part_table(study: Study, part: Part, cells: Cells, columns: tuple[str, ...] | None) -> str:
    # the k of pass@k are settings too
    names = list(dict.fromkeys(name for cell in cells.values() for name in cell["pass_at"]))
    passes = {f"{name}, start -> end": name for name in (names[:1] + names[1:][-1:])}
    head = ["method", "schedule", "seeds", "tracking error", "bias", "bound", "holds"]
    head += ["final reward", *passes, "kept", "saturated", "pressure", "probe's stderr"]
    rows = []
    for schedule in part.schedules:
        for method in _methods(part):
            group = _group(cells, part, method, schedule)
            if not group:
                continue
            initial = float(np.mean([cell["initial"] for cell in group]))
            bound = max(BOUND, BOUND_SHARE * initial) * study.bound_factor(schedule)
            errors = _values(group, lambda cell: cell["tracking_error"])
            row = [method, schedule, str(len(group)), _interval(errors, 4)]
            row += [_interval(_values(group, lambda cell: cell["tracking_bias"]), 4)]
            row += [f"{bound:.4f}", holds(errors, bound)]
            row += [_interval(_values(group, lambda cell: cell["final_reward"]))]
            for name in passes.values():
                ends = [_values(group, lambda c, i=i, n=name: c["pass_at"][n][i]) for i in (0, 1)]
                row += [f"{_mean(ends[0])} -> {_interval(ends[1])}"]
            for key, digits in (("kept_fraction", 2), ("saturated_share", 2), ("pressure", 2)):
                row += [_mean(_values(group, lambda cell, key=key: cell[key]), digits)]
            row += [_mean(_values(group, lambda cell: cell["probe_stderr"]), 4)]
            rows.append(row)
    shown = [i for i, name in enumerate(head) if columns is None or name in columns]
    rows = [[row[i] for i in shown] for row in rows]
    return markdown([head[i] for i in shown], rows) if rows else "Nothing has been run yet."


def confidence(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval (Student's t); a single value has none (NaN)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


def interval(values: list[float], digits: int = 3) -> str:
    """Mean and half-width of the 95 % interval, as text."""
    mean, half = confidence(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def holds(errors: list[float], bound: float) -> str:
    """Say whether the mean error, and the interval's upper end too, are within the bound."""
    if not errors:
        return "–"
    mean, half = confidence(errors)
    if mean > bound:
        return "no"
    if math.isnan(half):
        return "yes (one seed)"
    return "yes" if mean + half <= bound else "the mean only"


def _step_table(study: Study, part: Part, cells: Cells) -> str | None:
    rows = []
    for schedule in part.schedules:
        for method in _methods(part):
            group = [
                cell["step_response"]
                for cell in _group(cells, part, method, schedule)
                if "step_response" in cell
            ]
            if not group:
                continue
            arrivals = _values(group, lambda answer: answer["arrival_steps"])
            overshoots = _values(group, lambda answer: answer["overshoot"])
            row = [method, schedule, str(study.step_at(schedule)), f"{len(arrivals)}/{len(group)}"]
            rows.append([*row, _interval(arrivals, 1), _interval(overshoots, 4)])
    head = ["method", "schedule", "jump at step", "seeds that arrive"]
    head += ["steps until within 0.02 nats", "overshoot, nats"]
    return markdown(head, rows) if rows else None


def _factor_table(part: Part, cells: Cells) -> str | None:
    if not part.better_of:
        return None
    rows = []
    for schedule in part.schedules:
        for name, methods in part.better_of.items():
            best = _best(part, cells, methods, schedule)
            if best is None:
                continue
            method, theirs, ours = best
            ratio, low, high = factor(theirs, ours)
            interval_text = "" if math.isnan(low) else f" ({low:.1f} to {high:.1f})"
            chosen = f"{method} of {len(methods)}" if len(methods) > 1 else method
            row = [name, schedule, chosen, str(len(ours))]
            rows.append([*row, f"{ratio:.1f}{interval_text}"])
    head = ["against", "schedule", "its best setting", "seeds"]
    head += [f"error as a multiple of {part.reference}'s (95 %, bootstrap over seeds)"]
    return markdown(head, rows) if rows else None


def _best(
    part: Part, cells: Cells, methods: list[str], schedule: str
) -> tuple[str, list[float], list[float]] | None:
    """The method of lowest mean error, with its errors and the reference's on the same seeds."""
    found = []
    for method in methods:
        pairs = [
            (cells[theirs]["tracking_error"], cells[ours]["tracking_error"])
            for seed in part.seeds
            if (theirs := f"{method}/{schedule}/{seed}") in cells
            and (ours := f"{part.reference}/{schedule}/{seed}") in cells
        ]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            found.append((method, [p[0] for p in pairs], [p[1] for p in pairs]))
    return min(found, key=lambda item: float(np.mean(item[1])), default=None)


def factor(theirs: list[float], ours: list[float]) -> tuple[float, float, float]:
    """Ratio of mean errors and its 95 % bootstrap interval; seeds are drawn as pairs.

    A single seed has no interval (NaN).
    """
    ratio = float(np.mean(theirs) / np.mean(ours))
    if len(ours) < 2:
        return ratio, math.nan, math.nan
    draws = np.random.default_rng(0).integers(len(ours), size=(RESAMPLES, len(ours)))
    ratios = np.asarray(theirs)[draws].mean(1) / np.asarray(ours)[draws].mean(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return ratio, float(low), float(high)


def _methods(part: Part) -> list[str]:
    """The part's methods, the reference first."""
    return list(dict.fromkeys([*([part.reference] if part.reference else []), *part.methods]))


def _group(cells: Cells, part: Part, method: str, schedule: str) -> list[dict[str, Any]]:
    keys = [f"{method}/{schedule}/{seed}" for seed in part.seeds]
    return [cells[key] for key in keys if key in cells]


def _values(group: list[dict[str, Any]], read: Callable[[Any], float | None]) -> list[float]:
    found = (read(cell) for cell in group)
    return [value for value in found if value is not None]


def _interval(values: list[float], digits: int = 3) -> str:
    return interval(values, digits) if values else "–"


def _mean(values: list[float], digits: int = 3) -> str:
    return f"{np.mean(values):.{digits}f}" if values else "–"


# Figure -------------------------------------------------------------------------------------


def draw(study: Study, cells: Cells, path: Path) -> None:
    """Write the figure: the first part's schedules, then every part that compares with peers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure(study, cells).savefig(path, dpi=160, facecolor="white")


def figure(study: Study, cells: Cells) -> Figure:
    """Small multiples of entropy (nats per token) over optimizer steps.

    Every run starts its schedule at its own first measured entropy. So that seeds share a dashed
    line, it is the mean target, and each curve is drawn at its distance from its own target.
    """
    first, *others = study.parts
    compared = [part for part in others if part.better_of]
    upper = -(-len(first.schedules) // COLUMNS)
    heights = [1.75 * upper] + [2.3 * len(compared)] * bool(compared)
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.07, hspace=0.05, wspace=0.05)
    drawing = Figure(figsize=(WIDE, sum(heights) + 0.3), layout=layout)
    blocks = drawing.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    grid = blocks[0].subplots(upper, COLUMNS, sharex=True, squeeze=False)
    _draw_schedules(list(grid.flat), first, cells)
    if compared:
        columns = max(len(part.schedules) for part in compared)
        lines = blocks[1].subplots(
            len(compared),
            columns + 1,
            squeeze=False,
            gridspec_kw={"width_ratios": [1.0] * columns + [0.2 * columns]},
        )
        for line, part in zip(lines, compared, strict=True):
            _draw_comparison(list(line), part, cells)
            label_steps(list(line[:-1]))
    return drawing


def _draw_schedules(axes: list[Axes], part: Part, cells: Cells) -> None:
    """One panel for each schedule, all with the same nats per inch."""
    method = part.methods[0]
    spans = []
    for axis, schedule in zip(axes, part.schedules, strict=False):
        group = _group(cells, part, method, schedule)
        axis.set_title(schedule)
        if not group:
            _say_empty(axis)
            continue
        steps, target = _mean_target(group)
        for cell in group:
            axis.plot(*_curve(cell, steps, target), color=BLUE, lw=1.0, alpha=0.6)
        axis.plot(steps, target, color=INK, lw=1.5, linestyle=(0, (4, 2)), zorder=3)
        error = _mean(_values(group, lambda cell: cell["tracking_error"]))
        seeds = f"{len(group)} seed" + ("s" if len(group) > 1 else "")
        axis.set_title(f"{error} nats off, {seeds}", loc="right", color=SOFT, weight="normal")
        spans.append(np.subtract(*axis.dataLim.intervaly[::-1]))
    for axis in axes[len(part.schedules) :]:
        axis.set_visible(False)
    for axis in axes:
        if axis.lines:
            middle, half = axis.dataLim.intervaly.mean(), 0.56 * max(SMALLEST_SPAN, *spans)
            axis.set_ylim(middle - half, middle + half)
            axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for axis in axes[::COLUMNS]:
        axis.set_ylabel("entropy\n(nats per token)")
    label_steps(axes[-COLUMNS:])
    handles = [
        Line2D([], [], color=INK, lw=1.5, linestyle=(0, (4, 2)), label="target"),
        Line2D([], [], color=BLUE, lw=1.2, label=f"{method}, one line per seed (probe)"),
    ]
    axes[0].get_figure().legend(handles=handles, loc="outside upper left", ncols=2, borderpad=0.2)


def _draw_comparison(axes: list[Axes], part: Part, cells: Cells) -> None:
    """One panel for each schedule: mean and range over seeds of every method; then the legend."""
    looks = _looks(part)
    *panels, corner = axes
    for axis, schedule in zip(panels, part.schedules, strict=False):
        axis.set_title(f"{schedule}, {part.title}")
        groups = {method: _group(cells, part, method, schedule) for method in looks}
        shown = {method: group for method, group in groups.items() if group}
        if not shown:
            _say_empty(axis)
            continue
        steps, target = _mean_target(shown.get(part.reference) or next(iter(shown.values())))
        for method, group in shown.items():
            curves = [_curve(cell, steps, target) for cell in group]
            at, values = curves[0][0], np.array([curve for _, curve in curves])
            front = 2.6 if method == part.reference else 2.0
            axis.fill_between(
                at,
                values.min(0),
                values.max(0),
                color=looks[method]["color"],
                alpha=0.14,
                lw=0,
                zorder=front - 0.5,
            )
            axis.plot(at, values.mean(0), **looks[method], lw=1.5, zorder=front)
        axis.plot(steps, target, color=INK, lw=1.5, linestyle=(0, (4, 2)), zorder=3)
    panels[0].set_ylabel("entropy\n(nats per token)")
    for axis in [*panels[len(part.schedules) :], corner]:
        axis.set_axis_off()
    handles = [Line2D([], [], color=INK, lw=1.5, linestyle=(0, (4, 2)), label="target")]
    handles += [Line2D([], [], lw=1.8, label=method, **look) for method, look in looks.items()]
    corner.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(-0.1, 0.5),
        title="mean and range of seeds",
        alignment="left",
        title_fontsize=9,
        handlelength=2.4,
    )


def _looks(part: Part) -> dict[str, dict[str, Any]]:
    """A color for every family of methods, a line style for each member."""
    looks: dict[str, dict[str, Any]] = {part.reference: {"color": BLUE, "linestyle": "-"}}
    colors = iter([VERMILION, GREEN, PURPLE, ORANGE, SKY] * 3)
    for methods in part.better_of.values():
        color = next(colors)
        for place, method in enumerate(methods):
            looks[method] = {"color": color, "linestyle": DASHES[place % len(DASHES)]}
    for method in part.methods:
        if method not in looks:
            looks[method] = {"color": next(colors), "linestyle": "-"}
    return looks


def _mean_target(group: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Every optimizer step and the mean of the seeds' targets at it."""
    steps = np.arange(group[0]["probe"][-1][0] + 1)
    curves = [
        schedules.anchor(schedules.from_string(cell["schedule"]), cell["initial"]) for cell in group
    ]
    return steps, np.mean([[curve(step) for step in steps] for curve in curves], axis=0)


def _curve(
    cell: dict[str, Any], steps: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The probe of a run, at its distance from its own target, around another target."""
    at = np.array([point[0] for point in cell["probe"]])
    gap = np.array([probe - own for _, own, probe, _ in cell["probe"]])
    return at, np.interp(at, steps, target) + gap


def _say_empty(axis: Axes) -> None:
    axis.text(0.5, 0.5, "not run yet", transform=axis.transAxes, ha="center", color=SOFT)
    axis.set_yticks([])
