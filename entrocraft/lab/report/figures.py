"""The figures of a report: entropy and its target, reward, and what control did.

Up to six methods share axes; more get a panel each. Lines: mean over seeds. Bands: their range.
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
PROBE, MEASURED, TARGET = "entropy/probe", "entropy/measured", "entropy/target"
TRAINERS_OWN = "entropy"  # TRL's, of the loss pass: drawn where nothing else was measured
ENTROPY, KEPT = "Entropy (nats per token)", "Rollouts kept (share)"
_CONTROL = {
    KEPT: ["entropy/kept_fraction"],
    "Pressure (above 0: more entropy wanted)": ["entropy/pressure"],
    "Entropy change within reach (nats)": ["entropy/reachable_up", "entropy/reachable_down"],
    "Steps saturated (share)": ["entropy/saturated"],
}
_BAND = {"label": "band of the rule", "color": style.SOFT, "lw": 0.8}
_SINGLE: dict[str, dict[str, Any]] = {
    TRAINERS_OWN: {"label": "as TRL logs it", "color": style.SKY, "lw": 0.8},
    MEASURED: {"label": "training batches", "color": style.SKY, "lw": 0.8, "alpha": 0.7},
    "entropy/estimate": {"label": "controller's estimate", "color": style.BLUE, "lw": 1.5},
    "entropy/low": _BAND,
    "entropy/high": _BAND,
}
_SINGLE_PROBE = {"label": "probe (held-out problems)", "color": style.VERMILION, "ls": "none"}


def entropy_figure(runs: Sequence[Run], width: float = style.WIDE) -> Figure:
    """Draw entropy (nats per token) against its target; below 6 inches of width for a phone."""
    groups = grouped(runs)
    with style.style():
        if len(groups) > TOGETHER:
            return _panels(groups, PROBE, ENTROPY, width)
        figure = style.empty_figure(width, 4.2)
        axis = figure.subplots()
        axis.set_title(ENTROPY)
        for key in _SINGLE if len(runs) == 1 else ():
            if runs[0].has(key) and not (key == TRAINERS_OWN and runs[0].has(MEASURED)):
                axis.plot(*runs[0].points(key), **_SINGLE[key])
        for name, look in looks_of(groups).items():
            key = PROBE if len(runs) == 1 else _entropy_key(groups[name])
            _draw(axis, groups[name], key, **look | (_SINGLE_PROBE if len(runs) == 1 else {}))
        _draw_targets(axis, groups)
        return _finish(figure)


def reward_figure(runs: Sequence[Run], width: float = style.WIDE) -> Figure | None:
    """Draw the reward of the training batches and, up to six methods, pass@1 and the largest k.

    None when no run logged any of it.
    """
    groups, title = grouped(runs), "Training reward"
    if len(groups) > TOGETHER:
        return _panels(groups, "reward", title, width)
    ks = sorted({k for run in runs for k in pass_ks(run)})
    shown = {title: ["reward"]} if any(run.has("reward") for run in runs) else {}
    shown |= {f"pass@{k} on held-out problems": [f"eval/pass@{k}"] for k in (*ks[:1], *ks[-1:])}
    rows = 1 if width >= 6 else len(shown)
    return _curves(groups, shown, looks_of(groups), (width, 3.2), rows) if shown else None


def control_figure(runs: Sequence[Run], width: float = style.WIDE) -> Figure | None:
    """Draw the cost and the effort of control, None when no run steered entropy and logged any."""
    looks, steered = looks_of(grouped(runs)), [run for run in runs if run.controlled]
    shown = {t: keys for t, keys in _CONTROL.items() if any(r.has(keys[0]) for r in steered)}
    if not shown:
        return None
    if len(looks) > TOGETHER:
        return _panels(grouped(steered), _CONTROL[KEPT][0], KEPT, width)
    return _curves(grouped(steered), shown, looks, (width, 1.8), len(shown))


def looks_of(groups: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Any]]:
    """Return group -> color, dashes and label; a group alone has the color of its rule."""
    if len(groups) == 1:
        [(name, (run, *_))] = groups.items()
        return {name: {"color": style.color_of(run.rule or (name if run.controlled else "plain"))}}
    # matplotlib hides labels that begin with "_", hence the space without width
    return {n: look | {"label": f"\u200b{n[:32]}"} for n, look in style.looks_of(groups).items()}


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


def _curves(groups: Any, shown: Any, looks: Any, size: tuple[float, float], rows: int) -> Figure:
    """Draw axes of title -> keys, each key as one curve per group."""
    with style.style():
        figure = style.empty_figure(size[0], size[1] * rows)
        grid = figure.subplots(rows, len(shown) // rows, sharex=True, squeeze=False)
        for axis, (title, keys) in zip(grid.flat, shown.items(), strict=True):
            axis.set_title(title)
            for name, key in [(name, key) for name in groups for key in keys]:
                _draw(axis, groups[name], key, **looks[name])
        return _finish(figure)


def _draw(axis: Axes, runs: Sequence[Run], key: str, **look: Any) -> None:
    is_measured = key == PROBE or key.startswith("eval/")
    found = curve(runs, key, smoothed=not is_measured)
    if found is None:
        return
    mark = {"marker": "o", "markersize": 5, "markeredgecolor": style.PAPER} if is_measured else {}
    axis.plot(found.index, found["mean"], **{"lw": 1.6, **mark, **look})
    if len(runs) > 1:
        low, high = found["min"], found["max"]
        axis.fill_between(found.index, low, high, color=look["color"], alpha=0.18, lw=0)
    elif is_measured:
        bars = runs[0].column(f"{key}_stderr")[found.index].fillna(0.0)
        axis.errorbar(found.index, found["mean"], bars, fmt="none", ecolor=look["color"], lw=1.1)
    elif "label" not in look and key != "entropy/saturated":
        axis.plot(*runs[0].points(key), color=look["color"], alpha=0.3, lw=0.7)


def _draw_targets(axis: Axes, groups: Mapping[str, list[Run]]) -> None:
    """Draw one target if all agree, else one for each group; a dotted schedule if none steered."""
    steered = any(run.controlled and run.has(TARGET) for runs in groups.values() for run in runs)
    label, dash = ("target", (4, 2)) if steered else ("schedule, for reference only", (1, 2))
    asked = {n: [r for r in runs if r.controlled or not steered] for n, runs in groups.items()}
    found = {n: c["mean"] for n, runs in asked.items() if (c := curve(runs, TARGET)) is not None}
    table = pd.DataFrame(found).sort_index().interpolate(method="index", limit_area="inside")
    if found and np.nanmax(table.max(axis=1) - table.min(axis=1)) <= SAME_TARGET:
        table = table.mean(axis=1).to_frame("")
    for name in table:
        look: dict[str, Any] = {"color": looks_of(groups)[name]["color"] if name else style.INK}
        look |= {"label": f"{label} {name}".strip(), "linestyle": (0, dash), "zorder": 2.6}
        axis.plot(table.index, table[name], **look)


def _panels(groups: Mapping[str, list[Run]], key: str, title: str, width: float) -> Figure:
    """Draw one key in a panel for each method, all on the same axes."""
    columns = 5 if width >= 6 else 2
    rows = -(-len(groups) // columns)
    with style.style():
        figure = style.empty_figure(width, 1.35 * rows + 0.7)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        tops = []
        for axis, (name, runs) in zip(axes, groups.items(), strict=False):
            own = _entropy_key(runs) if key == PROBE else key
            _draw(axis, runs, own, color=style.color_of(name), markersize=0, label="")
            tops.append(axis.dataLim.y1)
            axis.set_title(name if len(name) < 22 else name[:21] + "…", fontsize=8.5, pad=3)
            if key == PROBE and (target := curve(runs, TARGET)) is not None:
                dash = (0, (4, 2) if runs[0].controlled else (1, 2))
                axis.plot(target.index, target["mean"], color=style.INK, lw=1.1, linestyle=dash)
        if max(tops) > 2 * np.median(tops) > 0:  # one that explodes leaves the others room
            axes[0].set_ylim(top=2 * np.median(tops))
        for axis in axes[len(groups) :]:
            axis.set_visible(False)
        for axis in axes[max(len(groups) - columns, 0) : len(groups)]:
            axis.tick_params(labelbottom=True)
            style.label_steps([axis])
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    return figure


def _entropy_key(runs: Sequence[Run]) -> str:
    found = [key for key in (PROBE, MEASURED) if any(run.has(key) for run in runs)]
    return found[0] if found else TRAINERS_OWN


def _finish(figure: Figure) -> Figure:
    """Add the legend above all axes, the step axis below, and say where there is nothing."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        if not axis.has_data():
            axis.text(0.5, 0.5, "not logged", transform=axis.transAxes, ha="center")
        handles |= {label: h for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    style.label_steps(axis for axis in figure.axes if axis.xaxis.get_tick_params()["labelbottom"])
    if handles:
        columns = min(len(handles), 5 if figure.get_figwidth() >= 6 else 2)
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=columns)
    return figure
