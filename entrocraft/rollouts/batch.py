"""The rollout batch: what a trainer shows an entropy method before the update."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from entrocraft.rollouts.step import StepInfo

__all__ = ["RolloutBatch", "RolloutStats", "clustered_stderr"]

_ONE_REWARD = 1e-6
# the last digits of a mean in 32 bits, as they are and divided by the 1e-4 that stands in for no
# standard deviation
_ROUNDING, _MAGNIFIED = 4e-6, 5e-3


@dataclass(frozen=True)
class RolloutStats:
    """Per-rollout sums over response tokens: all that a decision needs and that ranks exchange.

    Every tensor is (B,) float64 except `group` ((B,) int64). `sensitivity` is None unless the
    effect level needs token sensitivities. `token_weight` is what the loss puts on each token of a
    rollout, up to a common factor; None: the same on all. `by_rollout` tells a loss that divides by
    the number of rollouts from one that divides by the number of tokens.

    Where advantages differ from token to token, `advantage_tokens` and `advantage_logprob` are
    what `tokens` and `logprob` are with each token counted by its advantage over the rollout's;
    None: all tokens of a rollout share its advantage.
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
        if self.rewards is None or self.group is None:
            return torch.zeros(len(self), dtype=torch.bool)
        _, index = torch.unique(self.group, return_inverse=True)
        count = int(index.max()) + 1

        def extreme(unknown: float, which: str) -> Tensor:
            start = torch.full((count,), unknown, dtype=torch.float64)
            assert self.rewards is not None
            return start.scatter_reduce(0, index, self.rewards.nan_to_num(nan=unknown), which)

        high, low = extreme(-math.inf, "amax"), extreme(math.inf, "amin")
        close = high - low <= _ONE_REWARD * torch.maximum(high.abs(), low.abs())
        return (close & torch.isfinite(high) & torch.isfinite(low))[index]

    def without_rounding_noise(self) -> RolloutStats:
        """Set advantages that are nothing but rounding back to the 0 that they stand for.

        In a group with one reward, 0.1 for example, the mean can differ from its members by the
        last digit of 32 bits, and trainers divide that by next to no standard deviation. Advantages
        of such groups that are real, such as raw rewards, are larger and stay.
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

        The ratio estimator over independent clusters: prompts if `group` is known, else rollouts;
        those without tokens do not count.
        """
        residual = (self.entropy - self.mean_entropy() * self.tokens) / self.total_tokens
        return clustered_stderr(residual, self.tokens > 0, self.group)


def clustered_stderr(residual: Tensor, counted: Tensor, group: Tensor | None) -> float:
    """Standard error of the sum of residuals (B,) over independent groups.

    Args:
        residual: (B,), what each rollout adds to the estimate's error.
        counted: (B,) bool, rollouts that are part of the estimate.
        group: (B,), an integer for each prompt; None takes each rollout as independent.
    """
    residual = residual[counted]
    if group is not None:
        _, index = torch.unique(group[counted], return_inverse=True)
        clusters = torch.zeros(int(index.max()) + 1, dtype=residual.dtype)
        residual = clusters.index_add_(0, index, residual)
    count = len(residual)
    return (
        math.sqrt(float(residual.square().sum()) * count / (count - 1)) if count > 1 else math.inf
    )


@dataclass(frozen=True)
class RolloutBatch:
    """One rollout batch of B rollouts, T response positions at most.

    Attributes:
        step: optimizer steps taken before this batch; the schedule's clock.
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
        optimizer_steps: optimizer steps that this batch will be used for; a fraction where several
            rollout batches make one step.
        momentum: of the optimizer, see `StepInfo`; None if it is not known.
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
        self._check_shapes()
        mask = self.mask.detach().cpu().bool()
        advantages = _finite_rows("advantages", self.advantages)
        logprob = _masked_sum("logprobs", self.logprobs, mask)
        if float(logprob.max()) > 1e-3:
            row = int(logprob.argmax())
            raise ValueError(
                f"logprobs of rollout {row} add up to {float(logprob[row]):g} nats; a "
                "log-probability is never positive: pass log p, neither -log p nor p"
            )
        if self.entropies is None:
            entropy = -logprob
        else:
            entropy = _masked_sum("entropies", self.entropies, mask)
            if float(entropy.min()) < -1e-3:
                row = int(entropy.argmin())
                raise ValueError(
                    f"entropies of rollout {row} add up to {float(entropy[row]):g} nats; entropy "
                    "is never negative: pass -sum p log p, not its negative"
                )
        sensitivity = None
        if self.sensitivity is not None:
            sensitivity = _masked_sum("sensitivity", self.sensitivity, mask)
        return RolloutStats(
            advantages=advantages,
            tokens=mask.sum(-1).double(),
            logprob=logprob,
            entropy=entropy,
            sensitivity=sensitivity,
            rewards=None if self.rewards is None else self.rewards.detach().cpu().double(),
            group=None if self.group is None else self.group.detach().cpu().long(),
            token_weight=None
            if self.token_weight is None
            else _finite_rows("token_weight", self.token_weight),
        ).without_rounding_noise()

    def _check_shapes(self) -> None:
        if self.mask.ndim != 2:
            raise ValueError(f"mask must be (B, T), got shape {tuple(self.mask.shape)}")
        rows = self.mask.shape[0]
        if rows == 0:
            raise ValueError("the rollout batch is empty; a decision needs at least one rollout")
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Tensor):
                continue
            per_row = field.name in ("advantages", "rewards", "group", "token_weight")
            wanted = (rows,) if per_row else tuple(self.mask.shape)
            if tuple(value.shape) != wanted:
                raise ValueError(
                    f"{field.name} has shape {tuple(value.shape)}, expected {wanted} "
                    f"({'(B,)' if per_row else '(B, T)'} as given by mask)"
                )


def _finite_rows(name: str, values: Tensor) -> Tensor:
    rows = values.detach().cpu().double()
    bad = ~torch.isfinite(rows)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}[{row}] is {float(rows[row])}; {name} must be finite: give a rollout that "
            "cannot be scored an advantage of 0"
        )
    return rows


def _masked_sum(name: str, values: Tensor, mask: Tensor) -> Tensor:
    tokens = values.detach().cpu().double()
    tokens = torch.where(mask, tokens, torch.zeros_like(tokens))
    bad = ~torch.isfinite(tokens)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{name}[{row}, {column}] is {float(tokens[row, column])} inside the mask; {name} must "
            "be finite on response tokens: mask tokens that the engine could not score, or "
            "recompute them"
        )
    return tokens.sum(-1)
