"""The picture of a study: predictions, the theorem, reachable change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from entrocraft.lab.dynamics.patterns import LEVELS
from entrocraft.lab.dynamics.summary import UNFITTED, predictions_of
from entrocraft.lab.report import style as looks

__all__ = ["draw"]

_RULES = {
    ("sign", "sign"): ("sign", looks.ORANGE),
    ("switch", "sign"): ("switch", looks.PURPLE),
    ("tilt", "sampled"): ("tilt, sampled", looks.SKY),
    ("tilt", "logit"): ("tilt, logit", looks.GREEN),
    ("tilt", "gradient"): ("tilt, gradient", looks.BLUE),
}
_SHARES = {
    "share_tokens": "Tokens: log p above baseline",
    "share_sequences": "Sequences: summed log p above summed baseline",
    "share_sequences_opposed": "Sequences: summed entropy change against A",
}


def draw(results: dict[str, Any]) -> Figure:
    """Draw what dynamics.json holds; save it with `entrocraft.lab.report.save_png`."""
    with looks.style():
        heights = [3.1, 2.45, *([3.0] if results["reach"] else [])]
        layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.1, hspace=0.03, wspace=0.04)
        figure = Figure(figsize=(10.6, sum(heights)), layout=layout)
        grid: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
        _draw_predictions(grid[0, 0], results)
        _draw_theorem(grid[1, 0], pd.DataFrame(results["summary"]["theorem"]))
        if results["reach"]:
            clips = list(dict.fromkeys(row["clip"] for row in results["reach"]))
            _draw_reach(grid[2, 0], results["summary"]["reach"], clips)
    return figure


def _title(figure: Any, text: str) -> None:
    figure.suptitle(text, x=0.008, ha="left", fontsize=9.5, color=looks.SOFT)


def _draw_predictions(figure: Any, results: dict[str, Any]) -> None:
    frame = pd.DataFrame(results["patterns"])
    y = 1e3 * frame["post_update"].to_numpy(float)
    stages = frame["stage"].unique()
    # one scale for all, set by what happened; the wildest predictions may lie outside
    room = 0.12 * np.ptp(y) or 1.0
    limits = (y.min() - room, y.max() + room)
    axes = figure.subplots(1, len(LEVELS), sharex=True, sharey=True)
    for axis, level in zip(axes, LEVELS, strict=True):
        axis.plot(limits, limits, color=looks.SHADE, lw=1.0, zorder=1)
        predicted = 1e3 * list(predictions_of(frame, level).values())[-1]
        for stage, color in zip(stages, looks.PALETTE, strict=False):
            here = (frame["stage"] == stage).to_numpy()
            x = np.clip(predicted[here], *limits)
            label = f"from step {stage}"
            axis.scatter(x, y[here], s=13, color=color, alpha=0.75, lw=0, zorder=2, label=label)
        axis.set(xlim=limits, ylim=limits, aspect="equal")
        axis.grid(visible=True, axis="both")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        # pooled over stages, left out where something is fitted
        score = [row for row in results["summary"]["patterns"] if row["level"] == level][-1]
        r2, within = (_number(score[key]) for key in ("r2", "r2_within"))
        axis.set_title(
            f"{level}\nR² {r2}, in stages {within}\nsign agrees {score['sign']:.1%}",
            linespacing=1.35,
        )
        axis.set_xlabel("as predicted" if level in UNFITTED else "line fitted to the others")
    axes[0].set_ylabel("post-update change of entropy")
    axes[-1].legend(loc="lower right", handletextpad=0.1, borderpad=0, fontsize=8)
    _title(
        figure,
        "Predicted against post-update change of entropy by one optimizer step, "
        "thousandths of a nat per token",
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def _draw_theorem(figure: Any, frame: pd.DataFrame) -> None:
    frame = frame[frame["stage"] != "all"]
    stages = frame["stage"].unique()
    signs = {"positive": ("A > 0", looks.BLUE), "negative": ("A < 0", looks.VERMILION)}
    axes = figure.subplots(1, len(_SHARES), sharey=True)
    for axis, (key, title) in zip(axes, _SHARES.items(), strict=True):
        for shift, (advantage, (_, color)) in zip((-0.19, 0.19), signs.items(), strict=True):
            shares = frame.loc[frame["advantage"] == advantage, key]
            bars = axis.bar(np.arange(len(stages)) + shift, shares, width=0.34, color=color, lw=0)
            axis.bar_label(bars, fmt="{:.0%}", padding=2, fontsize=8, color=looks.SOFT)
        axis.set_title(title)
        axis.set_xticks(range(len(stages)), [f"from step {stage}" for stage in stages])
        axis.set(ylim=(0, 1.12), yticks=[0, 0.5, 1.0])
        axis.axhline(0.5, color=looks.SHADE, lw=0.8, zorder=0.5)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0].set_ylabel("share that meets it")
    _title(
        figure,
        "The paper's condition with the real output-space baseline, by the sign of the advantage A",
    )
    handles = [Patch(facecolor=color, label=name) for name, color in signs.values()]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, borderpad=0)


def _draw_reach(figure: Any, rows: Sequence[dict[str, Any]], clips: Sequence[float | None]) -> None:
    rows = [row for row in rows if row["stage"] == rows[-1]["stage"] and row["rule"] != "plain"]
    faces = dict(zip(clips, (None, looks.PAPER, looks.SHADE), strict=False))
    # a scale for each number of updates: the reach grows by orders of magnitude
    updates = sorted({row["updates"] for row in rows})
    axes = dict(zip(updates, figure.subplots(1, len(updates), squeeze=False)[0], strict=True))
    for row in rows:
        case = row["rule"], row["level"]
        color = _RULES[case][1]
        axes[row["updates"]].errorbar(
            list(_RULES).index(case) + 0.3 * (clips.index(row["clip"]) - (len(clips) - 1) / 2),
            row["probe_against_plain"],
            yerr=row["probe_against_plain_stderr"] or 0.0,
            color=color,
            marker="^" if row["direction"] > 0 else "v",
            markerfacecolor=faces.get(row["clip"]) or color,
            markersize=6,
            lw=0,
            elinewidth=1.1,
            zorder=3,
        )
    for count, axis in axes.items():
        axis.axhline(0, color=looks.INK, lw=0.8, zorder=1)
        axis.set_title(f"{count} optimizer step{'s' if count > 1 else ''} on the same batch")
        axis.set(xlim=(-0.5, len(_RULES) - 0.5), xticks=[])
    axes[updates[0]].set_ylabel("entropy against plain,\nnats per token")
    _title(
        figure,
        "Reachable change: entropy of fresh samples after each rule, less that after the plain "
        "update (bars: standard error)",
    )
    handles: list[Any] = [Patch(facecolor=color, label=name) for name, color in _RULES.values()]
    shapes = [("^", looks.SOFT, "asked up"), ("v", looks.SOFT, "asked down")]
    for clip, face in faces.items():
        name = "not clipped" if clip is None else f"clip range {clip:g}"
        shapes.append(("o", face or looks.SOFT, name))
    handles += [
        Line2D([], [], color=looks.SOFT, marker=m, markerfacecolor=f, lw=0, markersize=6, label=n)
        for m, f, n in shapes
    ]
    figure.legend(handles=handles, loc="outside right center", borderpad=0)
