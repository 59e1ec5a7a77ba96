"""What the seeds of a group have in common, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from entrocraft.lab.report.marks import MEASURED, smooth
from entrocraft.lab.report.runs import Run

PROBE = "entropy/probe"


@dataclass(frozen=True)
class Curve:
    """One quantity over the seeds of a group, in its own unit.

    Attributes:
        steps: every optimizer step at which a seed logged it.
        mean: mean over the seeds that had reached that step.
        low: the lowest of them.
        high: the highest of them.
        seeds: (steps, values) of each seed.
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: list[tuple[np.ndarray, np.ndarray]]


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return group -> its runs, in order of appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def curve(runs: Sequence[Run], key: str, smoothed: bool = False) -> Curve | None:
    """Return the curve of ``key`` over some seeds, None when none of them logged it.

    Seeds that logged at different steps are interpolated between their own, never beyond them.
    """
    seeds = [points for run in runs if len((points := run.points(key))[0])]
    if not seeds:
        return None
    if smoothed:
        seeds = [(steps, smooth(values)) for steps, values in seeds]
    steps = np.unique(np.concatenate([logged_at for logged_at, _ in seeds]))
    table = np.array([np.interp(steps, *seed, left=np.nan, right=np.nan) for seed in seeds])
    # between the end of one seed and a later start of another no seed has a value
    inside = np.isfinite(table).any(axis=0)
    steps, table = steps[inside], table[:, inside]
    mean, low, high = (f(table, axis=0) for f in (np.nanmean, np.nanmin, np.nanmax))
    return Curve(steps, mean, low, high, seeds)


def entropy_curve(runs: Sequence[Run]) -> Curve | None:
    """Return the probe's curve (nats per token); without a probe the smoothed training batches."""
    return curve(runs, PROBE) or curve(runs, MEASURED, smoothed=True)


def usual_limit(tops: Sequence[float]) -> float:
    """Return the largest of ``tops`` that is as usual, for an axis that no single one decides.

    Out of the usual is what is above twice the median and above the upper quartile by more than
    one and a half times the distance of the quartiles.
    """
    lower, middle, upper = np.percentile(tops, [25, 50, 75])
    return max(x for x in tops if x <= max(2 * middle, upper + 1.5 * (upper - lower)))


def saturated_spans(run: Run) -> list[tuple[float, float]]:
    """Return (from, to) of the stretches of saturated steps; gaps in the log belong to the left."""
    steps, saturated = run.points("entropy/saturated")
    spans: list[tuple[float, float]] = []
    for i in np.flatnonzero(saturated > 0):
        start = float(steps[i])
        end = float(steps[i + 1]) if i + 1 < len(steps) else start + 1.0
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans
