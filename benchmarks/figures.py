"""Figures of the documentation, from result files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.studies import Result, methods_of, pass_keys, reach_rows, values_of
from entrocraft.lab.grid.study import Study
from entrocraft.lab.parsing import merge
from entrocraft.lab.report.style import (
    INK,
    PALETTE,
    SHADE,
    SOFT,
    color_of,
    empty_figure,
    label_steps,
)
from entrocraft.lab.statistics import interval

MOST = 1.5
"""Entropy at the end, nats per token, from which on a method is not drawn."""
CROWD = 8
"""More methods than this have a panel each."""
WIDE = 8.8


def curves(result: Result) -> Figure:
    """Small multiples of entropy (nats per token) over optimizer steps.

    The schedules of the first part, then those of parts that compare. Every run starts its schedule
    at its own first measured entropy. So that seeds share a dashed line, it is the mean target, and
    each probe is drawn at its distance from its own target: mean and range over seeds.
    """
    shown = []
    for place, part in enumerate(result.study.tables):
        if place and not part.better_of:
            continue
        names = methods_of(part)
        for schedule in part.schedules:
            title = ", ".join(filter(None, [schedule, part.title if part.better_of else ""]))
            if len(names) > CROWD:
                shown += [(part, schedule, name, [name]) for name in names]
            else:
                shown.append((part, schedule, title, names))
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = empty_figure(WIDE, 4.0 if lines == 1 else 1.9 * lines + 0.5)
    crowded = len(shown) > 2 * CROWD
    grid = figure.subplots(lines, columns, sharey=crowded, squeeze=False)
    handles: dict[str, Line2D] = {}
    for axis, (part, schedule, title, names) in zip(grid.flat, shown, strict=False):
        axis.set_title(title)
        groups = {name: result.group(part, name, schedule) for name in names}
        handles |= _panel(axis, result.study, {k: v for k, v in groups.items() if len(v)})
    if crowded:  # the middles set the common range, not one seed's peak
        middles = np.concatenate([line.get_ydata() for axis in grid.flat for line in axis.lines])
        grid[0][0].set_ylim(0.9 * middles.min(), 1.05 * middles.max())
    for row in grid:
        row[0].set_ylabel("entropy\n(nats per token)")
    for axis in grid.flat[len(shown) :]:
        axis.set_visible(False)
    label_steps(grid[-1])
    if not crowded:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=6)
    return figure


def _color(study: Study, method: str) -> str:
    """The color of the rule that a method has."""
    keys = merge(study.base, study.of(method)).get("control", {})
    return color_of(keys.get("rule", "tilt") or "GRPO")


def _panel(axis: Axes, study: Study, groups: dict[str, pd.DataFrame]) -> dict[str, Line2D]:
    """Draw mean and range of the methods around the mean target; return the legend's handles."""
    if not groups:
        axis.text(0.5, 0.5, "not run yet", transform=axis.transAxes, ha="center", color=SOFT)
        return {}
    first = next(iter(groups.values()))["curve"]
    target = pd.concat(list(first)).groupby("step")["target"].mean()
    handles, colors = {}, [_color(study, name) for name in groups]
    for place, (name, group) in enumerate(groups.items()):
        color = colors[place]
        dashes = ["-", (0, (5, 1.5)), (0, (1.5, 1.2))][colors[:place].count(color) % 3]
        own = pd.concat(list(group["curve"]))
        gaps = (own["probe"] - own["target"]).groupby(own["step"])
        steps = gaps.mean().index
        middle = np.interp(steps, target.index, target)
        look: dict[str, Any] = {
            "color": color,
            "linestyle": dashes,
            "lw": 1.4,
            "marker": ".",
            "ms": 4,
        }
        [handles[name]] = axis.plot(steps, middle + gaps.mean(), **look)
        low, high = middle + gaps.min(), middle + gaps.max()
        axis.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
    dashed: dict[str, Any] = {"color": INK, "lw": 1.4, "linestyle": (0, (4, 2)), "zorder": 4}
    [handles["target"]] = axis.plot(target.index, target, **dashed)
    return handles


def tradeoff(result: Result) -> Figure:
    """Reward and pass@k at the end against the entropy that is left, one point per method."""
    widest, rows = pass_keys(result.cells)[-1], []
    panels = {"final_reward": "reward, last 20 steps", widest: f"{widest} at the end"}
    for method, group in result.cells.groupby("method", sort=False):
        row = {key: interval(values_of(group, key)).center for key in ("entropy_end", *panels)}
        color = PALETTE[0] if group["steered"].all() else PALETTE[1]
        rows.append(row | {"method": method, "color": color})
    points = pd.DataFrame(rows).sort_values("entropy_end")
    points = points[points["entropy_end"] < MOST]
    figure = empty_figure(WIDE, 4.0 * len(panels))
    for axis, (key, title) in zip(figure.subplots(len(panels), 1), panels.items(), strict=True):
        axis.set(title=title, xlabel="entropy at the end, nats per token")
        _scatter(axis, points, key)
    dots = [Line2D([], [], linestyle="", marker="o", color=color) for color in PALETTE[:2]]
    labels = ["steered by the schedule", "not steered"]
    figure.legend(dots, labels, loc="outside upper right", ncols=2)
    return figure


def _scatter(axis: Axes, points: pd.DataFrame, key: str) -> None:
    """Points, and their names in a column at either side."""
    axis.scatter(points["entropy_end"], points[key], s=25, color=points["color"], zorder=3)
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    axis.set(xlim=(left, right), ylim=(low, high))
    middle = len(points) // 2
    for edge, at, column in ((left, "right", points[:middle]), (right, "left", points[middle:])):
        ordered = column.sort_values(key, ascending=False)
        ordered["place"] = np.linspace(high, low, len(column))
        for _, point in ordered.iterrows():
            axis.plot(
                [point["entropy_end"], edge], [point[key], point["place"]], color=SHADE, lw=0.5
            )
            bold = "bold" if point["method"] in ("GRPO", "tilt") else "normal"
            text = f"  {point['method']}  "
            look: dict[str, Any] = {
                "ha": at,
                "va": "center",
                "fontsize": 8,
                "weight": bold,
                "color": SOFT,
            }
            axis.text(edge, point["place"], text, **look)
    axis.tick_params(axis="y", pad=75)


def _error_center(values: list[float]) -> float:
    found = interval(values)
    assert found is not None, "a cell has an error"
    return found.center


def reach_figure(data: dict[str, Any]) -> Figure:
    """Tracking error over the learning rate, a panel for each world, a color for each setting.

    Small batches and decaying rates are in the table alone.
    """
    cells = data["cells"].items()
    drawn = {k: c for k, c in cells if c["rollouts"] >= 64 and c["scheduler"] == "constant"}
    table = reach_rows({"cells": drawn})
    worlds = list(dict.fromkeys(table.index.get_level_values("world")))
    settings = list(dict.fromkeys(table.index.get_level_values("setting")))
    figure = empty_figure(WIDE, 2.3 * len(worlds) + 0.8)
    axes = figure.subplots(len(worlds), 1, squeeze=False)[:, 0]
    for axis, world in zip(axes, worlds, strict=True):
        axis.set(title=world, xscale="log", yscale="log", ylabel="error, % of the start")
        for setting, part in table.loc[world].groupby("setting", sort=False):
            color = PALETTE[settings.index(setting) % len(PALETTE)]
            for control, line in (("on", "-"), ("learning-rate feedback", ":")):
                if ("error", control) in part:
                    there = part["error", control].dropna()
                    rates = there.index.get_level_values("learning_rate")
                    errors = [max(_error_center(values), 0.05) for values in there]
                    axis.plot(rates, errors, line, color=color, marker="o", markersize=4)
        axis.set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
        rates = sorted(set(table.loc[world].index.get_level_values("learning_rate")))
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axis.set_ylim(0.04, 40)
        axis.minorticks_off()
    axes[-1].set_xlabel("learning rate")
    lines = [Line2D([], [], color=PALETTE[i % len(PALETTE)]) for i in range(len(settings))]
    lines += [Line2D([], [], color=INK, linestyle=style) for style in ("-", ":")]
    figure.legend(
        lines,
        [
            *(f"{name} rollouts" if name.isdigit() else name for name in settings),
            "control alone",
            "learning rate lowered at the limit",
        ],
        loc="outside lower center",
        ncols=3,
    )
    return figure
