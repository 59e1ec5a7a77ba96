"""The page's charts as Plotly figures: plain dictionaries, drawn by the browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from entrocraft import schedules
from entrocraft.lab.report import style
from entrocraft.lab.report.figures import MEASURED, PROBE, SMOOTHING, TARGET, TRAINERS_OWN
from entrocraft.lab.report.summary import pass_ks
from entrocraft.lab.watch.runs import Watched

Figure = dict[str, Any]

KEPT, PRESSURE, ESTIMATE = "entropy/kept_fraction", "entropy/pressure", "entropy/estimate"
UP, DOWN = "entropy/reachable_up", "entropy/reachable_down"
CHARTS = {
    "entropy": "Entropy (nats per token)",
    "reward": "Training reward",
    "pass": "pass@k on held-out problems",
    "kept": "Rollouts kept (share)",
    "pressure": "Pressure (above 0: more entropy wanted)",
}
CLEAR = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
SAMPLED_POINTS = 5  # of a draft that is no straight lines
_INK, _SOFT, _LINE = ("#1f2328", "#e8eaed"), ("#5c6570", "#a3acb8"), ("#e2e5e9", "#2b313a")


def charts(runs: Sequence[Watched], dark: bool) -> dict[str, Figure]:
    """Return a figure for each of `CHARTS`."""
    colors = _colors(runs, dark)
    titled = {"reward": "reward", "kept": KEPT, "pressure": PRESSURE}
    figures = {"entropy": _entropy(runs, colors, dark), "pass": _passes(runs, colors, dark)}
    for name, key in titled.items():
        traces = [t for run in runs for t in _smoothed(run, key, colors[run.label], len(runs) == 1)]
        figures[name] = _figure(traces, dark)
    figures["kept"]["layout"]["yaxis"] |= {"range": [0, 1.03], "tickformat": ".0%"}
    figures["pressure"]["layout"]["yaxis"]["zeroline"] = True
    return figures


def exported(runs: Sequence[Watched]) -> pd.DataFrame:
    """Return what the charts show as one table: run, step, then a column for each metric."""
    wanted = (PROBE, f"{PROBE}_stderr", MEASURED, TRAINERS_OWN, ESTIMATE, TARGET, UP, DOWN)
    tables = []
    for watched in runs:
        frame = watched.run.frame
        own = [key for key in frame if key.startswith("eval/pass@")]
        keys = [k for k in (*wanted, "reward", *own, KEPT, PRESSURE) if k in frame]
        table = frame[keys].reset_index()
        table.insert(0, "run", watched.label)
        ruled = watched.run.schedules
        if ruled:
            table["schedule"] = table["step"].map(ruled).ffill()
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def editor(run: Watched, draft: str | None, dark: bool) -> Figure:
    """Draw the present schedule and a draft whose points can be dragged.

    Raises:
        ValueError: the draft is no schedule for this run.
    """
    blue, soft = _shade(style.BLUE, dark), _SOFT[dark]
    steps = np.unique(np.linspace(0, run.steps, 201).round().astype(int))
    key = _measured_key(run)
    traces = [_line(*run.run.points(key), soft, "entropy", width=1)]
    if run.schedule and (present := _values(run, run.schedule, steps)) is not None:
        traces.append(_line(steps, present, _INK[dark], "present schedule", dash="dash"))
    levels, handles = [], []
    if draft:
        curve = run.curve(draft)
        levels = [curve(step) for step in steps.tolist()]
        traces.append(_line(steps, levels, blue, "draft", width=2.5))
        handles = [_handle(*point, blue) for point in draft_points(run, draft)]
    if run.live:  # no shape, which could be dragged
        top = max((y for trace in traces for y in trace["y"]), default=0.0)
        now = _line([run.last_step + 1] * 2, [0.0, top], soft, "now", 1, "dot")
        traces.append(now | {"hoverinfo": "skip"})
    figure = _figure(traces, dark)
    layout = figure["layout"]
    layout["yaxis"]["rangemode"] = "tozero"
    layout["xaxis"]["range"] = [-0.03 * run.steps, 1.03 * run.steps]
    layout["dragmode"] = False
    layout["shapes"] = handles
    return figure


def draft_points(run: Watched, draft: str) -> list[tuple[int, float]]:
    """Return the points by which a draft is dragged: its own, or some on its curve.

    Raises:
        ValueError: the draft is no schedule for this run.
    """
    curve = run.curve(draft)
    found = schedules.points(curve)
    if found is None or len(found) < 2:
        end = max(schedules.settles(curve) or run.steps, 1)
        if found is not None:  # a constant
            end = run.steps
        steps = np.unique(np.linspace(0, end, SAMPLED_POINTS).round().astype(int)).tolist()
        found = [(step, curve(step)) for step in steps]
    return found


def moved(points: Sequence[tuple[int, float]], number: int, x: Any, y: Any) -> str:
    """Return a piecewise schedule in which one point was dragged to (x, y).

    It stays between its neighbors and at or above 0.
    """
    steps = [step for step, _ in points]
    low = steps[number - 1] + 1 if number else 0
    high = steps[number + 1] - 1 if number + 1 < len(steps) else 10**9
    step, level = points[number]
    step = min(max(round(float(step if x is None else x)), low), max(low, high))
    level = max(float(level if y is None else y), 0.0)
    changed = [*points[:number], (step, level), *points[number + 1 :]]
    return piecewise_text(changed)


def with_point(points: Sequence[tuple[int, float]]) -> str:
    """Return a piecewise schedule with one more point in the middle of the longest stretch."""
    gaps = [after[0] - before[0] for before, after in pairwise(points)]
    if not gaps or max(gaps) < 2:
        return piecewise_text(points)
    place = gaps.index(max(gaps))
    (first, low), (last, high) = points[place : place + 2]
    middle = (first + last) // 2
    level = low + (high - low) * (middle - first) / (last - first)
    return piecewise_text([*points[: place + 1], (middle, level), *points[place + 1 :]])


def piecewise_text(points: Sequence[tuple[int, float]]) -> str:
    """Return the text of a schedule through these points, levels to four digits."""
    return f"piecewise([{', '.join(f'({step}, {level:.4g})' for step, level in points)}])"


def _entropy(runs: Sequence[Watched], colors: Mapping[str, str], dark: bool) -> Figure:
    traces: list[Figure] = []
    alone = len(runs) == 1
    for run in runs:
        color = colors[run.label]
        traces += _reach(run, color)
        key = _measured_key(run)
        if alone:
            sky = _shade(style.SKY, dark)
            traces.append(_line(*run.run.points(key), sky, "training batches", width=1))
            traces.append(_line(*run.run.points(ESTIMATE), color, "estimate", width=1.8))
        elif not run.run.has(PROBE):
            steps, values = run.run.points(key)
            traces.append(_line(steps, _rolling(values), color, run.label, group=run.label))
        if run.run.has(PROBE):
            traces.append(_probe(run, _shade(style.VERMILION, dark) if alone else color, alone))
        ink = _INK[dark] if alone else color
        traces += _targets(run, ink, alone)
    figure = _figure(traces, dark)
    changes = [(step, colors[run.label]) for run in runs for step in run.run.schedules]
    for step, color in changes:
        line = {"color": color, "width": 1, "dash": "dot"}
        place = {"x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper"}
        figure["layout"].setdefault("shapes", []).append({"type": "line", "line": line, **place})
        place = {"x": step, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top"}
        look = {"text": "new schedule", "showarrow": False, "font": {"size": 10, "color": color}}
        figure["layout"].setdefault("annotations", []).append(place | look)
    return figure


def _targets(run: Watched, color: str, alone: bool) -> list[Figure]:
    """The target so far, dashed, and what the schedule asks of a live run's later steps, dotted."""
    name = "target" if run.run.controlled else "schedule, for reference"
    label = name if alone else f"{name} {run.label}"
    traces = [
        _line(*run.run.points(TARGET), color, label, dash="dash", group=run.label, legend=alone)
    ]
    if run.live and run.schedule:
        steps = np.unique(np.linspace(run.last_step, run.steps, 101).round().astype(int))
        if (values := _values(run, run.schedule, steps)) is not None:
            line = _line(steps, values, color, f"{label}, to come", 1.2, "dot", run.label, False)
            traces.append(line)
    return traces


def _reach(run: Watched, color: str) -> list[Figure]:
    """The band that the next update could reach under the strongest pressure either way."""
    table = run.run.frame
    base = ESTIMATE if run.run.has(ESTIMATE) else MEASURED
    if not {base, UP, DOWN} <= set(table):
        return []
    table = table[[base, UP, DOWN]].dropna()
    edge = {"mode": "lines", "hoverinfo": "skip", "line": {"width": 0}, "legendgroup": run.label}
    steps, low, high = table.index, table[base] + table[DOWN], table[base] + table[UP]
    band = {"fill": "tonexty", "fillcolor": _faint(color), "name": "within reach"}
    return [
        {**edge, "x": steps.tolist(), "y": _plain(low), "showlegend": False},
        {**edge, **band, "x": steps.tolist(), "y": _plain(high), "showlegend": False},
    ]


def _passes(runs: Sequence[Watched], colors: Mapping[str, str], dark: bool) -> Figure:
    traces = []
    for run in runs:
        ks = pass_ks(run.run)
        for k, dash in zip(dict.fromkeys((*ks[:1], *ks[-1:])), ("solid", "dot"), strict=False):
            name = f"pass@{k}" if len(runs) == 1 else f"{run.label}, pass@{k}"
            line = _line(*run.run.points(f"eval/pass@{k}"), colors[run.label], name, dash=dash)
            traces.append(line | {"mode": "lines+markers"})
    return _figure(traces, dark)


def _probe(run: Watched, color: str, alone: bool) -> Figure:
    steps, values = run.run.points(PROBE)
    errors = run.run.column(f"{PROBE}_stderr")[steps].fillna(0.0)
    name = "probe (held-out problems)" if alone else run.label
    trace = _line(steps, values, color, name, group=run.label)
    bars = {"type": "data", "array": _plain(errors), "thickness": 1, "width": 2}
    mode = "markers" if alone else "lines+markers"
    return trace | {"mode": mode, "error_y": bars, "marker": {"size": 7, "color": color}}


def _smoothed(run: Watched, key: str, color: str, alone: bool) -> list[Figure]:
    """The values themselves, thin, and their running mean."""
    steps, values = run.run.points(key)
    if not len(steps):
        return []
    name = "running mean" if alone else run.label
    batches = _line(steps, values, color, "each batch", 0.8, group=run.label, legend=False)
    mean = _line(steps, _rolling(values), color, name, group=run.label, legend=not alone)
    return [batches | {"opacity": 0.35, "hoverinfo": "skip"}, mean]


def _line(
    steps: Any,
    values: Any,
    color: str,
    name: str,
    width: float = 1.8,
    dash: str = "solid",
    group: str | None = None,
    legend: bool = True,
) -> Figure:
    line = {"color": color, "width": width, "dash": dash}
    trace = {"type": "scatter", "mode": "lines", "x": _plain(steps), "y": _plain(values)}
    shown = {"name": name, "line": line, "showlegend": legend and len(steps) > 0}
    return trace | shown | ({} if group is None else {"legendgroup": group})


def _figure(traces: list[Figure], dark: bool) -> Figure:
    axis = {"gridcolor": _LINE[dark], "zerolinecolor": _LINE[dark], "zeroline": False}
    empty = {"text": "not logged", "showarrow": False, "xref": "paper", "yref": "paper"}
    layout: Figure = {
        "template": None,
        **CLEAR,
        "font": {"color": _INK[dark], "size": 12, "family": "Helvetica, Arial, sans-serif"},
        "margin": {"l": 46, "r": 12, "t": 8, "b": 36},
        "xaxis": axis | {"title": {"text": "optimizer step", "standoff": 6}, "tickformat": "d"},
        "yaxis": axis | {"automargin": True},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "#181c22" if dark else "#ffffff"},
        "uirevision": "kept",  # zoom and hidden curves outlive an update
        "autosize": True,
    }
    if not any(trace["x"] for trace in traces):
        layout["annotations"] = [empty | {"x": 0.5, "y": 0.5}]
    return {"data": traces, "layout": layout}


def _handle(step: int, level: float, color: str) -> Figure:
    """A point of the draft, a disc of 18 pixels."""
    size = {"x0": -9, "x1": 9, "y0": -9, "y1": 9, "xsizemode": "pixel", "ysizemode": "pixel"}
    look = {"fillcolor": color, "opacity": 0.85, "line": {"color": "#ffffff", "width": 2}}
    place = {"xanchor": step, "yanchor": level, "xref": "x", "yref": "y"}
    return {"type": "circle", "editable": True, "layer": "above", **size, **look, **place}


def _values(run: Watched, text: str, steps: np.ndarray) -> list[float] | None:
    """A schedule at some steps; None of one that is no text or whose start is not known."""
    try:
        curve = run.curve(text)
        return [curve(step) for step in steps.tolist()]
    except ValueError:
        return None


def _measured_key(run: Watched) -> str:
    return MEASURED if run.run.has(MEASURED) else TRAINERS_OWN


def _rolling(values: np.ndarray) -> list[float]:
    return _plain(pd.Series(values).rolling(SMOOTHING, center=True, min_periods=1).mean())


def _plain(values: Any) -> list[Any]:
    return np.asarray(values).tolist()


def _colors(runs: Sequence[Watched], dark: bool) -> dict[str, str]:
    looks = style.looks_of([run.label for run in runs])
    if len(runs) == 1:
        looks = {runs[0].label: {"color": style.BLUE}}
    return {label: _shade(look["color"], dark) for label, look in looks.items()}


def _shade(color: str, dark: bool) -> str:
    """The color, on a dark page a third of the way to white."""
    if not dark:
        return color
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (255 - part) * 0.35):02x}" for part in parts)


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"
