"""How good a prediction is: explained share, sign agreement, and their uncertainty."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["bootstrap", "explained", "fit_line", "sign_agreement"]

_RESAMPLES = 2000


def explained(
    predicted: np.ndarray, realized: np.ndarray, groups: np.ndarray | None = None
) -> float:
    """R2 = 1 - sum (y - prediction)^2 / sum (y - mean y)^2; NaN if y does not vary.

    With `groups` the mean is that of the point's own group: differences between groups then earn
    nothing.

    >>> explained(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    0.5
    """
    mean = np.zeros_like(realized)
    groups = np.zeros(len(realized)) if groups is None else groups
    for group in np.unique(groups):
        mean[groups == group] = realized[groups == group].mean()
    spread = float(((realized - mean) ** 2).sum())
    return 1.0 - float(((realized - predicted) ** 2).sum()) / spread if spread else float("nan")


def sign_agreement(predicted: np.ndarray, realized: np.ndarray) -> float:
    """Share of changes whose direction was foretold.

    >>> sign_agreement(np.array([0.1, -0.2]), np.array([0.3, 0.1]))
    0.5
    """
    return float(np.mean(np.sign(predicted) == np.sign(realized))) if len(realized) else np.nan


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares y = a + b x: the fitted values, and each value from the line of the others."""
    columns = np.column_stack([np.ones_like(x), x])
    if np.ptp(x) == 0:
        columns = columns[:, :1]
    q, _ = np.linalg.qr(columns)
    fitted = q @ (q.T @ y)
    # leaving one out in closed form (Allen's PRESS)
    leverage = (q**2).sum(1)
    left = 1.0 - leverage
    error = np.divide(y - fitted, left, out=np.full_like(y, np.nan), where=left > 1e-12)
    return fitted, y - error


def bootstrap(
    measure: Callable[[np.ndarray, np.ndarray], float],
    predicted: np.ndarray,
    realized: np.ndarray,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of a measure, by drawing pairs with replacement (percentile bootstrap)."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(realized), (_RESAMPLES, len(realized)))
    values = [measure(predicted[draw], realized[draw]) for draw in draws]
    low, high = (
        np.nanpercentile(values, [2.5, 97.5]) if np.isfinite(values).any() else (np.nan,) * 2
    )
    return float(low), float(high)
