"""Reward at equal entropy: tables and figure of a study whose methods share a schedule.

`tables.py` draws them for the documentation; it also reads the result file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.studies import Result
from entrocraft.lab.grid.study import Part
from entrocraft.lab.report.style import color_of, empty_figure
from entrocraft.lab.statistics import difference_interval, interval

ENDS = {
    "entropy at the end": "entropy_end",
    "tracking error": "tracking_error",
    "final reward": "final_reward",
    "pass@1": "pass@1",
    "pass@8": "pass@8",
    "pass@32": "pass@32",
    "Cover@0.5": "cover@0.5",
    "majority": "majority",
    "distinct": "distinct",
    "sharpening tax": "tax",
}
"""Title of a column -> column of the cells."""
COMPARED = {"final reward": "final_reward", "pass@1": "pass@1", "pass@32": "pass@32"}

Format = Callable[[Any, int], str]


def groups(result: Result, part: Part) -> Iterator[tuple[str, pd.DataFrame]]:
    """Method and cells of a part that has one schedule."""
    (schedule,) = part.schedules
    for method in part.methods:
        if len(cells := result.group(part, method, schedule)):
            yield method, cells


def part_table(result: Result, part: Part, number: Format) -> pd.DataFrame:
    """One row a method: what it ends with."""
    rows = []
    for method, cells in groups(result, part):
        cells = cells.assign(tax=cells["sharpening_first"] - cells["sharpening"])
        row = {"method": method, "seeds": str(len(cells))}
        for title, key in ENDS.items():
            digits = 4 if key == "tracking_error" else 3
            row[title] = number(cells[key].tolist(), digits)
        row["kept"] = f"{cells['kept_fraction'].fillna(1).mean():.0%}"
        rows.append(row)
    return pd.DataFrame(rows)


def differences(result: Result, part: Part, against: str) -> pd.DataFrame:
    """One row a method: what it has more than another one, seed by seed."""
    found = dict(groups(result, part))
    rows = []
    for method, cells in found.items():
        if method == against or against not in found:
            continue
        pairs = cells.merge(found[against], on="seed", suffixes=("", " of the other"))
        row = {"method": method, "seeds": str(len(pairs))}
        for title, key in COMPARED.items():
            more = difference_interval(tuple(pairs[key]), tuple(pairs[f"{key} of the other"]))
            row[f"{title}, more than {against}"] = f"{more:+.3f}" if more else ""
        rows.append(row)
    return pd.DataFrame(rows)


def figure(result: Result) -> Figure:
    """Reward and pass@32 at the end against the entropy that is left, a row for each part."""
    parts = [part for part in result.study.tables if any(True for _ in groups(result, part))]
    panels = {"final_reward": "reward, last 20 steps", "pass@32": "pass@32 at the end"}
    drawn = empty_figure(8.8, 3.4 * len(parts))
    for row, part in zip(drawn.subplots(len(parts), 2, squeeze=False), parts, strict=True):
        for axis, (key, title) in zip(row, panels.items(), strict=True):
            axis.set(title=f"{part.name}: {title}", xlabel="entropy at the end, nats per token")
            for method, cells in groups(result, part):
                ends = [interval(cells[column].tolist()) for column in ("entropy_end", key)]
                x, y = (end for end in ends if end is not None)
                axis.errorbar(
                    x.center,
                    y.center,
                    xerr=[[x.center - x.low], [x.high - x.center]],
                    yerr=[[y.center - y.low], [y.high - y.center]],
                    marker="o",
                    color=color_of(method),
                    label=method,
                )
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return drawn
