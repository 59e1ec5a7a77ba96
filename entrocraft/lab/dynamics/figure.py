"""The figure of a dynamics study: predicted against measured change, theorem, reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from entrocraft.lab.dynamics.summary import UNFITTED, predictions_of
from entrocraft.lab.dynamics.trials import LEVELS
from entrocraft.lab.report import style as looks

_RULES = {
    ("sign", "sign"): ("sign", looks.color_of("sign")),
    ("switch", "sign"): ("switch", looks.color_of("switch")),
    ("tilt", "sampled"): ("tilt, sampled", looks.color_of("tilt")),
    ("tilt", "logit"): ("tilt, logit", looks.SKY),
    ("tilt", "gradient"): ("tilt, gradient", looks.ORANGE),
}
_SIGNS = {"positive": ("A > 0", looks.BLUE), "negative": ("A < 0", looks.VERMILION)}
_SHARES = {
    "share_tokens": "Tokens: log p above OSB",
    "share_sequences": "Sequences: sum of log p above that of OSB",
    "share_sequences_opposed": "Sequences: summed change against A",
}


def draw(results: dict[str, Any]) -> Figure:
    """Draw what dynamics.json holds; save it with `entrocraft.lab.report.save_png`."""
    with looks.style():
        heights = [3.25, 2.45, *([3.0] if results["reach"] else [])]
        layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.1, hspace=0.03, wspace=0.04)
        figure = Figure(figsize=(10.6, sum(heights)), layout=layout)
        grid: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
        _draw_predictions(grid[0, 0], results)
        _draw_theorem(grid[1, 0], pd.DataFrame(results["summary"]["theorem"]))
        if results["reach"]:
            _draw_reach(grid[2, 0], results["summary"]["reach"])
    return figure


def _title(figure: Any, text: str) -> None:
    figure.suptitle(text, x=0.008, ha="left", fontsize=9.5, color=looks.SOFT)


def _draw_predictions(figure: Any, results: dict[str, Any]) -> None:
    frame = pd.DataFrame(results["patterns"])
    y = 1e3 * frame["post_update"].to_numpy(float)
    # one scale for all, set by what happened; the wildest predictions may lie outside
    room = 0.12 * np.ptp(y) or 1.0
    limits = (y.min() - room, y.max() + room)
    # the last row of a level: pooled over stages, and of the first version's two ways "left out"
    scores = pd.DataFrame(results["summary"]["patterns"]).drop_duplicates("level", keep="last")
    scores = scores.set_index("level")
    axes = figure.subplots(1, len(LEVELS), sharex=True, sharey=True)
    for axis, level in zip(axes, LEVELS, strict=True):
        axis.plot(limits, limits, color=looks.SHADE, lw=1.0, zorder=1)
        x = np.clip(1e3 * predictions_of(frame, level), *limits)
        for stage, color in zip(frame["stage"].unique(), looks.PALETTE, strict=False):
            here = (frame["stage"] == stage).to_numpy()
            mark = {"s": 13, "color": color, "alpha": 0.75, "lw": 0, "zorder": 2}
            axis.scatter(x[here], y[here], label=f"from step {stage}", **mark)
        axis.set(xlim=limits, ylim=limits, aspect="equal")
        axis.grid(visible=True, axis="both")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        r2, within, sign = scores.loc[level, ["r2", "r2_within", "sign"]]
        text = f"{level}\nR² {r2:.3f}, in stages {within:.3f}\nsign agrees {sign:.1%}"
        axis.set_title(text, linespacing=1.35)
        axis.set_xlabel("as predicted" if level in UNFITTED else "line fitted to the others")
    axes[0].set_ylabel("post-update change of entropy")
    axes[-1].legend(loc="lower right", handletextpad=0.1, borderpad=0, fontsize=8)
    text = "Predicted against post-update change of entropy by one optimizer step, "
    _title(figure, text + "thousandths of a nat per token")


def _draw_theorem(figure: Any, frame: pd.DataFrame) -> None:
    frame = frame[frame["stage"] != "all"]
    stages = frame["stage"].unique()
    axes = figure.subplots(1, len(_SHARES), sharey=True)
    for axis, (key, title) in zip(axes, _SHARES.items(), strict=True):
        for shift, (advantage, (_, color)) in zip((-0.19, 0.19), _SIGNS.items(), strict=True):
            shares = frame.loc[frame["advantage"] == advantage, key]
            bars = axis.bar(np.arange(len(stages)) + shift, shares, width=0.34, color=color, lw=0)
            axis.bar_label(bars, fmt="{:.0%}", padding=2, fontsize=8, color=looks.SOFT)
        axis.set_xticks(range(len(stages)), [f"from step {stage}" for stage in stages])
        axis.set(title=title, ylim=(0, 1.12), yticks=[0, 0.5, 1.0])
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0].set_ylabel("share that meets it")
    text = "The paper's condition with the real output-space baseline (OSB), by the sign of "
    _title(figure, text + "the advantage A")
    handles = [Patch(facecolor=color, label=name) for name, color in _SIGNS.values()]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, borderpad=0)


def _draw_reach(figure: Any, rows: list[dict[str, Any]]) -> None:
    rows = [row for row in rows if row["stage"] == rows[-1]["stage"] and row["rule"] != "plain"]
    # a scale for each number of updates: the reach grows by orders of magnitude
    updates = sorted({row["updates"] for row in rows})
    axes = dict(zip(updates, figure.subplots(1, len(updates), squeeze=False)[0], strict=True))
    marks = {1: "^", -1: "v"}
    line: dict[str, Any] = {"color": looks.SOFT, "lw": 0, "markersize": 6}
    for row in rows:
        case, clipped = (row["rule"], row["level"]), row["clip"] is not None
        color = _RULES[case][1]
        axes[row["updates"]].errorbar(
            list(_RULES).index(case) + (-0.15 if clipped else 0.15),
            row["probe_against_plain"],
            yerr=row["probe_against_plain_stderr"] or 0.0,
            elinewidth=1.1,
            marker=marks[row["direction"]],
            markerfacecolor=color if clipped else looks.PAPER,
            **line | {"color": color},
        )
    for count, axis in axes.items():
        axis.axhline(0, color=looks.INK, lw=0.8, zorder=1)
        title = f"{count} optimizer step{'s' if count > 1 else ''} on the same batch"
        axis.set(title=title, xlim=(-0.5, len(_RULES) - 0.5), xticks=[])
    axes[updates[0]].set_ylabel("entropy against plain,\nnats per token")
    text = "Reachable change: entropy of fresh samples after each rule, less that after the "
    _title(figure, text + "plain update (bars: standard error)")
    handles: list[Any] = [Patch(facecolor=color, label=name) for name, color in _RULES.values()]
    handles += [
        Line2D([], [], marker="^", label="asked up", **line),
        Line2D([], [], marker="v", label="asked down", **line),
        Line2D([], [], marker="o", label="clip range 0.2", **line),
        Line2D([], [], marker="o", label="not clipped", markerfacecolor=looks.PAPER, **line),
    ]
    figure.legend(handles=handles, loc="outside right center", borderpad=0)
