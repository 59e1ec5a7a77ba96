"""The rollout batch: what a trainer shows an entropy method before the update."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from entrocraft.rollouts.step import StepInfo

__all__ = ["RolloutBatch", "RolloutStats", "clustered_stderr", "constant_rewards"]

_ONE_REWARD = 1e-6
# the last digits of a mean in 32 bits, as they are and divided by the 1e-4 that stands in for no
# standard deviation
_ROUNDING, _MAGNIFIED = 4e-6, 5e-3
_SIGN_ERROR = 1e-3  # nats: a sum of the wrong sign up to this is rounding
_PER_ROLLOUT = ("advantages", "rewards", "group", "token_weight")
_TENSORS = (*_PER_ROLLOUT, "mask", "logprobs", "entropies", "sensitivity")
_LARGEST = torch.finfo(torch.float32).max  # squares of larger numbers are beyond 64 bits


@dataclass(frozen=True)
class RolloutStats:
    """Per-rollout sums over response tokens: all that a decision needs and that ranks exchange.

    Every tensor is (B,) float64 except `group` ((B,) int64); those that may be None are so as in
    `RolloutBatch`. `by_rollout` tells a loss that divides by the number of rollouts from one that
    divides by the number of tokens.

    Where advantages differ from token to token, `advantage_tokens` and `advantage_logprob` are
    what `tokens` and `logprob` are with each token counted by its advantage over the rollout's;
    None: all tokens of a rollout share its advantage.

    A part of a batch, whose groups need not be complete, has in `constant` (bool) what
    `constant_reward` is in the whole.
    """

    advantages: Tensor
    tokens: Tensor
    logprob: Tensor
    entropy: Tensor
    sensitivity: Tensor | None = None
    rewards: Tensor | None = None
    group: Tensor | None = None
    token_weight: Tensor | None = None
    by_rollout: bool = False
    advantage_tokens: Tensor | None = None
    advantage_logprob: Tensor | None = None
    constant: Tensor | None = None

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            ValueError: one that is not finite or beyond 32 bits, or a negative token weight; the
                message names the field, the rollout and the value.
        """
        for name, values in vars(self).items():
            if torch.is_tensor(values) and values.is_floating_point():
                wrong = ~(values.abs() <= _LARGEST)
                _refuse(name, values, wrong & ~values.isnan() if name == "rewards" else wrong)
        if self.token_weight is not None:
            _refuse("token_weight", self.token_weight, self.token_weight < 0, "at least 0")

    def __len__(self) -> int:
        return len(self.advantages)

    @property
    def total_tokens(self) -> float:
        """N: response tokens in the whole batch."""
        return float(self.tokens.sum())

    @property
    def active(self) -> Tensor:
        """(B,) bool: active rollouts have tokens and an advantage other than 0."""
        return (self.advantages != 0) & (self.tokens > 0)

    @property
    def constant_reward(self) -> Tensor:
        """(B,) bool: rollouts whose whole group has one reward; none if rewards are not known."""
        if self.constant is not None:
            return self.constant
        if self.rewards is None or self.group is None:
            return torch.zeros(len(self), dtype=torch.bool)
        return constant_rewards(self.rewards, self.group)

    def without_rounding_noise(self) -> RolloutStats:
        """Set advantages that are nothing but rounding back to the 0 that they stand for.

        In a group with one reward the mean can differ from its members by the last digit of 32
        bits, and trainers divide that by next to no standard deviation. Real advantages of such
        groups, such as raw rewards, are larger and stay.
        """
        constant = self.constant_reward
        if self.rewards is None or not bool(constant.any()):
            return self
        size = self.rewards.nan_to_num().abs()
        largest = max(float(self.advantages.abs().max()), float(size[constant].max()))
        limit = (_MAGNIFIED * size).clamp(min=_ROUNDING * largest)
        rounding = constant & (self.advantages.abs() <= limit)
        return replace(self, advantages=self.advantages.masked_fill(rounding, 0.0))

    def mean_entropy(self) -> float:
        """Token mean of the entropy, nats per token.

        Raises:
            ValueError: the batch has no response token.
        """
        if self.total_tokens == 0:
            raise ValueError(
                "the batch has no response token inside its mask, so it has no entropy; check the "
                "mask (true on response tokens)"
            )
        return float(self.entropy.sum()) / self.total_tokens

    def entropy_stderr(self) -> float:
        """Standard error of `mean_entropy`, nats per token; infinite below two prompts.

        The ratio estimator over clusters: prompts if `group` is known, else rollouts with tokens.
        """
        residual = (self.entropy - self.mean_entropy() * self.tokens) / self.total_tokens
        return clustered_stderr(residual, self.tokens > 0, self.group)


def constant_rewards(rewards: Tensor, group: Tensor) -> Tensor:
    """(B,) bool: rollouts whose group has one reward, NaN left aside; rewards (B,) float64."""
    groups, index = torch.unique(group, return_inverse=True)
    start = torch.full((len(groups),), math.inf, dtype=torch.float64)
    low = start.scatter_reduce(0, index, rewards.nan_to_num(nan=math.inf), "amin")
    high = (-start).scatter_reduce(0, index, rewards.nan_to_num(nan=-math.inf), "amax")
    close = high - low <= _ONE_REWARD * torch.maximum(high.abs(), low.abs())
    return (close & torch.isfinite(high) & torch.isfinite(low))[index]


def clustered_stderr(residual: Tensor, counted: Tensor, group: Tensor | None) -> float:
    """Standard error of a sum over rollouts whose groups are independent; infinite below two.

    `residual` (B,) is what each rollout adds to the error, `counted` (B,) bool says which belong to
    the estimate, `group` (B,) numbers the prompts; None takes each rollout as independent.
    """
    residual = residual[counted]
    if group is not None:
        groups, index = torch.unique(group[counted], return_inverse=True)
        residual = torch.zeros(len(groups), dtype=residual.dtype).index_add_(0, index, residual)
    count = len(residual)
    if count < 2:
        return math.inf
    return math.sqrt(float(residual.square().sum()) * count / (count - 1))


@dataclass(frozen=True)
class RolloutBatch:
    """One rollout batch of B rollouts, T response positions at most.

    Attributes:
        advantages: (B,), from any estimator; a rollout with advantage 0 is not active.
        mask: (B, T), true on the policy's own response tokens; padding and tool tokens are outside.
        logprobs: (B, T), log-probability of each sampled token under the policy that is about to be
            updated, at the sampling temperature.
        entropies: (B, T), entropy of the temperature-scaled distribution at each position in nats,
            or None: then the mean of -logprobs estimates it (unbiased if nothing truncates the
            sampling).
        sensitivity: (B, T), nats per unit of advantage (see `entrocraft.effects`), or None; needed
            by the level `logit`.
        rewards: (B,), raw rewards, or None; NaN marks an unscorable rollout. Needed by the rule
            `switch`.
        group: (B,), an integer for each prompt, or None; sharpens the standard error.
        token_weight: (B,), what the loss puts on each token of a rollout, up to a common factor, or
            None: the same on all. A loss that averages over each rollout's tokens first puts 1
            over their number.
        step, optimizer_steps, momentum: place in the run and its use, see `StepInfo`.
    """

    step: int
    advantages: Tensor
    mask: Tensor
    logprobs: Tensor
    entropies: Tensor | None = None
    sensitivity: Tensor | None = None
    rewards: Tensor | None = None
    group: Tensor | None = None
    token_weight: Tensor | None = None
    optimizer_steps: float = 1
    momentum: float | None = None

    def step_info(self) -> StepInfo:
        """Return the batch's position in the run."""
        return StepInfo(self.step, self.optimizer_steps, self.momentum)

    def stats(self) -> RolloutStats:
        """Check the batch and add its tokens up, in float64 on the CPU.

        Raises:
            ValueError: a wrong shape, or a value that is not finite where it counts; the message
                names the field, the place, the value and the remedy.
        """
        found: dict[str, Any] = {name: _tensor(name, getattr(self, name)) for name in _TENSORS}
        return replace(self, **found)._sums()

    def _sums(self) -> RolloutStats:
        self._check_shapes()
        mask = self.mask.detach().cpu().double()
        _refuse("mask", mask, (mask != 0) & (mask != 1), "0 or 1")
        mask = mask.bool()
        logprob = _masked_sum("logprobs", self.logprobs, mask)
        remedy = "a log-probability is never positive: pass log p, neither -log p nor p"
        _refuse_sums("logprobs", logprob, logprob > _SIGN_ERROR, remedy)
        entropy = -logprob
        if self.entropies is not None:
            entropy = _masked_sum("entropies", self.entropies, mask)
            remedy = "entropy is never negative: pass -sum p log p, not its negative"
            _refuse_sums("entropies", entropy, entropy < -_SIGN_ERROR, remedy)
        sensitivity, weight = self.sensitivity, self.token_weight
        if sensitivity is not None:
            sensitivity = _masked_sum("sensitivity", sensitivity, mask)
        return RolloutStats(
            advantages=self.advantages.detach().cpu().double(),
            tokens=mask.sum(-1).double(),
            logprob=logprob,
            entropy=entropy,
            sensitivity=sensitivity,
            rewards=None if self.rewards is None else self.rewards.detach().cpu().double(),
            group=None if self.group is None else self.group.detach().cpu().long(),
            token_weight=None if weight is None else weight.detach().cpu().double(),
        ).without_rounding_noise()

    def _check_shapes(self) -> None:
        if self.mask.ndim != 2:
            raise ValueError(f"mask must be (B, T), got shape {tuple(self.mask.shape)}")
        if len(self.mask) == 0:
            raise ValueError("the rollout batch is empty; a decision needs at least one rollout")
        for name, value in vars(self).items():
            kind = "(B,)" if name in _PER_ROLLOUT else "(B, T)"
            wanted = tuple(self.mask.shape)[: 1 if name in _PER_ROLLOUT else 2]
            if isinstance(value, Tensor) and tuple(value.shape) != wanted:
                found = tuple(value.shape)
                raise ValueError(f"{name} has shape {found}, expected {wanted} ({kind} as in mask)")


_REMEDIES = {
    "mask": "1 or true on response tokens, 0 or false elsewhere",
    "advantages": "give a rollout that cannot be scored an advantage of 0",
    "rewards": "give a rollout that cannot be scored a reward of NaN",
    "token_weight": "give None if all tokens weigh the same",
}
_UNSCORED = "mask response tokens that the engine could not score, or recompute them"


def _tensor(name: str, values: Any) -> Tensor | None:
    """Lists and arrays as tensors."""
    if values is None and name not in ("advantages", "mask", "logprobs"):
        return None
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{name} is no tensor of numbers ({error}); got {values!r}"[:300]
        ) from None
    if found.is_complex():
        raise ValueError(f"{name} is complex ({found.dtype}); give real numbers")
    return found


def _masked_sum(name: str, values: Tensor, mask: Tensor) -> Tensor:
    tokens = values.detach().cpu().double()
    tokens = torch.where(mask, tokens, torch.zeros_like(tokens))
    _refuse(name, tokens, ~(tokens.abs() <= _LARGEST), where=" inside the mask")
    return tokens.sum(-1)


def _refuse(
    name: str, values: Tensor, wrong: Tensor, must: str = "finite in 32 bits", where: str = ""
) -> None:
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        found = f"{name}{place} is {float(values[tuple(place)])}{where}"
        remedy = _REMEDIES.get(name, _UNSCORED)
        raise ValueError(f"{found}; {name} must be {must}: {remedy}")


def _refuse_sums(name: str, sums: Tensor, wrong: Tensor, remedy: str) -> None:
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name} of rollout {row} add up to {float(sums[row]):g} nats; {remedy}")
