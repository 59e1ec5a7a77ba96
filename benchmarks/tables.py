"""Every table and figure of the documentation, from committed result files alone.

    python -m benchmarks.tables                    # tables into the pages, figures into docs/img
    python -m benchmarks.tables FILE ...           # print the tables of any result files
    python -m benchmarks.tables FILE --figure PNG  # draw the curves of one

Numbers over three or more seeds are interquartile means with 95 % bootstrap intervals
(`entrocraft.lab.statistics`); over two the mean with the range.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks import frontier
from entrocraft import schedules
from entrocraft.lab.grid.results import Results
from entrocraft.lab.grid.study import Part, Study
from entrocraft.lab.parsing import config_from_mapping, merge
from entrocraft.lab.report.style import (
    INK,
    PALETTE,
    SHADE,
    SOFT,
    color_of,
    empty_figure,
    label_steps,
    save_png,
    style,
)
from entrocraft.lab.statistics import interval, ratio_interval

RESULTS = Path(__file__).parent / "results"
ROOT = RESULTS.parent.parent
START, END = "<!-- tables -->", "<!-- end of tables -->"

BOUND, BOUND_SHARE = 0.010, 0.01
"""Nats of tracking error, or share of the initial entropy, that count as following a schedule."""
COLLAPSED, EXPLODED = 0.5, 1.5
"""Entropy at the end over entropy at the start, below and above which a table says so."""
NEAR, AFTER_STEP = 0.02, 40
"""Nats from a new target that count as arrived; steps in which overshoot is looked for."""
CROWD = 8
"""More methods than this have a panel each."""
WIDE = 8.8
NOTE = (
    "Numbers over seeds are interquartile means with 95 % bootstrap intervals, over two seeds the "
    "mean with the range. Tracking error: mean distance of the probe from the target after step "
    "20, in nats per token; bias: with its sign."
)
BOUND_NOTE = (
    f"The bound is {BOUND:.3f} nats or {BOUND_SHARE:.0%} of the initial entropy, whichever is "
    "larger, times the schedule's factor; it holds if the interval's upper end is within."
)


# Result files -------------------------------------------------------------------------------


@dataclass
class Result:
    """A result file: its study, and a row for every cell that was made with its settings."""

    study: Study
    cells: pd.DataFrame
    missing: list[str]
    tuning: dict[str, Any]
    command: str

    def group(self, part: Part, method: str, schedule: str) -> pd.DataFrame:
        """The cells of a method on a schedule, by seed."""
        cells = self.cells
        seeds = part.seeds or self.study.seeds_of(method)
        same = (cells["method"] == method) & (cells["schedule"] == schedule)
        return cells[same & cells["seed"].isin(seeds)].sort_values("seed")


def read(path: Path) -> Result:
    """Read a result file of `entrocraft compare`, also one of the first version."""
    data = json.loads(path.read_text()) if path.exists() else {}
    if "cells" in data:
        results = Results(path)
        study = config_from_mapping(Study, results.settings).choose(results.chosen())
        found = [(entry, results.get(study, entry)) for entry in study.entries()]
        rows = [
            _row(cell, entry.method, entry.schedule, entry.seed, study.follows(entry.method))
            for entry, cell in found
            if cell is not None
        ]
        missing = [entry.key for entry, cell in found if cell is None]
        for name, tried in results.tuning.items():
            cells = {key.split("/")[0]: cell for key, cell in results.cells.items()}
            ends = {value: cells.get(f"{name} {value}") for value in tried["tried"]}
            tried["trials"] = {value: cell for value, cell in ends.items() if cell}
        return Result(study, pd.DataFrame(rows), missing, results.tuning, data["command"])
    if "config" in data:  # of the first version
        study = config_from_mapping(Study, data["config"])
        rows = [_row(run, run["group"], "", run["seed"], True) for run in data["runs"]]
    elif "steps" in next(iter(data.get("runs", {}).values()), {}):  # of verl_loop.py
        study = Study(methods={"tilt": {}, "no control": {"control": {"rule": None}}})
        rows = [_verl_row(name, run) for name, run in data["runs"].items()]
    else:
        raise ValueError(f"{path} is no result file with cells or runs; name another one")
    return Result(study, pd.DataFrame(rows), [], data.get("tuning", {}), data["command"])


def with_rivals(
    ours: Result, theirs: Result, ran: Sequence[str], compared: Sequence[str]
) -> Result:
    """Parts that were run again, and the `compared` ones with their rivals from an older file."""
    study = replace(ours.study, parts={name: ours.study.parts[name] for name in (*ran, *compared)})
    parts = [part for part in study.tables if part.name in compared]
    rivals = {name for part in parts for name in part.methods} - {part.reference for part in parts}
    cells = pd.concat([ours.cells, theirs.cells[theirs.cells["method"].isin(rivals)]])
    missing = [key for key in ours.missing if key.split("/")[0] not in rivals]
    return Result(study, cells, missing, {}, ours.command)


def _verl_row(name: str, run: dict[str, Any]) -> dict[str, Any]:
    steps = pd.DataFrame(run["steps"]).set_index("step")
    steps.loc[len(steps)] = 2 * steps.iloc[-1] - steps.iloc[-2]  # the last probe is one step later
    probe = [
        [point["step"], steps["entropy/target"][point["step"]], point["entropy"], point["stderr"]]
        for point in run["probe"]
    ]
    curve = pd.DataFrame(probe, columns=["step", "target", "probe", "stderr"])
    gaps = (curve["probe"] - curve["target"])[1:]
    row = {"method": name, "schedule": "", "seed": 0, "curve": curve, "steered": name == "tilt"}
    row |= {"tracking_error": gaps.abs().mean(), "tracking_bias": gaps.mean()}
    row |= {"final_reward": steps["reward"][-21:-1].mean()}
    row["entropy_start"], row["entropy_end"] = curve["probe"].iloc[[0, -1]]
    return row


def _row(cell: dict[str, Any], method: str, schedule: str, seed: int, follows: bool) -> dict:
    curve = pd.DataFrame(cell["probe"], columns=["step", "target", "probe", "stderr"], dtype=float)
    initial = cell.get("initial", cell.get("target_start"))
    if cell["schedule"] is not None and initial is not None:
        target = schedules.anchor(schedules.from_string(str(cell["schedule"])), initial)
        curve["target"] = [target(step) for step in curve["step"]]
    row = {"method": method, "schedule": schedule, "seed": seed, "initial": initial}
    row |= {"steered": cell.get("steered", cell.get("controlled", follows)), "curve": curve}
    for key in ("tracking_error", "tracking_bias", "final_reward", "kept_fraction"):
        row[key] = cell[key]
    for key in ("saturated_share", "pressure", "probe_stderr"):
        row[key] = cell.get(key)
    row["entropy_start"], row["entropy_end"] = curve["probe"].iloc[[0, -1]]
    for name, at in cell["pass_at"].items():
        row[name] = at["last"] if isinstance(at, dict) else at[1]
    for name, (start, end) in cell.get("evaluated", {}).items():
        row[name], row[f"{name}_first"] = end, start
    return row


# Tables -------------------------------------------------------------------------------------


def tables(result: Result, only: Sequence[str] | None = None) -> str:
    """Markdown: a table for every part, its answers to jumps, factors and trials where it has any.

    Rows are in order of the error. With `only` these parts, without the notes on all tables.
    """
    blocks = [NOTE, BOUND_NOTE] if result.study.schedules else [NOTE]
    blocks = blocks if only is None else []
    for part in result.study.tables:
        if only is not None and part.name not in only:
            continue
        if result.study.parts:
            blocks.append(f"### {part.name}: {part.title}" if part.title else f"### {part.name}")
        blocks += [_part_table(result, part)]
        blocks += filter(None, [_step_table(result, part), _factor_table(result, part)])
        keys = {entry.key for entry in result.study.entries([part.name])}
        if absent := [key for key in result.missing if key in keys]:
            shown = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
            blocks.append(f"{len(absent)} cells of this table are missing: {shown}")
    if not result.cells.empty and not result.cells["steered"].all():
        blocks.append("\\* nothing steers the method; the schedule is a reference for it.")
    if result.tuning:
        blocks += ["Values tried first, each on one seed of its own:", _trials(result.tuning)]
    return "\n\n".join([*blocks, f"Command: `{result.command}`"])


def _methods(part: Part) -> list[str]:
    """The part's methods, the reference first."""
    return list(dict.fromkeys([*filter(None, [part.reference]), *part.methods]))


def _groups(result: Result, part: Part) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Schedule, method and cells, by schedule and then by the error."""
    for schedule in part.schedules:
        found = [(name, result.group(part, name, schedule)) for name in _methods(part)]
        found = [(name, group) for name, group in found if len(group)]
        for name, group in sorted(found, key=lambda item: _error(item[1])):
            yield schedule, name, group


def _error(group: pd.DataFrame) -> float:
    middle = interval(_values(group, "tracking_error"))
    return middle.center if middle else math.inf


def _values(group: pd.DataFrame, key: str) -> list[float]:
    return [] if key not in group else [float(value) for value in group[key].dropna()]


def _part_table(result: Result, part: Part) -> str:
    rows = [
        _summary(result, part, schedule, method, group)
        for schedule, method, group in _groups(result, part)
    ]
    if not rows:
        return "Nothing has been run yet."
    table = pd.DataFrame(rows)
    return markdown(table.loc[:, (table != "").any()])


def _summary(
    result: Result, part: Part, schedule: str, method: str, group: pd.DataFrame
) -> dict[str, str]:
    """One row of a part's table; empty cells where nothing was measured."""
    tried = result.tuning.get(method)
    row = {
        "method": method if group["steered"].all() else f"{method} *",
        "schedule": schedule,
        "seeds": str(len(group)),
        "value": f"{tried['key'].rpartition('.')[2]} {tried['chosen']}" if tried else "",
        "tracking error": number(_values(group, "tracking_error"), 4),
        "bias": number(_values(group, "tracking_bias"), 4),
    }
    if schedule:
        factor = result.study.schedule(schedule).get("bound", 1)
        bound = max(BOUND, BOUND_SHARE * group["initial"].mean()) * factor
        row["bound"] = f"{bound:.4f}"
        row["holds"] = holds(_values(group, "tracking_error"), bound)
    row["final reward"] = number(_values(group, "final_reward"))
    for name in pass_keys(result.cells):
        row[name] = number(_values(group, name))
    ends = f"{number(_values(group, 'entropy_end'))} {fate(group)}"
    row["entropy at the end"] = ends.strip()
    for title, key in (("kept", "kept_fraction"), ("saturated", "saturated_share")):
        row[title] = "".join(f"{np.mean(values):.0%}" for values in [_values(group, key)] if values)
    row["pressure"] = number(_values(group, "pressure"))
    return row


def pass_keys(names: Iterable[str]) -> list[str]:
    """Every pass@k among names, by k."""
    found = [name for name in names if name.startswith("pass@")]
    return sorted(found, key=lambda name: int(name.removeprefix("pass@")))


def number(values: Sequence[float], digits: int = 2) -> str:
    """The middle of values over seeds, and its interval or range where there are several."""
    found = interval(values)
    if found is None:
        return ""
    center, low, high = (f"{x:.{digits}f}" for x in (found.center, found.low, found.high))
    return center if found.n == 1 or low == high else f"{center} [{low}, {high}]"


def holds(errors: Sequence[float], bound: float) -> str:
    """Say whether the middle error, and the interval's upper end too, are within the bound."""
    found = interval(errors)
    if found is None:
        return ""
    if found.center > bound:
        return "no"
    return "the middle only" if found.high > bound else "yes" if found.n > 1 else "yes (one seed)"


def fate(group: pd.DataFrame) -> str:
    """What became of the entropy, in a word."""
    start, end = (interval(_values(group, f"entropy_{name}")) for name in ("start", "end"))
    ratio = end.center / start.center if start and end else 1.0
    return "collapsed" if ratio < COLLAPSED else "exploded" if ratio > EXPLODED else ""


def _step_table(result: Result, part: Part) -> str | None:
    rows = []
    for schedule, method, group in _groups(result, part):
        at = result.study.schedule(schedule).get("step_at")
        if at is None:
            continue
        answers = pd.DataFrame([step_response(curve, at) for curve in group["curve"]])
        arrivals = _values(answers, "arrival_steps")
        rows.append(
            {
                "method": method,
                "schedule": schedule,
                "jump at step": str(at),
                "seeds that arrive": f"{len(arrivals)}/{len(group)}",
                f"steps until within {NEAR} nats": number(arrivals, 1),
                "overshoot, nats": number(_values(answers, "overshoot"), 4),
            }
        )
    return markdown(pd.DataFrame(rows)) if rows else None


def step_response(curve: pd.DataFrame, at: int) -> dict[str, float | None]:
    """How the probe answers a jump of the target at step `at`.

    Returns:
        `arrival_steps`: steps from the jump to the first probe within NEAR of the new target, None
        if there is none. `overshoot`: how far the probe goes beyond the new target, on the side
        away from the old one, in the AFTER_STEP steps after the jump (nats, 0 if it does not). It
        is a largest value, so the probe's own noise is part of it.
    """
    before, after = curve[curve["step"] < at], curve[curve["step"] >= at]
    if before.empty or after.empty:
        return {"arrival_steps": None, "overshoot": None}
    side = math.copysign(1.0, after["target"].iloc[0] - before["target"].iloc[-1])
    gaps = (after["probe"] - after["target"]).round(5)
    near = after["step"][gaps.abs() <= NEAR]
    beyond = side * gaps[(after["step"] > at) & (after["step"] <= at + AFTER_STEP)]
    return {
        "arrival_steps": near.iloc[0] - at if len(near) else None,
        "overshoot": max(0.0, beyond.max()) if len(beyond) else None,
    }


def _factor_table(result: Result, part: Part) -> str | None:
    rows = []
    for schedule in part.schedules:
        for name, methods in part.better_of.items():
            best = _best(result, part, methods, schedule)
            ours = result.group(part, part.reference, schedule).set_index("seed")["tracking_error"]
            theirs = result.group(part, best, schedule).set_index("seed")["tracking_error"]
            pairs = pd.concat([theirs, ours], axis=1, join="inner").dropna()
            if pairs.empty:
                continue
            ratio = ratio_interval(*(list(map(float, pairs.iloc[:, i])) for i in (0, 1)))
            around = "" if len(pairs) == 1 else f" ({ratio.low:.1f} to {ratio.high:.1f})"
            rows.append(
                {
                    "against": name,
                    "schedule": schedule,
                    "its best setting": f"{best} of {len(methods)}" if len(methods) > 1 else best,
                    "seeds": str(len(pairs)),
                    f"error as a multiple of {part.reference}'s": f"{ratio.center:.1f}{around}",
                }
            )
    return markdown(pd.DataFrame(rows)) if rows else None


def _best(result: Result, part: Part, methods: list[str], schedule: str) -> str:
    return min(methods, key=lambda name: _error(result.group(part, name, schedule)))


def _trials(tuning: dict[str, Any]) -> str:
    rows = []
    for name, found in tuning.items():
        row = {"method": name, "key": found["key"].rpartition(".")[2]}
        for place, (value, error) in enumerate(found["tried"].items(), 1):
            text = f"{value}: " + ("failed" if error is None else f"{error:.4f}")
            if known := found.get("trials", {}).get(value):
                text += f" ({known['entropy_end']:.2f})"
            row[f"value {place}: {found['by']} (entropy at the end)"] = text
        rows.append(row)
    return markdown(pd.DataFrame(rows).fillna(""))


def readme_table(result: Result) -> str:
    """Markdown: the reference of the part `peers` and, of each rival, its best setting."""
    [part] = [part for part in result.study.tables if part.name == "peers"]
    rows = []
    for name, methods in {part.reference: [part.reference], **part.better_of}.items():
        groups = {
            schedule: result.group(part, _best(result, part, methods, schedule), schedule)
            for schedule in part.schedules
        }
        row = {"method": f"**{name}**" if name == part.reference else name}
        row["seeds"] = "/".join(sorted({str(len(group)) for group in groups.values()}))
        for title, key, digits in (
            ("error", "tracking_error", 3),
            ("reward", "final_reward", 2),
            ("kept", "kept_fraction", 2),
        ):
            for schedule, group in groups.items():
                row[f"{title}, {schedule}"] = number(_values(group, key), digits)
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def frontier_tables(result: Result, *against: str) -> str:
    """Of each part, what its methods end with, and how much more that is than with others."""
    blocks = []
    for part in result.study.tables:
        blocks.append(f"### {part.name}: {part.title}")
        for table in (
            frontier.part_table(result, part, number),
            *(frontier.differences(result, part, other) for other in against),
        ):
            blocks.append(markdown(table) if len(table) else "Nothing has been run yet.")
    missing = ", ".join(result.missing)
    blocks += [f"{len(result.missing)} cells are missing: {missing}"] if missing else []
    return "\n\n".join([*blocks, f"Command: `{result.command}`"])


def other_table(data: dict[str, Any]) -> str:
    """The table of `cost.py` or `simulator.py`."""
    if "cases" in data:
        rows = [
            {
                "vocabulary": f"{case['vocabulary']:,}",
                "updates": str(case["updates"]),
                "control": case["method"],
                "time of a step": number(case["time_ratios"]),
                "peak memory": number(case["memory_ratios"]),
                "kept": f"{np.mean(case['kept']):.0%}",
            }
            for case in data["cases"]
            if case["method"] != data["plain"]
        ]
    else:
        rows = [
            {"simulator": name, "target": target}
            | {loop: f"{np.mean(errors):.4f}" for loop, errors in by_loop.items()}
            for name, by_target in data["errors"].items()
            for target, by_loop in by_target.items()
        ]
    return markdown(pd.DataFrame(rows))


def reach_rows(data: dict[str, Any]) -> pd.DataFrame:
    """Cells of `reach.py`: one row for each world, setting and learning rate; lists over seeds."""
    cells = pd.DataFrame(data["cells"].values())
    setting = cells["rollouts"].astype(str)
    setting += cells["updates"].map(lambda n: f", {n} updates" if n > 1 else "")
    setting += cells["iterations"].map(lambda n: f", {n} iterations" if n > 1 else "")
    setting += cells["lora"].map({True: ", LoRA", False: ""})
    setting += cells["optimizer"].map(lambda name: ", SGD" if name == "sgd" else "")
    setting += cells["scheduler"].map(lambda name: "" if name == "constant" else ", decaying rate")
    cells["setting"] = setting
    for key in ("error", "bias"):
        cells[key] = 100 * cells[key] / cells["initial"]
    values = ["initial", "entropy_end", "error", "bias", "reward_end"]
    worlds = list(dict.fromkeys(cells["world"]))
    cells["place"] = cells["world"].map(worlds.index)
    index = ["place", "rollouts", "world", "setting", "learning_rate"]
    table = cells.sort_values("seed").pivot_table(values, index, "control", aggfunc=list)
    return table.droplevel(["place", "rollouts"])


def reach_table(data: dict[str, Any]) -> str:
    """Where the schedule is held, in three columns of errors."""
    table, rows = reach_rows(data), []
    controls = {"on": "control", "learning-rate feedback": "rate lowered", "floor 0.02": "floor"}
    for (world, setting, rate), found in table.iterrows():

        def shown(key: str, control: str, digits: int, found: pd.Series = found) -> str:
            values = found.get((key, control))
            return number(values, digits) if isinstance(values, list) else ""

        row = {"setup": world, "rollouts": setting, "learning rate": f"{rate:g}"}
        row["free run, nats"] = shown("entropy_end", "off", 2)
        for control, name in controls.items():
            row[f"error, {name}"] = shown("error", control, 1)
        row |= {"bias": shown("bias", "on", 1), "reward, free": shown("reward_end", "off", 2)}
        for control, name in list(controls.items())[:2]:
            row[name] = shown("reward_end", control, 2)
        rows.append(row)
    return markdown(pd.DataFrame(rows))


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


def markdown(table: pd.DataFrame) -> str:
    """Write a table of texts in Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def into_page(made: str, page: Path) -> None:
    """Write tables into a page, between its two marks.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text()
    if START not in text or END not in text:
        raise ValueError(f"{page} has no lines {START} and {END} to write the tables between")
    before, after = text.partition(START)[0], text.partition(END)[2]
    page.write_text(f"{before}{START}\n\n{made}\n\n{END}{after}")


# Figures ------------------------------------------------------------------------------------


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
        names = _methods(part)
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
        row = {key: interval(_values(group, key)).center for key in ("entropy_end", *panels)}
        color = PALETTE[0] if group["steered"].all() else PALETTE[1]
        rows.append(row | {"method": method, "color": color})
    points = pd.DataFrame(rows).sort_values("entropy_end")
    points = points[points["entropy_end"] < EXPLODED]
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


# The command --------------------------------------------------------------------------------


def tracking() -> Result:
    """The tracking study: ours with the present code, its rivals with the first version's."""
    ours, first = read(RESULTS / "tracking-0.2.json"), read(RESULTS / "tracking.json")
    methods = set(ours.cells["method"])
    ran = [p for p in ours.study.tables if not p.better_of and methods & set(p.methods)]
    return with_rivals(ours, first, [part.name for part in ran], ("peers",))


def pages() -> dict[Path, str]:
    """Page -> its tables."""
    first, peers, variants = (
        read(RESULTS / f"{name}.json") for name in ("tracking", "peers", "variants")
    )
    heading = (
        "### tilt's options on the same work\n\n*weights*: no draw; *renormalised*: smaller "
        "batches scaled up (both deleted since); *uniform_groups*: constant-reward groups join."
    )
    older = tables(
        first,
        ("inner", "sampled", "sampled-4", "levels", "estimators", "robustness", "options"),
    )
    return {
        ROOT / "docs" / "tracking.md": "\n\n".join(
            [tables(tracking()), "## The first version", older]
        ),
        ROOT / "README.md": readme_table(tracking()),
        ROOT / "docs" / "reach.md": reach_table(_json("reach")),
        ROOT / "docs" / "when.md": frontier_tables(
            read(RESULTS / "frontier.json"), "adaptive_bonus", "GRPO"
        ),
        ROOT / "docs" / "cost.md": other_table(_json("cost")),
        ROOT / "docs" / "peers.md": "\n\n".join([tables(peers), heading, tables(variants)]),
    }


def figures() -> dict[Path, Figure]:
    """File -> its figure."""
    images = ROOT / "docs" / "img"
    peers = read(RESULTS / "peers.json")
    return {
        images / "tracking.png": curves(tracking()),
        images / "demo_entropy.png": curves(read(RESULTS / "demo.json")),
        images / "peers.png": curves(peers),
        images / "peers_tradeoff.png": tradeoff(peers),
        images / "frontier.png": frontier.figure(read(RESULTS / "frontier.json")),
        images / "reach.png": reach_figure(_json("reach")),
        images / "verl.png": curves(read(RESULTS / "verl.json")),
    }


def _json(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def main(arguments: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="result files; none: documentation")
    parser.add_argument("--figure", type=Path, help="draw the curves of the first file instead")
    options = parser.parse_args(arguments)
    with style():
        if options.figure:
            if not options.files:
                parser.error("--figure needs the result file to draw")
            save_png(curves(read(options.files[0])), options.figure)
        elif options.files:
            for path in options.files:
                data = json.loads(path.read_text())
                other = "cases" in data or "errors" in data
                print(other_table(data) if other else tables(read(path)), end="\n\n")
        else:
            for page, made in pages().items():
                into_page(made, page)
            for path, figure in figures().items():
                save_png(figure, path)


if __name__ == "__main__":
    main()
