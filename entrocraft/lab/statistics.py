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

The interquartile mean leaves out the lowest and the highest quarter, rounded down: none of three
values, one at either end of four to seven.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

ENOUGH = 3  # from this many values on there is an interval
CUT = 0.25  # share left out at either end of the interquartile mean
NOTE = "Three or more seeds: interquartile mean [95 % bootstrap interval]; two: mean (range)."

Values = Sequence[float | None]


@dataclass(frozen=True)
class Interval:
    """A number over ``n`` seeds: interquartile mean and 95 % interval, in the number's own unit.

    Of fewer than three values they are mean and range. ``format(i, ".2f")`` writes
    "0.25 [0.10, 0.90]", of two values "0.25 (0.10 to 0.90)", and the center alone when low and high
    read the same.
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
    """Return the interquartile mean of one value per seed with its 95 % bootstrap interval.

    The 10,000 resamples come from a fixed seed. None and non-finite values are left out; without
    any other value the result is None.
    """
    found = tuple(sorted(_present(values)))
    return _estimate((found,), operator.pos, False) if found else None


def ratio_interval(a: Values, b: Values) -> Interval | None:
    """Return the ratio of the interquartile means of ``a`` and ``b`` with its 95 % interval.

    Seeds are resampled as pairs when there are equally many, else each side by itself; of fewer
    than three, low and high are the range. Raises ValueError unless all of ``b`` is above zero.
    """
    if any(x is not None and x <= 0 for x in b):
        raise ValueError(f"a ratio needs denominators above zero, got {list(b)}")
    return _compare(a, b, operator.truediv)


def difference_interval(a: Values, b: Values) -> Interval | None:
    """Return the interquartile mean of ``a`` minus that of ``b``, resampled as in a ratio."""
    return _compare(a, b, operator.sub)


def _compare(a: Values, b: Values, combine: Callable[[Any, Any], Any]) -> Interval | None:
    paired = len(a) == len(b)
    if paired:
        pairs = [pair for pair in zip(a, b, strict=True) if len(_present(pair)) == 2]
        samples: Any = tuple(zip(*pairs, strict=True)) or ((), ())
    else:
        samples = _present(a), _present(b)
    return _estimate(samples, combine, paired) if all(samples) else None


def _present(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(x for x in values if x is not None and math.isfinite(x))


@lru_cache(maxsize=4096)
def _estimate(samples: tuple[tuple[float, ...], ...], combine: Any, paired: bool) -> Interval:
    import numpy as np
    from scipy import stats

    def statistic(*sides: Any, axis: int = -1) -> Any:
        return combine(*(stats.trim_mean(side, CUT, axis=axis) for side in sides))

    n = min(map(len, samples))
    singles = zip(*samples, strict=True) if paired else itertools.product(*samples)
    ordered = sorted(float(combine(*single)) for single in singles)
    low, high = ordered[0], ordered[-1]
    center = low if low == high else float(statistic(*map(np.array, samples)))
    if n >= ENOUGH and low < high:
        how: dict[str, Any] = {"method": "percentile", "confidence_level": 0.95}
        how |= {"n_resamples": 10_000, "rng": np.random.default_rng(0), "paired": paired}
        low, high = stats.bootstrap(samples, statistic, **how).confidence_interval
    # rounding can put the center of nearly equal values just outside
    return Interval(center, min(float(low), center), max(float(high), center), n)
