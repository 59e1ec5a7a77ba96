"""The picture of a study: predictions, the theorem, authority."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from entrocraft.lab.dynamics.patterns import PREDICTIONS
from entrocraft.lab.dynamics.summary import UNFITTED, Rows, predictions_of
from entrocraft.lab.report.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALETTE,
    PAPER,
    PURPLE,
    SHADE,
    SKY,
    SOFT,
    VERMILION,
    style,
)

__all__ = ["draw"]

_WIDTH = 10.6
_SIDE = 3.1  # inches of a row of scatters, titles and labels included
_MILLI = 1e3

_RULES = {
    ("sign", "sign"): ("sign", ORANGE),
    ("switch", "sign"): ("switch", PURPLE),
    ("tilt", "sampled"): ("tilt, sampled", SKY),
    ("tilt", "logit"): ("tilt, logit", GREEN),
    ("tilt", "gradient"): ("tilt, gradient", BLUE),
}

_FACES = (None, PAPER, SHADE)
"""Fill of a mark by the position of its clip range in the config; None is the rule's color."""

_SHARES = {
    "share_tokens": "Tokens: log p above baseline",
    "share_sequences": "Sequences: summed log p above summed baseline",
    "share_sequences_opposed": "Sequences: summed entropy change against A",
}


def draw(results: dict[str, Any]) -> Figure:
    """Draw what dynamics.json holds; save it with `entrocraft.lab.report.save_png`."""
    with style():
        clips = list(dict.fromkeys(row["clip"] for row in results["authority"]))
        heights = [_SIDE, 2.45, *([3.0] if clips else [])]
        layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.1, hspace=0.03, wspace=0.04)
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout=layout)
        grid: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
        rows = grid[:, 0]
        _draw_scatters(rows[0], results)
        _draw_theorem(rows[1], results["summary"]["theorem"])
        if clips:
            _draw_authority(rows[2], results["summary"]["authority"], clips)
    return figure


def _looks(stages: Sequence[int]) -> dict[int, str]:
    return {stage: PALETTE[i % len(PALETTE)] for i, stage in enumerate(stages)}


# ------------------------------------------------------------------ predictions


def _draw_scatters(figure: Any, results: dict[str, Any]) -> None:
    rows: Rows = results["patterns"]
    realized = _MILLI * np.array([row["realized"] for row in rows])
    stages = np.array([row["stage"] for row in rows])
    looks = _looks(sorted(set(stages.tolist())))
    drawn = {
        level: _MILLI * list(predictions_of(rows, level).values())[-1] for level in PREDICTIONS
    }
    # one scale for all, set by what happened; the wildest predictions may lie outside
    low, high = float(realized.min()), float(realized.max())
    room = 0.12 * (high - low) or 1.0
    limits = (low - room, high + room)
    axes = figure.subplots(1, len(PREDICTIONS), sharex=True, sharey=True)
    for axis, (level, predicted) in zip(axes, drawn.items(), strict=True):
        axis.plot(limits, limits, color=SHADE, lw=1.0, zorder=1)
        for stage, color in looks.items():
            here = stages == stage
            axis.scatter(
                np.clip(predicted[here], *limits),
                realized[here],
                s=13,
                color=color,
                alpha=0.75,
                lw=0,
                zorder=2,
            )
        axis.set(xlim=limits, ylim=limits, aspect="equal")
        axis.grid(visible=True, axis="both")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        way = "as predicted" if level in UNFITTED else "line fitted to the others"
        axis.set_title(f"{level}\n{_score(results, level)}", linespacing=1.35)
        axis.set_xlabel(way)
    axes[0].set_ylabel("realized change of entropy")
    figure.suptitle(
        "Predicted against realized change of entropy by one optimizer step, "
        "thousandths of a nat per token",
        x=0.008,
        ha="left",
        fontsize=9.5,
        color=SOFT,
    )
    handles = [
        Line2D([], [], color=color, marker="o", lw=0, markersize=4, label=f"from step {stage}")
        for stage, color in looks.items()
    ]
    axes[-1].legend(handles=handles, loc="lower right", handletextpad=0.1, borderpad=0, fontsize=8)


def _score(results: dict[str, Any], level: str) -> str:
    rows = [row for row in results["summary"]["patterns"] if row["level"] == level]
    last = rows[-1]  # pooled over stages, left out where something is fitted
    r2, within = (_number(last[key]) for key in ("r2", "r2_within"))
    several = last["stage"] == "all"
    sign = f"sign agrees {last['sign']:.1%}"
    return f"R² {r2}, in stages {within}\n{sign}" if several else f"R² {r2}\n{sign}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


# ------------------------------------------------------------------ the theorem


def _draw_theorem(figure: Any, rows: Rows) -> None:
    stages = [stage for stage in dict.fromkeys(row["stage"] for row in rows) if stage != "all"]
    looks = {"positive": ("A > 0", BLUE), "negative": ("A < 0", VERMILION)}
    axes = figure.subplots(1, len(_SHARES), sharey=True)
    for axis, (key, title) in zip(axes, _SHARES.items(), strict=True):
        for shift, (advantage, (_, color)) in zip((-0.19, 0.19), looks.items(), strict=True):
            shares = [
                row[key] for row in rows if row["advantage"] == advantage and row["stage"] != "all"
            ]
            places = np.arange(len(stages)) + shift
            axis.bar(places, shares, width=0.34, color=color, lw=0)
            for place, share in zip(places, shares, strict=True):
                axis.text(place, share + 0.025, f"{share:.0%}", ha="center", fontsize=8, color=SOFT)
        axis.set_title(title)
        axis.set_xticks(range(len(stages)), [f"from step {stage}" for stage in stages])
        axis.set_ylim(0, 1.12)
        axis.set_yticks([0, 0.5, 1.0])
        axis.axhline(0.5, color=SHADE, lw=0.8, zorder=0.5)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0].set_ylabel("share that meets it")
    figure.suptitle(
        "The paper's condition with the real output-space baseline, by the sign of the advantage A",
        x=0.008,
        ha="left",
        fontsize=9.5,
        color=SOFT,
    )
    handles = [Patch(facecolor=color, label=name) for name, color in looks.values()]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, borderpad=0)


# -------------------------------------------------------------------- authority


def _draw_authority(figure: Any, rows: Rows, clips: Sequence[float | None]) -> None:
    stage = rows[-1]["stage"]
    rows = [row for row in rows if row["stage"] == stage and row["rule"] != "plain"]
    updates = sorted({row["updates"] for row in rows})
    # a scale for each number of updates: authority grows by orders of magnitude
    axes = figure.subplots(1, len(updates), squeeze=False)[0]
    for axis, count in zip(axes, updates, strict=True):
        axis.axhline(0, color=INK, lw=0.8, zorder=1)
        for row in rows:
            if row["updates"] == count:
                _draw_rule(axis, row, clips)
        axis.set_title(f"{count} optimizer step{'s' if count > 1 else ''} on the same batch")
        axis.set_xlim(-0.5, len(_RULES) - 0.5)
        axis.set_xticks([])
    axes[0].set_ylabel("entropy against plain,\nnats per token")
    figure.suptitle(
        "Authority: entropy of fresh samples after each rule, less that after the plain update "
        "(bars: standard error)",
        x=0.008,
        ha="left",
        fontsize=9.5,
        color=SOFT,
    )
    handles: list[Any] = [Patch(facecolor=color, label=name) for name, color in _RULES.values()]
    shapes = [("^", SOFT, "asked up"), ("v", SOFT, "asked down")]
    for clip, face in zip(clips, _FACES, strict=False):
        name = "not clipped" if clip is None else f"clip range {clip:g}"
        shapes.append(("o", SOFT if face is None else face, name))
    handles += [
        Line2D([], [], color=SOFT, marker=m, markerfacecolor=face, lw=0, markersize=6, label=name)
        for m, face, name in shapes
    ]
    figure.legend(handles=handles, loc="outside right center", borderpad=0)


def _draw_rule(axis: Axes, row: dict[str, Any], clips: Sequence[float | None]) -> None:
    place = list(_RULES).index((row["rule"], row["level"]))
    index = clips.index(row["clip"])
    _, color = _RULES[row["rule"], row["level"]]
    axis.errorbar(
        place + 0.3 * (index - (len(clips) - 1) / 2),
        row["probe_against_plain"],
        yerr=row["probe_against_plain_stderr"] or 0.0,
        color=color,
        marker="^" if row["direction"] > 0 else "v",
        markerfacecolor=_FACES[index % len(_FACES)] or color,
        markersize=6,
        lw=0,
        elinewidth=1.1,
        zorder=3,
    )
