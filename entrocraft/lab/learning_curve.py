"""Learning curves: the ceiling that a run is heading for, and the step where its gains end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import curve_fit

__all__ = ["Ceiling", "fit_ceiling", "plateau"]

_FEWEST = 5  # points of a fit with three parameters


@dataclass(frozen=True)
class Ceiling:
    """``R(C) = R0 + (A - R0) / (1 + (C_mid / C)^B)`` fitted to a run (ScaleRL, eq. 1).

    Attributes:
        start: R0, reward at compute 0.
        ceiling: A, in [R0, 1].
        exponent: B.
        middle: C_mid, compute at which half of the gain is there.
        extrapolation: mean distance between the second half of the curve and its prediction from
            the first half alone; nan where that has too few points.
    """

    start: float
    ceiling: float
    exponent: float
    middle: float
    extrapolation: float = math.nan

    def at(self, compute: float) -> float:
        """Reward after this much compute, above 0."""
        return float(_sigmoid(self.start, compute, self.ceiling, self.exponent, self.middle))


def fit_ceiling(compute: Sequence[float], rewards: Sequence[float], start: float) -> Ceiling:
    """Fit the ceiling by least squares.

    Args:
        compute: of each point, above 0: optimizer steps, rollouts or hours.
        rewards: held-out rewards in [0, 1], e.g. mean@16.
        start: reward before training.

    Raises:
        ValueError: fewer than 5 points, lists of different lengths, or numbers out of range.
    """
    x, y = np.asarray(compute, dtype=float), np.asarray(rewards, dtype=float)
    if x.shape != y.shape or len(x) < _FEWEST:
        raise ValueError(
            f"{len(x)} values of compute and {len(y)} rewards; a fit needs as many of both, and at "
            f"least {_FEWEST}"
        )
    if not (np.isfinite(y).all() and np.isfinite(x).all() and (x > 0).all()):
        raise ValueError("compute has to be above 0, and all numbers finite")
    if not 0 <= start < 1:
        raise ValueError(f"start is {start}; use the reward before training, in [0, 1)")
    ceiling, exponent, middle = map(float, _fit(x, y, start))
    half = len(x) // 2
    distance = math.nan
    if half >= _FEWEST:
        early = _fit(x[:half], y[:half], start)
        distance = float(np.abs(_sigmoid(start, x[half:], *early) - y[half:]).mean())
    return Ceiling(start, ceiling, exponent, middle, distance)


def plateau(
    steps: Sequence[float],
    rewards: Sequence[float],
    errors: Sequence[float],
    share: float = 0.2,
) -> float | None:
    """First step after which nothing is gained for a share of the run.

    A gain is a later reward that is higher by more than the 95 % interval of the difference.

    Args:
        steps: growing.
        rewards: at these steps.
        errors: their standard errors.
        share: of the whole run, from its first to its last step.

    Returns:
        The step, or None if the run gains to its end.
    """
    window = share * (steps[-1] - steps[0])
    points = list(zip(steps, rewards, errors, strict=True))
    for step, reward, error in points:
        if step + window > steps[-1]:
            return None
        later = [other for other in points if step < other[0] <= step + window]
        if all(value - reward <= 1.96 * math.hypot(error, own) for _, value, own in later):
            return step
    return None


def _sigmoid(start: float, compute: Any, ceiling: float, exponent: float, middle: float) -> Any:
    return start + (ceiling - start) / (1 + (middle / compute) ** exponent)


def _fit(x: np.ndarray, y: np.ndarray, start: float) -> np.ndarray:
    """Ceiling, exponent and middle; the best of fits from several middles."""
    best, least = None, math.inf
    for middle in np.quantile(x, [0.1, 0.5, 1.0]):
        guess = [min(max(float(y.max()), start + 1e-3), 1.0), 1.0, middle]
        bounds = ([start, 0.1, x.min() / 100], [1.0, 10.0, 100 * x.max()])
        found, _ = curve_fit(
            lambda c, *values: _sigmoid(start, c, *values), x, y, guess, bounds=bounds
        )
        error = float(((_sigmoid(start, x, *found) - y) ** 2).sum())
        if error < least:
            best, least = found, error
    assert best is not None, "least squares within bounds return something"
    return best
