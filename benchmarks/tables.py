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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks import frontier
from benchmarks.figures import curves, reach_figure, tradeoff
from benchmarks.studies import (
    RESULTS,
    Result,
    methods_of,
    pass_keys,
    reach_rows,
    read,
    read_json,
    tracking,
    values_of,
)
from entrocraft.lab.grid.study import Part
from entrocraft.lab.report.style import (
    save_png,
    style,
)
from entrocraft.lab.statistics import interval, ratio_interval

ROOT = RESULTS.parent.parent
START, END = "<!-- tables -->", "<!-- end of tables -->"

BOUND, BOUND_SHARE = 0.010, 0.01
"""Nats of tracking error, or share of the initial entropy, that count as following a schedule."""
COLLAPSED, EXPLODED = 0.5, 1.5
"""Entropy at the end over entropy at the start, below and above which a table says so."""
NEAR, AFTER_STEP = 0.02, 40
"""Nats from a new target that count as arrived; steps in which overshoot is looked for."""
NOTE = (
    "Numbers over seeds are interquartile means with 95 % bootstrap intervals, over two seeds the "
    "mean with the range. Tracking error: mean distance of the probe from the target after step "
    "20, in nats per token; bias: with its sign."
)
BOUND_NOTE = (
    f"The bound is {BOUND:.3f} nats or {BOUND_SHARE:.0%} of the initial entropy, whichever is "
    "larger, times the schedule's factor; it holds if the interval's upper end is within."
)


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


def _groups(result: Result, part: Part) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Schedule, method and cells, by schedule and then by the error."""
    for schedule in part.schedules:
        found = [(name, result.group(part, name, schedule)) for name in methods_of(part)]
        found = [(name, group) for name, group in found if len(group)]
        for name, group in sorted(found, key=lambda item: _error(item[1])):
            yield schedule, name, group


def _error(group: pd.DataFrame) -> float:
    middle = interval(values_of(group, "tracking_error"))
    return middle.center if middle else math.inf


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
        "tracking error": number(values_of(group, "tracking_error"), 4),
        "bias": number(values_of(group, "tracking_bias"), 4),
    }
    if schedule:
        factor = result.study.schedule(schedule).get("bound", 1)
        bound = max(BOUND, BOUND_SHARE * group["initial"].mean()) * factor
        row["bound"] = f"{bound:.4f}"
        row["holds"] = holds(values_of(group, "tracking_error"), bound)
    row["final reward"] = number(values_of(group, "final_reward"))
    for name in pass_keys(result.cells):
        row[name] = number(values_of(group, name))
    ends = f"{number(values_of(group, 'entropy_end'))} {fate(group)}"
    row["entropy at the end"] = ends.strip()
    for title, key in (("kept", "kept_fraction"), ("saturated", "saturated_share")):
        row[title] = "".join(
            f"{np.mean(values):.0%}" for values in [values_of(group, key)] if values
        )
    row["pressure"] = number(values_of(group, "pressure"))
    return row


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
    start, end = (interval(values_of(group, f"entropy_{name}")) for name in ("start", "end"))
    ratio = end.center / start.center if start and end else 1.0
    return "collapsed" if ratio < COLLAPSED else "exploded" if ratio > EXPLODED else ""


def _step_table(result: Result, part: Part) -> str | None:
    rows = []
    for schedule, method, group in _groups(result, part):
        at = result.study.schedule(schedule).get("step_at")
        if at is None:
            continue
        answers = pd.DataFrame([step_response(curve, at) for curve in group["curve"]])
        arrivals = values_of(answers, "arrival_steps")
        rows.append(
            {
                "method": method,
                "schedule": schedule,
                "jump at step": str(at),
                "seeds that arrive": f"{len(arrivals)}/{len(group)}",
                f"steps until within {NEAR} nats": number(arrivals, 1),
                "overshoot, nats": number(values_of(answers, "overshoot"), 4),
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
                row[f"{title}, {schedule}"] = number(values_of(group, key), digits)
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


# The command --------------------------------------------------------------------------------


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
        ROOT / "docs" / "reach.md": reach_table(read_json("reach")),
        ROOT / "docs" / "when.md": frontier_tables(
            read(RESULTS / "frontier.json"), "adaptive_bonus", "GRPO"
        ),
        ROOT / "docs" / "cost.md": other_table(read_json("cost")),
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
        images / "reach.png": reach_figure(read_json("reach")),
        images / "verl.png": curves(read(RESULTS / "verl.json")),
    }


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
