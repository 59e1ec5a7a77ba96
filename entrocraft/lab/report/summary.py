"""A run in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from entrocraft.lab.report.runs import Run

BURN_IN = 20
"""Steps the loop is given to settle before its tracking error counts."""
FINAL_STEPS = 20
"""Steps averaged for the final reward."""
FOLLOWED = 0.05
"""Tracking error, as a share of the target's start, up to which entropy followed the target."""
NEAR = 0.15
"""The same for "stayed near"; beyond it entropy did not follow, or left the target at the end."""

BAND_RULES = ("sign", "switch")
"""Rules that act at full strength outside a band and not at all inside: saturated is outside."""


@dataclass(frozen=True)
class PassAtK:
    """pass@k at the first and the last evaluation; standard errors are None when not logged."""

    first: float
    last: float
    first_step: int
    last_step: int
    first_stderr: float | None
    last_stderr: float | None


@dataclass(frozen=True)
class Summary:
    """One run in numbers; every number is None when the run did not log what it needs.

    Attributes:
        name: name of the run.
        group: the name without its seed; runs of one group differ in the seed only.
        seed: seed of the run.
        rule: acceptance rule; None when nothing chose between rollouts.
        controlled: whether entropy was steered; if not, the target is a reference line only.
        schedule: the target's schedule as configured.
        command: the command that started the run.
        steps: last optimizer step logged.
        seconds: wall time up to it.
        tracking_error: mean absolute distance of the probe from the target (nats per token), over
            probe points after the burn-in of 20 steps.
        tracking_bias: the same with its sign: positive when entropy was above the target.
        tracking_end: distance of the last of those probe points (nats per token, signed).
        tracking_points: number of probe points in the mean.
        probe_stderr: mean standard error of those probe points (nats per token).
        tracking_error_measured: as tracking_error, for the entropy of the training batches. Their
            sampling noise is part of it.
        target_start: first target logged (nats per token).
        final_reward: mean reward of the last 20 steps that logged one.
        final_reward_steps: how many those were.
        pass_at: "pass@1", "pass@8", ... -> first and last evaluation.
        kept_fraction: mean share of the rollouts that entered the update.
        saturated_share: share of the steps on which the controller was saturated: its pressure at
            the limit or, for a rule with a band, entropy outside the band.
        saturated_first: the first such step.
        entropy_start: entropy at the start (nats per token): the first probe, or without two
            probes the mean of the first five training batches.
        entropy_end: the same at the end.
        entropy_source: "probe" or "measured", what the last two are read from.
    """

    name: str
    group: str
    seed: int | None
    rule: str | None
    controlled: bool
    schedule: str | None
    command: str | None
    steps: int
    seconds: float | None
    tracking_error: float | None
    tracking_bias: float | None
    tracking_end: float | None
    tracking_points: int
    probe_stderr: float | None
    tracking_error_measured: float | None
    target_start: float | None
    final_reward: float | None
    final_reward_steps: int
    pass_at: dict[str, PassAtK]
    kept_fraction: float | None
    saturated_share: float | None
    saturated_first: int | None
    entropy_start: float | None
    entropy_end: float | None
    entropy_source: str | None


def summarize(run: Run) -> Summary:
    """Return the numbers of a run; ``dataclasses.asdict`` of the result is JSON-able."""
    distance = _distances(run, "entropy/probe")
    distance_measured = _distances(run, "entropy/measured")
    probe_steps, _ = run.points("entropy/probe")
    stderr = run.column("entropy/probe_stderr")[np.isin(run.steps, probe_steps[_late(probe_steps)])]
    saturated_steps, saturated = run.points("entropy/saturated")
    if not run.controlled:
        saturated_steps, saturated = saturated_steps[:0], saturated[:0]
    rewards = run.points("reward")[1][-FINAL_STEPS:]
    seconds = run.points("seconds")[1]
    targets = run.points("entropy/target")[1]
    start, end, source = _ends(run)
    schedule = run.control.get("schedule")
    return Summary(
        name=run.name,
        group=run.group,
        seed=run.seed,
        rule=run.rule,
        controlled=run.controlled,
        schedule=None if schedule is None else str(schedule),
        command=run.command,
        steps=int(run.steps[-1]),
        seconds=float(seconds[-1]) if len(seconds) else None,
        tracking_error=_mean(np.abs(distance)),
        tracking_bias=_mean(distance),
        tracking_end=float(distance[-1]) if len(distance) else None,
        tracking_points=len(distance),
        probe_stderr=_mean(stderr[np.isfinite(stderr)]),
        tracking_error_measured=_mean(np.abs(distance_measured)),
        target_start=float(targets[0]) if len(targets) else None,
        final_reward=_mean(rewards),
        final_reward_steps=len(rewards),
        pass_at={f"pass@{k}": _pass_at(run, k) for k in run.ks},
        kept_fraction=_mean(run.points("entropy/kept_fraction")[1]),
        saturated_share=_mean(saturated > 0),
        saturated_first=int(saturated_steps[saturated > 0][0]) if (saturated > 0).any() else None,
        entropy_start=start,
        entropy_end=end,
        entropy_source=source,
    )


def describe(summary: Summary) -> str:
    """Return what happened in the run, in one or two sentences for a person."""
    first = _entropy_sentence(summary)
    second = _outcome_sentence(summary)
    return f"{first} {second}" if second else first


def _entropy_sentence(s: Summary) -> str:
    if not s.controlled:
        way = movement(s.entropy_start, s.entropy_end)
        return f"Nothing steered entropy{f'; {way}' if way else ', and none was logged'}."
    if s.tracking_error is not None:
        points = f"{s.tracking_points} probe{'s' if s.tracking_points > 1 else ''}"
        sentence = _verdict_sentence(s, s.tracking_error, f"mean of {points} after step {BURN_IN}")
    elif s.entropy_source != "probe" and s.tracking_error_measured is not None:
        noisy = "no probe was logged, so this is from the training batches and includes their noise"
        sentence = _verdict_sentence(s, s.tracking_error_measured, noisy)
    elif s.target_start is None:
        sentence = "The run was steered but logged no target to compare with"
    elif s.entropy_start is None:
        sentence = "No entropy was logged, so nothing can be said about the target"
    else:
        sentence = f"Too early to judge: nothing was measured after step {BURN_IN}"
    way = movement(s.entropy_start, s.entropy_end)
    if way and s.tracking_error is None and s.tracking_error_measured is None:
        sentence += f"; {way}"
    if s.saturated_share and s.saturated_first is not None:
        what = "the band was left" if s.rule in BAND_RULES else "control was at its limit"
        sentence += (
            f"; {what} on {_percent(s.saturated_share)} of the steps, "
            f"first at step {s.saturated_first}"
        )
    return sentence + "."


def verdict(summary: Summary) -> str | None:
    """Judge how entropy kept to its target: "followed", "near", "left", "missed" or None.

    It looks at the mean distance from the probe's points (or, without a probe, the training
    batches) and at the last probe, both as shares of the target's start. "left" is a run that was
    near on average and far away at the end. None: uncontrolled, or too little was logged.
    """
    s = summary
    error = s.tracking_error
    if error is None and s.entropy_source != "probe":
        error = s.tracking_error_measured
    if not s.controlled or error is None or not s.target_start:
        return None
    error, end = error / s.target_start, abs(s.tracking_end or 0.0) / s.target_start
    if error > NEAR:
        return "missed"
    if end > NEAR:
        return "left"
    return "near" if error > FOLLOWED or end > 2 * FOLLOWED else "followed"


def _verdict_sentence(s: Summary, error: float, basis: str) -> str:
    of_start = f", {_percent(error / s.target_start)} of its start" if s.target_start else ""
    basis = f"({basis}{of_start})"
    travelled = ""
    if s.entropy_start is not None and s.entropy_end is not None:
        travelled = f", going from {s.entropy_start:.2f} to {s.entropy_end:.2f}"
    away = f"{error:.3f} nats away"
    match verdict(s):
        case "missed":
            bias = s.tracking_bias or 0.0
            side = "above" if bias > 0 else "below"
            mostly = f" and mostly {side} it" if abs(bias) > error / 2 else ""
            return f"Entropy did not follow the target: it was {away}{mostly} {basis}{travelled}"
        case "left":
            end = s.tracking_end or 0.0
            at_end = f"{abs(end):.3f} {'above' if end > 0 else 'below'} it at the last probe"
            return f"Entropy left the target: {away} on average {basis}, but {at_end}{travelled}"
        case "near":
            return f"Entropy stayed near the target, {away} {basis}{travelled}"
    return f"Entropy followed the target within {error:.3f} nats {basis}{travelled}"


def movement(start: float | None, end: float | None) -> str:
    """Say where entropy went, such as "it fell from 0.50 to 0.12 nats"; empty when unknown."""
    if start is None or end is None:
        return ""
    if abs(end - start) < 0.02 * abs(start):
        return f"it stayed at about {end:.2f} nats"
    return f"it {'fell' if end < start else 'rose'} from {start:.2f} to {end:.2f} nats"


def _outcome_sentence(s: Summary) -> str:
    parts = []
    if s.final_reward is not None:
        n = s.final_reward_steps
        over = f"mean of the last {n} steps" if n > 1 else "one step"
        parts.append(f"reward ended at {s.final_reward:.2f} ({over})")
    for name in dict.fromkeys([*list(s.pass_at)[:1], *list(s.pass_at)[-1:]]):
        value = s.pass_at[name]
        if value.first_step == value.last_step:
            parts.append(f"{name} was {value.last:.2f} at step {value.last_step}")
        else:
            parts.append(f"{name} went from {value.first:.2f} to {value.last:.2f}")
    if s.controlled and s.kept_fraction is not None:
        parts.append(f"{_percent(s.kept_fraction)} of the rollouts entered the update")
    if not parts:
        return ""
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    return text[0].upper() + text[1:] + "."


def _late(steps: np.ndarray) -> np.ndarray:
    return steps > BURN_IN


def _distances(run: Run, key: str) -> np.ndarray:
    """Return the signed distances to the target at the steps after the burn-in."""
    steps, entropy = run.points(key)
    distance = (entropy - run.target_at(steps))[_late(steps)]
    return distance[np.isfinite(distance)]


def _pass_at(run: Run, k: int) -> PassAtK:
    steps, values = run.points(f"eval/pass@{k}")
    stderr = run.column(f"eval/pass@{k}_stderr")[np.isin(run.steps, steps)]
    first_stderr, last_stderr = (
        float(x) if np.isfinite(x) else None for x in (stderr[0], stderr[-1])
    )
    return PassAtK(
        float(values[0]),
        float(values[-1]),
        int(steps[0]),
        int(steps[-1]),
        first_stderr,
        last_stderr,
    )


def _ends(run: Run) -> tuple[float | None, float | None, str | None]:
    probe = run.points("entropy/probe")[1]
    if len(probe) >= 2:
        return float(probe[0]), float(probe[-1]), "probe"
    measured = run.points("entropy/measured")[1]
    if len(measured):
        return _mean(measured[:5]), _mean(measured[-5:]), "measured"
    if len(probe):
        return float(probe[0]), float(probe[0]), "probe"
    return None, None, None


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _percent(share: float) -> str:
    if 0 < share < 0.01:
        return "less than 1 %"
    return f"{100 * share:.0f} %"
