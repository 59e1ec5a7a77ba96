"""The statistic of every table and figure: interquartile mean and bootstrap interval over seeds.

As Agarwal et al. do (2021, "Deep reinforcement learning at the edge of the statistical precipice";
their library is rliable), three seeds or more are reported as their interquartile mean with a 95 %
percentile-bootstrap interval. One or two seeds have mean and range instead.

    >>> interval([0.3, 0.1, 0.2, 0.9])
    Interval(center=0.25, low=0.1, high=0.9, n=4)
    >>> f"{interval([0.3, 0.1, 0.2, 0.9]):.2f}"
    '0.25 [0.10, 0.90]'
    >>> f"{ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]):.1f}"
    '2.0'

With three or four seeds the bootstrap interval is the range of the seeds: a resample repeats the
lowest of them often enough. From five seeds on it is narrower.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["ENOUGH", "NOTE", "Interval", "difference_interval", "interval", "ratio_interval"]

ENOUGH = 3
"""From this many values on there is an interval."""
CUT = 0.25
"""Share of the values left out at either end of the interquartile mean, rounded down."""
CONFIDENCE = 0.95
RESAMPLES = 10_000

NOTE = (
    "Over three or more seeds: interquartile mean and its 95 % bootstrap interval in brackets; "
    "over two: mean and range."
)
"""The sentence that belongs below a table of these numbers."""


@dataclass(frozen=True)
class Interval:
    """The center of one number over seeds, and its interval, in the number's own unit.

    ``format(interval, ".2f")`` writes "0.25 [0.10, 0.90]", of two values "0.25 (0.10 to 0.90)",
    and the center alone when nothing else would be seen at that precision.

    Attributes:
        center: interquartile mean; of fewer than three values the mean.
        low: lower end of the 95 % interval of the center; of fewer than three the lowest value.
        high: the upper end, likewise.
        n: number of values.
    """

    center: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        center, low, high = (format(x, spec) for x in (self.center, self.low, self.high))
        if low == high:
            return center
        return f"{center} [{low}, {high}]" if self.n >= ENOUGH else f"{center} ({low} to {high})"


def interval(values: Iterable[float | None]) -> Interval | None:
    """Return the interquartile mean of some values and its 95 % bootstrap interval.

    The interquartile mean leaves out the lowest and the highest quarter, rounded down: none of
    three values, one at either end of four to seven. The interval is the percentile bootstrap of
    10,000 resamples from a fixed seed; the order of the values does not matter.

    Args:
        values: one per seed; None and non-finite ones are left out.

    Returns:
        The interval, with mean and range for fewer than three values; None without any value.
    """
    found = tuple(sorted(x for x in values if _present(x)))
    return _estimate((found,), lambda a: a, False) if found else None


def ratio_interval(
    a: Sequence[float | None], b: Sequence[float | None]
) -> Interval | None:
    """Return the ratio of the interquartile means of ``a`` and ``b`` with its 95 % interval.

    Seeds are resampled as pairs when there are equally many, else each side by itself. With fewer
    than three on a side, low and high are the range of the single ratios.

    Raises:
        ValueError: a value of ``b`` is not above zero.
    """
    if any(x is not None and x <= 0 for x in b):
        raise ValueError(f"a ratio needs denominators above zero, got {list(b)}")
    return _compare(a, b, operator.truediv)


def difference_interval(
    a: Sequence[float | None], b: Sequence[float | None]
) -> Interval | None:
    """Return the interquartile mean of ``a`` minus that of ``b`` with its 95 % interval.

    Seeds are resampled as pairs when there are equally many, else each side by itself. With fewer
    than three on a side, low and high are the range of the single differences.
    """
    return _compare(a, b, operator.sub)


def _compare(
    a: Sequence[float | None], b: Sequence[float | None], combine: Callable[[Any, Any], Any]
) -> Interval | None:
    paired = len(a) == len(b)
    if paired:
        pairs = [(x, y) for x, y in zip(a, b, strict=True) if _present(x) and _present(y)]
        samples = tuple(zip(*pairs, strict=True)) if pairs else ((), ())
    else:
        samples = tuple(tuple(x for x in side if _present(x)) for side in (a, b))
    return _estimate(samples, combine, paired) if all(samples) else None


def _present(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


@lru_cache(maxsize=4096)
def _estimate(samples: tuple[tuple[float, ...], ...], combine: Any, paired: bool) -> Interval:
    import numpy as np
    from scipy import stats

    def statistic(*sides: Any, axis: int = -1) -> Any:
        return combine(*(stats.trim_mean(side, CUT, axis=axis) for side in sides))

    n = min(map(len, samples))
    center = float(statistic(*map(np.array, samples)))
    single = [combine(*x) for x in (zip(*samples) if paired else itertools.product(*samples))]
    low, high = min(single), max(single)
    if n >= ENOUGH and low < high:
        low, high = stats.bootstrap(
            samples,
            statistic,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            paired=paired,
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
    # a mean of equal numbers can differ from them in the last digit
    return Interval(center, min(float(low), center), max(float(high), center), n)
