"""Warnings at a run's start: settings that will keep entropy from following the schedule."""

from __future__ import annotations

from entrocraft import schedules

__all__ = ["far_from_start", "start_warnings"]

_FEW = 32  # rollouts an optimizer step; docs/reach.md has errors of fewer
_FAR = 0.1  # of the initial entropy


def start_warnings(
    schedule: schedules.Schedule | None,
    *,
    steps: int | None = None,
    rollouts: float | None = None,
    decay: str | None = None,
    steered: bool = True,
) -> tuple[str, ...]:
    """What can be said before anything is measured.

    Args:
        schedule: of the target entropy.
        steps: optimizer steps of the run.
        rollouts: that each of them trains on, over all processes.
        decay: the trainer's setting by which the learning rate falls toward 0, as the user would
            write it; None: it does not fall.
        steered: whether entropy is moved by choosing rollouts.

    Returns:
        The warnings' texts.
    """
    found = []
    end = None if schedule is None else schedules.settles(schedule)
    if steps and end is not None and end > steps:
        found.append(
            f"the schedule {schedule!r} moves until optimizer step {end}, and the run ends after "
            f"{steps}: it will not get to the end of it; give the schedule {steps} steps, or train "
            "longer"
        )
    if not steered:
        return tuple(found)
    if rollouts is not None and rollouts < _FEW:
        found.append(
            f"each optimizer step trains on {rollouts:g} rollouts, too few to steer entropy by "
            f"choosing among them: use {_FEW} or more, better 256 (a larger batch, more "
            "accumulation, or more processes)"
        )
    if decay is not None and steps and (end is None or end > steps / 2):
        found.append(
            f"the learning rate decays ({decay}), and what rejection can do to entropy decays with "
            f"it. A schedule that still moves late in the run, as {schedule!r} may, can be missed "
            "there: use a constant learning rate, or let the schedule end earlier"
        )
    return tuple(found)


def far_from_start(target: float, initial: float, stderr: float) -> str | None:
    """Warn of a schedule that starts far from the run's first entropy.

    Args:
        target: of the first batch, nats per token.
        initial: measured on it, nats per token.
        stderr: of the measurement, nats per token; nan if it is not known.
    """
    gap = abs(target - initial)
    if gap <= _FAR * initial or gap < 3 * stderr:
        return None
    return (
        f"the schedule asks for {target:.4g} nats per token at the first batch, whose entropy is "
        f"{initial:.4g}: rejection will be at its limit until they meet; begin there, as in "
        f"'linear(initial, {target:.4g}, 100)'"
    )
