"""The figures of a report: entropy and its target, reward, and what control did.

Up to six methods share one pair of axes; more get a panel each. A line is the mean over the seeds,
the band around it their range, a bar one standard error of a single run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entrocraft.lab.report import style
from entrocraft.lab.report.runs import Run, grouped
from entrocraft.lab.report.summary import pass_ks

TOGETHER = 6  # methods on one pair of axes
SMOOTHING = 11  # steps of the running mean over quantities of single batches
SAME_TARGET = 0.02  # nats per token; targets no further apart are drawn as one line
BATCH, PROBE, TARGET = "entropy/measured", "entropy/probe", "entropy/target"
ENTROPY, KEPT = "Entropy (nats per token)", "Rollouts kept (share)"
_CONTROL = {
    KEPT: ("entropy/kept_fraction",),
    "Pressure (above 0: asks for more entropy, 0: plain RL)": ("entropy/pressure",),
    "Entropy change within reach (nats)": ("entropy/reachable_up", "entropy/reachable_down"),
    "Steps saturated (share; all that rejection can do is in use)": ("entropy/saturated",),
}


def entropy_figure(runs: Sequence[Run], width: float = style.WIDE) -> Figure:
    """Draw entropy (nats per token) against its target; below 6 inches of width for a phone."""
    groups = grouped(runs)
    looks = looks_of(groups)
    with style.style():
        if len(groups) > TOGETHER:
            return _panels(groups, PROBE, f"{ENTROPY}; dashed: target, dotted: not steered", width)
        figure, [axis] = _stacked([ENTROPY], width, 4.2)
        if len(runs) == 1:
            _draw_single_entropy(axis, runs[0])
        for name, members in groups.items() if len(runs) > 1 else ():
            _draw(axis, members, _entropy_key(members), name, **looks[name])
        _draw_targets(axis, groups, looks)
        return _finish(figure)


def reward_figure(runs: Sequence[Run], width: float = style.WIDE) -> Figure:
    """Draw the reward of the training batches and, up to six methods, pass@1 and the largest k."""
    groups, title = grouped(runs), f"Training reward (running mean of {SMOOTHING} steps)"
    with style.style():
        if len(groups) > TOGETHER:
            return _panels(groups, "reward", title, width)
        ks = sorted({k for run in runs for k in pass_ks(run)})
        shown = {f"pass@{k} on held-out problems": (f"eval/pass@{k}",) for k in (*ks[:1], *ks[-1:])}
        return _curves(groups, {title: ("reward",), **shown}, looks_of(groups), width, 3.2, True)


def control_figure(runs: Sequence[Run], width: float = style.WIDE) -> Figure | None:
    """Draw the cost and the effort of control, None when no run steered entropy and logged any."""
    looks = looks_of(grouped(runs))
    groups = grouped([run for run in runs if run.controlled])
    steered = [run for members in groups.values() for run in members]
    shown = {
        t: keys for t, keys in _CONTROL.items() if any(r.has(k) for k in keys for r in steered)
    }
    if not shown:
        return None
    with style.style():
        if len(groups) > TOGETHER:
            return _panels(groups, _CONTROL[KEPT][0], KEPT, width)
        return _curves(groups, shown, looks, width, 1.7)


def looks_of(groups: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Any]]:
    """Return group -> ``color`` and ``linestyle`` in a report; a lone group has its rule's color."""
    if len(groups) == 1:
        return {name: {"color": style.color_of(r[0].rule or "plain")} for name, r in groups.items()}
    return style.looks_of(groups)


def curve(runs: Sequence[Run], key: str, smoothed: bool = False) -> pd.DataFrame | None:
    """Return ``mean``, ``min`` and ``max`` of ``key`` over some seeds by step, None without any.

    Seeds that logged at different steps are interpolated between their own, never beyond them.
    """
    seeds = [run.column(key).dropna() for run in runs if run.has(key)]
    if smoothed:
        seeds = [seed.rolling(SMOOTHING, center=True, min_periods=1).mean() for seed in seeds]
    if not seeds:
        return None
    table = pd.concat(seeds, axis=1, keys=range(len(seeds))).sort_index()
    table = table.interpolate(method="index", limit_area="inside").dropna(how="all")
    return table.agg(["mean", "min", "max"], axis=1)


def _curves(
    groups: Mapping[str, list[Run]],
    shown: Mapping[str, Sequence[str]],
    looks: Mapping[str, dict[str, Any]],
    width: float,
    height: float,
    beside: bool = False,
) -> Figure:
    """Draw axes with title -> keys, a curve of each key for every group."""
    figure, axes = _stacked(list(shown), width, height, beside)
    for axis, keys in zip(axes, shown.values(), strict=True):
        for name, runs in groups.items():
            for key in keys:
                _draw(axis, runs, key, name if len(looks) > 1 else None, **looks[name])
                if len(looks) == len(runs) == 1 and key.partition("/")[0] != "eval":
                    axis.plot(*runs[0].points(key), color=looks[name]["color"], alpha=0.3, lw=0.7)
    return _finish(figure)


def _draw(axis: Axes, runs: Sequence[Run], key: str, label: str | None, **look: Any) -> None:
    is_measured = key == PROBE or key.startswith("eval/")
    found = curve(runs, key, smoothed=not is_measured)
    if found is None:
        return
    mark = {"marker": "o", "markersize": 5, "markeredgecolor": style.PAPER} if is_measured else {}
    axis.plot(found.index, found["mean"], label=label, **{"lw": 1.6, **mark, **look})
    if len(runs) > 1:
        band: dict[str, Any] = {"color": look["color"], "alpha": 0.18, "lw": 0}
        axis.fill_between(found.index, found["min"], found["max"], **band)
    elif is_measured:
        bars = runs[0].column(f"{key}_stderr")[found.index].fillna(0.0)
        axis.errorbar(found.index, found["mean"], bars, fmt="none", ecolor=look["color"], lw=1.1)


def _draw_single_entropy(axis: Axes, run: Run) -> None:
    low, high = run.column("entropy/low"), run.column("entropy/high")
    if run.controlled and low.notna().any():
        look: dict[str, Any] = {"color": style.SHADE, "alpha": 0.3, "lw": 0, "label": "band"}
        axis.fill_between(run.frame.index, low, high, **look)
    for key, label, color, lw in (
        (BATCH, "training batches", style.SKY, 0.8),
        ("entropy/estimate", "controller's estimate", style.BLUE, 1.5),
    ):
        if run.has(key):
            axis.plot(*run.points(key), label=label, color=color, lw=lw, alpha=0.8)
    look = {"color": style.VERMILION, "linestyle": "none"}
    _draw(axis, [run], PROBE, "probe: fixed held-out problems", **look)


def _draw_targets(axis: Axes, groups: Mapping[str, list[Run]], looks: Mapping[str, Any]) -> None:
    """Draw one target if all agree, else one for each group; a dotted schedule if none steered."""
    steered = any(run.controlled and run.has(TARGET) for runs in groups.values() for run in runs)
    label, dash = ("target", (4, 2)) if steered else ("schedule, for reference only", (1, 2))
    found: dict[str, Any] = {}
    for name, runs in groups.items():
        target = curve([run for run in runs if run.controlled or not steered], TARGET)
        found |= {} if target is None else {name: target["mean"]}
    if not found:
        return
    table = pd.DataFrame(found).sort_index().interpolate(method="index", limit_area="inside")
    if np.nanmax(table.max(axis=1) - table.min(axis=1)) <= SAME_TARGET:
        table = table.mean(axis=1).to_frame("")
    for name in table:
        look: dict[str, Any] = {"color": looks[name]["color"] if name else style.INK, "lw": 1.5}
        text = f"{label} {name}".strip()
        axis.plot(table.index, table[name], label=text, linestyle=(0, dash), zorder=2.6, **look)


def _panels(groups: Mapping[str, list[Run]], key: str, title: str, width: float) -> Figure:
    """Draw one key in a panel for each method, all on the same axes."""
    columns = 5 if width >= 6 else 2
    rows = -(-len(groups) // columns)
    figure = style.empty_figure(width, 1.35 * rows + 0.7)
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    keys = {name: _entropy_key(runs) if key == PROBE else key for name, runs in groups.items()}
    curves = {name: curve(runs, keys[name], keys[name] != PROBE) for name, runs in groups.items()}
    tops = {name: float(c["max"].max()) for name, c in curves.items() if c is not None}
    limit = 2 * float(
        np.median([*tops.values()] or [0])
    )  # one that explodes leaves the others room
    for axis, (name, runs) in zip(axes, groups.items(), strict=False):
        _draw(axis, runs, keys[name], None, color=style.color_of(name), markersize=0)
        axis.set_title(name if len(name) < 24 else name[:23] + "…", fontsize=8.5, pad=3)
        if key == PROBE and (target := curve(runs, TARGET)) is not None:
            dash = (0, (4, 2) if runs[0].controlled else (1, 2))
            axis.plot(target.index, target["mean"], color=style.INK, lw=1.1, linestyle=dash)
        if tops.get(name, 0) > limit:
            look: dict[str, Any] = {"transform": axis.transAxes, "ha": "right", "va": "top"}
            axis.text(1, 1, f"↑ to {tops[name]:.1f}", **look)
    if max(tops.values(), default=0) > limit > 0:
        axes[0].set_ylim(top=limit)
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    for axis in axes[len(groups) - columns : len(groups)]:
        axis.tick_params(labelbottom=True)
        style.label_steps([axis])
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    return figure


def _entropy_key(runs: Sequence[Run]) -> str:
    return PROBE if any(run.has(PROBE) for run in runs) else BATCH


def _stacked(
    titles: Sequence[str], width: float, height: float, beside: bool = False
) -> tuple[Figure, list[Axes]]:
    rows, columns = (1, len(titles)) if beside and width >= 6 else (len(titles), 1)
    figure = style.empty_figure(width, height * rows + 0.5 * (rows > 1))
    axes = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
    return figure, axes


def _finish(figure: Figure) -> Figure:
    """Add the legend above all axes, the step axis below, and say where there is nothing."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        if not axis.has_data():
            axis.text(0.5, 0.5, "not logged", transform=axis.transAxes, ha="center")
            axis.set_yticks([])
        handles |= {label: h for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    specs = ((axis, axis.get_subplotspec()) for axis in figure.axes)
    style.label_steps(axis for axis, spec in specs if spec is not None and spec.is_last_row())
    if handles:
        columns = 5 if figure.get_figwidth() >= 6 else 2
        look: dict[str, Any] = {"loc": "outside upper left", "ncols": min(len(handles), columns)}
        legend = figure.legend(list(handles.values()), ["x"] * len(handles), **look)
        for text, label in zip(legend.get_texts(), handles, strict=True):
            text.set_text(
                label if len(label) < 33 else label[:32] + "…"
            )  # "_" would hide it before
    return figure
