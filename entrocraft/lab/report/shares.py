"""What every group solved at its last evaluation, one row per group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from entrocraft.lab.report.groups import Group, headline_k, pass_spread
from entrocraft.lab.report.marks import Look, add_legend, short_name
from entrocraft.lab.report.style import INK, PAPER, SHADE, SOFT


def shares_height(groups: int) -> float:
    """Return the height (inches) that a picture of so many groups needs."""
    return 0.9 + 0.2 * max(groups, 4)


def draw_shares(
    figure: FigureBase, groups: Sequence[Group], colors: Mapping[str, str], narrow: bool
) -> None:
    """Draw pass@1 and the largest pass@k of each group.

    A gray line leads from the first evaluation to the last; the bar is the interval over the
    seeds, or the range of two.

    Args:
        figure: an empty figure, or a part of one.
        groups: groups with an evaluation, from top to bottom.
        colors: group -> its color.
        narrow: shorten the names for a phone.
    """
    axis = figure.subplots()
    k = headline_k([s for group in groups for s in group.runs])
    shift = 0.17 if k else 0.0
    handles: dict[str, Any] = {}
    for key, up, face in (("pass@1", -shift, None), (f"pass@{k}", shift, PAPER)):
        shape: Look = {"marker": "o", "markersize": 4, "lw": 1.4, "markeredgewidth": 1.2}
        for row, group in enumerate(groups):
            first, last = pass_spread(group, key, "first"), pass_spread(group, key)
            if first is None or last is None:
                continue
            color = colors[group.name]
            axis.plot([first.center, last.center], [row + up] * 2, color=SHADE, lw=0.8, zorder=1.5)
            axis.plot(first.center, row + up, color=SHADE, marker="|", markersize=5, zorder=1.5)
            if last.n > 1:
                axis.plot([last.low, last.high], [row + up] * 2, color=color, lw=1.4, zorder=2)
            dot: Look = {**shape, "color": color, "markerfacecolor": face or color}
            axis.plot(last.center, row + up, **dot, zorder=3)
            handles[key] = Line2D([], [], color=SOFT, markerfacecolor=face or SOFT, **shape)
    handles["first evaluation"] = Line2D([], [], color=SHADE, marker="|", markersize=6, lw=0.8)
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.set_yticks(range(len(groups)), [short_name(g.name, 20 if narrow else 40) for g in groups])
    axis.tick_params(axis="y", labelsize=8.5, labelcolor=INK)
    axis.set_yticks(np.arange(0.5, len(groups) - 1), minor=True)
    axis.grid(False, axis="y")
    axis.grid(True, which="minor", axis="y")
    axis.grid(True, axis="x")
    axis.tick_params(axis="y", which="minor", length=0)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    add_legend(figure, {}, handles, narrow, "Share of evaluation problems solved")
