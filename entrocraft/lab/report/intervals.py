"""The middle of a few seeds, and how far another draw of the seeds could move it.

Three seeds or more are told as Agarwal et al. do (2021, "Deep reinforcement learning at the edge of
the statistical precipice", their library is rliable): the interquartile mean, which one lucky or
one lost seed moves little, with a percentile-bootstrap interval. One or two seeds say nothing of
that kind and keep their mean and range.

    >>> spread_of([0.3, 0.1, 0.2, 0.9])
    Spread(center=0.25, low=0.1, high=0.9, n=4)

A bootstrap draws from the seeds that there are. From three or four it draws the lowest one often
enough that the interval is their whole range; from five on it is narrower.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

ENOUGH = 3
"""From this many values on there is an interval."""
CUT = 0.25
"""Share of the values left out at either end of the interquartile mean, rounded down."""
CONFIDENCE = 0.95
RESAMPLES = 10_000

INTERVAL_NOTE = (
    "With three or more seeds a number is the interquartile mean over the seeds (the lowest and "
    "the highest quarter left out, rounded down) and the brackets hold its 95 % bootstrap "
    "interval; with two seeds it is the mean, with the range below it."
)


@dataclass(frozen=True)
class Spread:
    """The middle and the spread of one number over the seeds that have it, in its own unit.

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

    @property
    def has_interval(self) -> bool:
        """Whether ``low`` and ``high`` are an interval of the center, not the range."""
        return self.n >= ENOUGH


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Return center and interval (or range) of the values that are there, None without any."""
    found = _present(values)
    if len(found) < ENOUGH:
        return mean_and_range(found)
    return Spread(interquartile_mean(found), *bootstrap_interval(found), len(found))


def mean_and_range(values: Iterable[float | None]) -> Spread | None:
    """Return mean, lowest and highest of the values that are there, None without any."""
    found = _present(values)
    return Spread(sum(found) / len(found), found[0], found[-1], len(found)) if found else None


def interquartile_mean(values: Iterable[float]) -> float:
    """Return the mean without the lowest and the highest quarter, each rounded down.

    So three values lose none, four to seven lose one at either end. Unit: that of the values.
    """
    found = _present(values)
    return found[0] if found[0] == found[-1] else float(_trimmed(found))


def bootstrap_interval(values: Iterable[float]) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of the interquartile mean.

    The seeds are drawn with replacement 10,000 times, always by the same random numbers and in
    whatever order they come, so a report drawn twice says the same twice. Unit: that of the values.
    """
    return _interval(_present(values))


@lru_cache(maxsize=4096)
def _interval(found: tuple[float, ...]) -> tuple[float, float]:
    if found[0] == found[-1]:
        return found[0], found[0]
    import numpy as np
    from scipy.stats import bootstrap

    interval = bootstrap(
        (found,),
        _trimmed,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _trimmed(values: Any, axis: int = -1) -> Any:
    from scipy.stats import trim_mean

    return trim_mean(values, CUT, axis=axis)


def _present(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(sorted(x for x in values if x is not None))
