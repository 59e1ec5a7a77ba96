"""What the controller believes about entropy: where it is, what is under way, how it answers.

One batch measures the policy's entropy with a noise as large as what several steps move. Between
measurements the policy moves by a predictable amount: the effects of the rollouts that were kept,
spread over time by the optimizer's momentum, times gains that have to be learnt, plus a drift that
no effect explains. The observer is the Kalman filter of that model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["EntropyFilter", "arrival"]

(_ENTROPY, _UNDERWAY, _DRIFT, _POSITIVE, _NEGATIVE, _BIAS_TRAINED, _BIAS_LEFT_OUT, _BEFORE) = range(
    8
)
_STATES = 8
_GAINS = slice(_POSITIVE, _NEGATIVE + 1)
_LARGEST_SURPRISE = 4.0  # standard deviations; a wilder measurement is cut to this
_LEFT_OUT_BIAS = 0.4  # of the bias of changes on prompts trained on: that on prompts left out
_CHANGE_ERROR = 0.1  # of a measured change: what its standard error does not know of


def arrival(momentum: float, steps: float) -> tuple[float, float]:
    """Return how much arrives during a batch's optimizer steps.

    Returns:
        (of what was under way before, of what the batch adds), each in [0, 1]. The batch adds the
        same at each of its steps, and a fraction 1 - momentum of all that is under way arrives at
        each step.
    """
    before = 1 - momentum**steps
    if steps <= 1:
        return before, before
    whole = int(steps)
    return before, 1 - sum(momentum**k for k in range(1, whole + 1)) / whole


class EntropyFilter:
    """Kalman filter of entropy, momentum's pipeline, unexplained drift and two gains.

    With H the entropy, U what momentum will still bring, b the drift per optimizer step (all in
    nats per token), g+ and g- the nats per unit of predicted effect of rollouts with positive and
    with negative advantage, X+ and X- the stats of the effects of the rollouts kept, and ``p`` and
    ``q`` from `arrival`::

        F = g+ X+ + g- X- + noise
        H <- H + p U + q F + steps b        U <- (1 - p) U + (1 - q) F

    b and the gains are random walks: a constant error of the model ends up in them and leaves no
    steady error. Each measurement counts by its own standard error: of the entropy of a batch
    (`observe`), and, where there is one, of the change that an update made (`moved`). A change that
    is measured on prompts that were trained on is off by a bias, about the same for a while at
    every step; on prompts left out it is smaller. Each other and fresh batches tell them.

    Args:
        gain: nats per unit of effect, where the effects' unit is known (level `gradient`: 1); None
            guesses at first that all effects of a batch together can move `authority` of the
            entropy.
        authority: that share.
        unexplained: what the effects miss, as a multiple of the root of their squared sum.
        gain_spread: standard deviation of the first gain, relative to it.
        gain_walk: of its change per step, relative to it.
        gain_bound: the gains stay within this factor of the first one.
        drift_walk: standard deviation of the change of b per step, relative to the first entropy;
            b starts at 0 with the same one.
        bias_spread, bias_walk: standard deviation of the bias of measured changes at first, and of
            its change, per step and relative to the first entropy.
    """

    def __init__(
        self,
        gain: float | None = None,
        authority: float = 0.05,
        unexplained: float = 1.0,
        gain_spread: float = 1.2,
        gain_walk: float = 0.02,
        gain_bound: float = 30.0,
        drift_walk: float = 0.003,
        bias_spread: float = 0.002,
        bias_walk: float = 0.0002,
    ) -> None:
        self.gain = gain
        self.authority = authority
        self.unexplained = unexplained
        self.gain_spread = gain_spread
        self.gain_walk = gain_walk
        self.gain_bound = gain_bound
        self.drift_walk = drift_walk
        self.bias_spread = bias_spread
        self.bias_walk = bias_walk
        self._first: float | None = None
        self._first_gain: float | None = None
        self._mean = torch.zeros(_STATES, dtype=torch.float64)
        self._covariance = torch.zeros(_STATES, _STATES, dtype=torch.float64)
        self._steps: float | None = None  # of the last commit

    def __repr__(self) -> str:
        return (
            f"EntropyFilter(gain={self.gain}, authority={self.authority:g}, "
            f"unexplained={self.unexplained:g}, gain_spread={self.gain_spread:g}, "
            f"gain_walk={self.gain_walk:g}, gain_bound={self.gain_bound:g}, "
            f"drift_walk={self.drift_walk:g}, bias_spread={self.bias_spread:g}, "
            f"bias_walk={self.bias_walk:g})"
        )

    @property
    def first(self) -> float | None:
        """First measured entropy, nats per token; None before the first batch."""
        return self._first

    @property
    def entropy(self) -> float:
        """Estimate of the present policy's entropy, nats per token."""
        return float(self._mean[_ENTROPY])

    @property
    def stderr(self) -> float:
        """Standard error that the filter gives its `entropy`, nats per token."""
        return math.sqrt(max(float(self._covariance[_ENTROPY, _ENTROPY]), 0.0))

    @property
    def pending(self) -> float:
        """Nats per token that momentum will still bring."""
        return float(self._mean[_UNDERWAY])

    @property
    def drift(self) -> float:
        """Nats per token and optimizer step that no effect explains."""
        return float(self._mean[_DRIFT])

    @property
    def gains(self) -> tuple[float, float]:
        """Nats per unit of effect, of positive and of negative advantages; 0 while unknown."""
        return float(self._mean[_POSITIVE]), float(self._mean[_NEGATIVE])

    def in_nats(self, effects: tuple[float, float]) -> float:
        """Total change in nats of kept effects, given by sign of the advantage."""
        positive, negative = self.gains
        return positive * effects[0] + negative * effects[1]

    def predict(self, effects: tuple[float, float], steps: float, momentum: float) -> float:
        """Change of the entropy, in nats, until this batch's steps are done."""
        before, added = arrival(momentum, steps)
        return before * self.pending + added * self.in_nats(effects) + steps * self.drift

    def observe(
        self,
        entropy: float,
        stderr: float,
        size: float,
        pending: float | None = None,
    ) -> None:
        """Take the measurement of a batch, before its update.

        Args:
            entropy: measured, nats per token.
            stderr: its standard error; not finite if unknown.
            size: sum of the absolute effects of the batch.
            pending: nats that momentum will still bring, where they are known.
        """
        if self._first is None:
            self._first = max(entropy, 1e-6)
            self._mean[_ENTROPY] = entropy
        noise = stderr if math.isfinite(stderr) else 0.1 * self._first
        noise = max(noise, 1e-6 * self._first)
        if self._covariance[_ENTROPY, _ENTROPY] == 0:
            self._covariance[_ENTROPY, _ENTROPY] = noise**2
            self._covariance[_DRIFT, _DRIFT] = (self.drift_walk * self._first) ** 2
            for bias, spread in (
                (_BIAS_TRAINED, self.bias_spread),
                (_BIAS_LEFT_OUT, _LEFT_OUT_BIAS * self.bias_spread),
            ):
                self._covariance[bias, bias] = (spread * self._first) ** 2
        else:
            reading = torch.zeros(_STATES, dtype=torch.float64)
            reading[_ENTROPY] = 1.0
            self._correct(reading, entropy, noise)
        if self._first_gain is None and size > 0 and math.isfinite(size):
            known = self.gain if self.gain is not None else self.authority * self._first / size
            if math.isfinite(known) and known > 0:
                self._first_gain = known
                for gain in (_POSITIVE, _NEGATIVE):
                    self._mean[gain] = known
                    self._covariance[gain, gain] = (self.gain_spread * known) ** 2
        if pending is not None:
            self._mean[_UNDERWAY] = pending
            self._covariance[_UNDERWAY, :] = 0.0
            self._covariance[:, _UNDERWAY] = 0.0
            self._covariance[_UNDERWAY, _UNDERWAY] = (0.3 * pending) ** 2

    def _correct(self, reading: Tensor, value: float, noise: float) -> None:
        """Kalman correction by a measurement of ``reading @ state``."""
        column = self._covariance @ reading
        variance = max(float(reading @ column), 0.0) + noise**2
        if not variance > 0:
            return
        largest = _LARGEST_SURPRISE * math.sqrt(variance)
        surprise = max(-largest, min(largest, value - float(reading @ self._mean)))
        self._mean = self._mean + column * (surprise / variance)
        self._covariance = self._covariance - torch.outer(column, column) / variance
        self._bound(self.entropy, 0.1 * (self._first or 0.0))

    def commit(
        self, effects: tuple[float, float], spread: float, steps: float, momentum: float
    ) -> None:
        """Move on over the steps of a batch.

        Args:
            effects: summed effects of what is kept, by sign of the advantage (positive, negative).
            spread: root of the sum of the kept effects' squares.
            steps: optimizer steps that the batch is used for.
            momentum: decay per step of what is under way.
        """
        before, added = arrival(momentum, steps)
        move = torch.eye(_STATES, dtype=torch.float64)
        move[_ENTROPY, _UNDERWAY], move[_UNDERWAY, _UNDERWAY] = before, 1 - before
        move[_ENTROPY, _DRIFT] = steps
        for gain, effect in zip((_POSITIVE, _NEGATIVE), effects, strict=True):
            move[_ENTROPY, gain], move[_UNDERWAY, gain] = added * effect, (1 - added) * effect
        move[_BEFORE, _BEFORE], move[_BEFORE, _ENTROPY] = 0.0, 1.0
        self._mean = move @ self._mean
        unexplained = self.unexplained * 0.5 * sum(self.gains) * spread
        enters = torch.zeros(_STATES, dtype=torch.float64)
        enters[_ENTROPY], enters[_UNDERWAY] = added, 1 - added
        noise = unexplained**2 * torch.outer(enters, enters)
        for state, walk in (
            (_DRIFT, self.drift_walk),
            (_BIAS_TRAINED, self.bias_walk),
            (_BIAS_LEFT_OUT, _LEFT_OUT_BIAS * self.bias_walk),
        ):
            noise[state, state] = steps * (walk * (self._first or 0.0)) ** 2
        for gain in (_POSITIVE, _NEGATIVE):
            noise[gain, gain] = steps * (self.gain_walk * (self._first_gain or 0.0)) ** 2
        covariance = move @ self._covariance @ move.T + noise
        self._covariance = 0.5 * (covariance + covariance.T)
        self._steps = float(steps)
        self._forget_the_infinite(self._first or 0.0, 0.1 * (self._first or 0.0))

    def moved(self, change: float, stderr: float, trained: bool = True) -> None:
        """Take a measured change of the entropy over the steps of the last `commit`.

        There may be several, of independent errors.

        Args:
            change: nats per token.
            stderr: its standard error; not finite if unknown, then nothing is learnt.
            trained: whether it was measured on prompts that were trained on.
        """
        if self._steps is None or not (math.isfinite(change) and math.isfinite(stderr)):
            return
        noise = max(math.hypot(stderr, _CHANGE_ERROR * change), 1e-6 * (self._first or 0.0))
        reading = torch.zeros(_STATES, dtype=torch.float64)
        reading[_ENTROPY], reading[_BEFORE] = 1.0, -1.0
        reading[_BIAS_TRAINED if trained else _BIAS_LEFT_OUT] = self._steps
        self._correct(reading, change, noise)

    def _bound(self, entropy: float, noise: float) -> None:
        """Keep entropy at 0 or above and gains near the first; forget what is not finite."""
        self._mean[_ENTROPY] = self._mean[_ENTROPY].clamp(min=0.0)
        if self._first_gain is not None:
            low, high = self._first_gain / self.gain_bound, self._first_gain * self.gain_bound
            self._mean[_GAINS] = self._mean[_GAINS].clamp(low, high)
        self._forget_the_infinite(entropy, noise)

    def _forget_the_infinite(self, entropy: float, noise: float) -> None:
        """Start afresh, at this entropy, where numbers left the range of float64."""
        if bool(torch.isfinite(self._mean).all() and torch.isfinite(self._covariance).all()):
            return
        self._mean = torch.zeros_like(self._mean)
        self._covariance = torch.zeros_like(self._covariance)
        self._first_gain, self._steps = None, None
        self._mean[_ENTROPY] = entropy
        self._covariance[_ENTROPY, _ENTROPY] = noise**2

    def state_dict(self) -> dict[str, Any]:
        """Return the filter's memory, JSON-serializable."""
        return {
            "first": self._first,
            "first_gain": self._first_gain,
            "mean": self._mean.tolist(),
            "covariance": self._covariance.tolist(),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        mean = _matrix(state["mean"], (_STATES,))
        covariance = _matrix(state["covariance"], (_STATES, _STATES))
        steps = None if state["steps"] is None else float(state["steps"])
        self._first, self._first_gain, self._steps = state["first"], state["first_gain"], steps
        self._mean, self._covariance = mean, covariance


def _matrix(values: Any, shape: tuple[int, ...]) -> Tensor:
    matrix = torch.tensor(values, dtype=torch.float64)
    if tuple(matrix.shape) != shape:
        raise ValueError(f"expected numbers of shape {shape}, got {tuple(matrix.shape)}")
    return matrix
