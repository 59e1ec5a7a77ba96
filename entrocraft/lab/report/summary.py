"""The numbers of one run."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from entrocraft.lab.report.runs import Run

BURN_IN = 20  # steps that the control loop is given to settle before its tracking error counts
FINAL_STEPS = 20  # steps averaged for the final reward


@dataclass(frozen=True)
class PassAtK:
    """pass@k at the first and the last evaluation, and at which steps these were."""

    first: float
    last: float
    first_step: int
    last_step: int


@dataclass(frozen=True)
class Summary:
    """One run in numbers; a number is None when the run did not log what it needs.

    Tracking counts the probe points after the burn-in of 20 steps. Entropies and distances are in
    nats per token.
    """

    name: str
    group: str  # the name without its seed; runs of one group differ in the seed only
    seed: int | None
    rule: str | None  # selection rule or baseline; None when nothing chose between rollouts
    controlled: bool  # whether entropy was steered; if not, the target is for reference only
    schedule: str | None
    command: str | None
    steps: int  # last optimizer step logged
    seconds: float | None  # wall time up to it
    tracking_error: float | None  # mean absolute distance of the probe from the target
    tracking_bias: float | None  # the same with its sign: positive above the target
    tracking_end: float | None  # signed distance of the last probe point
    probe_stderr: float | None  # mean standard error of these probe points
    tracking_error_measured: float | None  # of the training batches, their sampling noise included
    target_start: float | None  # first target logged
    final_reward: float | None  # mean of the last 20 steps that logged one
    pass_at: dict[str, PassAtK]  # "pass@1", "pass@8", ... in the order of k
    evaluated: dict[str, tuple[float, float]]  # "cover@0.5", ...: first and last evaluation
    kept_fraction: float | None  # mean share of the rollouts that entered the update
    saturated_share: float | None  # of the steps: pressure at its limit, or entropy off its band
    entropy_start: float | None  # first probe; without two probes, mean of five training batches
    entropy_end: float | None


def summarize(run: Run) -> Summary:
    """Return the numbers of a run; ``dataclasses.asdict`` of the result is JSON-able."""
    schedule = run.control.get("schedule")
    distance, measured = _distances(run, "entropy/probe"), _distances(run, "entropy/measured")
    stderr = run.column("entropy/probe_stderr")[distance.index]
    start, end = _ends(run)
    return Summary(
        name=run.name,
        group=run.group,
        seed=run.seed,
        rule=run.rule,
        controlled=run.controlled,
        schedule=None if schedule is None else str(schedule),
        command=run.command,
        steps=int(run.frame.index[-1]),
        seconds=_at(run.column("seconds"), -1),
        tracking_error=_mean(distance.abs()),
        tracking_bias=_mean(distance),
        tracking_end=_at(distance, -1),
        probe_stderr=_mean(stderr),
        tracking_error_measured=_mean(measured.abs()),
        target_start=_at(run.column("entropy/target"), 0),
        final_reward=_mean(run.column("reward").dropna()[-FINAL_STEPS:]),
        pass_at={f"pass@{k}": _pass_at(run, k) for k in pass_ks(run)},
        evaluated={key[5:]: _first_and_last(run, key) for key in run.frame if _other(run, key)},
        kept_fraction=_mean(run.column("entropy/kept_fraction")),
        saturated_share=_mean(run.column("entropy/saturated")) if run.controlled else None,
        entropy_start=start,
        entropy_end=end,
    )


def _distances(run: Run, key: str) -> pd.Series:
    """Return the signed distances to the target, interpolated by step, after the burn-in."""
    entropy, target = run.column(key).dropna(), run.column("entropy/target").dropna()
    late = entropy.loc[BURN_IN + 1 :]
    return late - np.interp(late.index, target.index, target) if len(target) else late[:0]


def pass_ks(run: Run) -> list[int]:
    """Return every k of the logged pass@k, ascending."""
    keys = (re.fullmatch(r"eval/pass@(\d+)", key) for key in run.frame if run.has(key))
    return sorted(int(match[1]) for match in keys if match)


def _pass_at(run: Run, k: int) -> PassAtK:
    steps, values = run.points(f"eval/pass@{k}")
    return PassAtK(float(values[0]), float(values[-1]), int(steps[0]), int(steps[-1]))


def _other(run: Run, key: str) -> bool:
    """Whether a key is a measure of the evaluation other than pass@k."""
    return key.startswith("eval/") and "pass@" not in key and run.has(key)


def _first_and_last(run: Run, key: str) -> tuple[float, float]:
    _, values = run.points(key)
    return float(values[0]), float(values[-1])


def _ends(run: Run) -> tuple[float | None, float | None]:
    probe, measured = (run.column(f"entropy/{key}").dropna() for key in ("probe", "measured"))
    if len(probe) >= 2 or not len(measured):
        return _at(probe, 0), _at(probe, -1)
    return _mean(measured[:5]), _mean(measured[-5:])


def _at(values: pd.Series, position: int) -> float | None:
    logged = values.dropna()
    return float(logged.iloc[position]) if len(logged) else None


def _mean(values: pd.Series) -> float | None:
    mean = float(values.mean())
    return mean if np.isfinite(mean) else None
