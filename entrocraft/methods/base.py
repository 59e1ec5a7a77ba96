"""What every peer is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from entrocraft import schedules
from entrocraft.feedback.target import Target
from entrocraft.method import Decision, ExtraRollouts, StepInfo
from entrocraft.rollouts import RolloutBatch, RolloutStats
from entrocraft.rollouts.tokens import TokenBatch
from entrocraft.selection.rules import SUCCESS

__all__ = [
    "BASELINES",
    "PPO_LOSSES",
    "RATIO_LOSSES",
    "UNCLIPPED",
    "Baseline",
    "Reading",
    "RewardBaseline",
    "TokenBaseline",
    "baseline",
    "checked",
    "required_rewards",
    "without_the_rest",
]

UNCLIPPED = {"epsilon": 1e9, "epsilon_high": 1e9, "importance_sampling_level": "token"}
"""Trainer options that leave clipping to the method: no ratio reaches such a bound."""

PPO_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""TRL's loss types with PPO's clip: to 1 - epsilon and 1 + epsilon_high, and at delta above."""

RATIO_LOSSES = (*PPO_LOSSES, "cispo")
"""TRL's loss types that multiply a token's gradient by its importance ratio up to some bound.

In "cispo" that bound is epsilon_high itself; "sapo" and "vespo" read none of the clip's options and
have functions of the ratio of their own.
"""

BASELINES: dict[str, type[Baseline]] = {}
"""Every peer by name."""

_Class = TypeVar("_Class", bound="type[Baseline]")


@dataclass(frozen=True)
class Reading:
    """What a decision starts from: optimizer step, entropy of the batch, target (nats per token).

    `target` is None for a method that was given none.
    """

    step: int
    measured: float
    target: float | None

    @property
    def error(self) -> float:
        """Measured minus target, nats per token."""
        assert self.target is not None, "only a method that follows a target asks for the error"
        return self.measured - self.target


class Baseline:
    """A published method behind the interface of `EntropyMethod`.

    As it stands it observes and changes nothing. Peers fill in what they need:

    - `trainer_options`: options of the trainer, by TRL's names, for the whole run;
    - `settings`: options of the trainer for the updates of one batch;
    - `advantages`: (B,) advantages in place of the estimator's;
    - `extra`: rollouts at another temperature that join the batch;
    - `reweigh` (`TokenBaseline`): token advantages (b, T);
    - `bonus_entropy` and `stepped`: what the trainer's entropy bonus averages instead of entropy.

    Args:
        schedule: target entropy as for `EntropyController`; a reference in the log for methods
            that follow none.

    Attributes:
        name: in the registry.
        follows: whether the method steers entropy towards a target.
        own_target: the target without a schedule, nats per token.
        coefficient: the method's main number, which a fair comparison tries several values of;
            None if there is none.
        losses: TRL's loss types under which the method is what its source says; None for all.
        needs_updates: whether all that the method does depends on how far the policy has moved
            since the batch was sampled, so that with one update per batch it is plain GRPO (with
            the mean over rollouts, where it sets a loss that takes this one).
    """

    name: ClassVar[str] = ""
    own_target: ClassVar[float | None] = None
    follows: ClassVar[bool] = False
    coefficient: ClassVar[str | None] = None
    losses: ClassVar[tuple[str, ...] | None] = None
    needs_updates: ClassVar[bool] = False

    def __init__(self, schedule: schedules.Schedule | str | float | None = None) -> None:
        self._target = Target(self.own_target if schedule is None else schedule)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(schedule={self.schedule!r})"

    @property
    def schedule(self) -> Any:
        """Step -> target entropy, nats per token; None without a target."""
        return self._target.schedule

    @property
    def effect(self) -> str | None:
        """Effect level whose token sensitivities the method reads, or None."""
        return None

    @property
    def trainer_options(self) -> dict[str, Any]:
        """Options of the trainer, by TRL's names; they hold for the whole run."""
        return {}

    def prepare(self, *, vocabulary: int | None = None, steps: int | None = None) -> None:
        """Check the schedule against the vocabulary and the run's length, before any update.

        Raises:
            ValueError: a target that is negative, not finite or above log(vocabulary).
        """
        self._target.prepare(vocabulary, steps)

    def target(self, step: int) -> float | None:
        """Target entropy at an optimizer step, nats per token; None while it is not known."""
        return self._target.target(step)

    def decide(self, batch: RolloutBatch | RolloutStats, **clock: Any) -> Decision:
        """Decide on one rollout batch; see `EntropyController.decide`.

        Raises:
            ValueError: a batch or a target that makes no sense; nothing was changed.
        """
        moment = StepInfo.of(batch, clock)
        stats = batch.stats() if isinstance(batch, RolloutBatch) else batch
        if stats.total_tokens == 0:
            raise ValueError(
                "the batch has no response token inside its mask, so it has no entropy; check the "
                "mask (true on response tokens)"
            )
        before = self.state_dict()
        try:
            return self._decide(stats, moment.step)
        except BaseException:
            self.load_state_dict(before)
            raise

    def _decide(self, stats: RolloutStats, step: int) -> Decision:
        measured, stderr = stats.mean_entropy(), stats.entropy_stderr()
        self._target.anchor(measured)
        reading = Reading(step, measured, self._target.target(step))
        metrics = {"entropy/measured": measured}
        if math.isfinite(stderr):
            metrics["entropy/measured_stderr"] = stderr
        if reading.target is not None:
            metrics["entropy/target"] = reading.target
        advantages = self.advantages(stats, reading)
        trained = (advantages != 0) & (stats.tokens > 0)
        count, kept = int(stats.active.sum()), int((stats.active & trained).sum())
        metrics["entropy/kept_fraction"] = kept / count if count else 1.0
        metrics["entropy/empty"] = float(not bool(trained.any()))
        settings, extra = self.settings(reading), self.extra(reading)
        metrics |= self.report()
        weights = (trained | (stats.advantages == 0)).double()
        return Decision(
            weights,
            weights.clone(),
            advantages,
            metrics,
            useful=int(trained.sum()),
            settings=settings,
            extra=extra,
        )

    # What peers fill in ---------------------------------------------------------------------

    def advantages(self, stats: RolloutStats, reading: Reading) -> Tensor:
        """(B,) float64 advantages to train on."""
        return stats.advantages.clone()

    def settings(self, reading: Reading) -> dict[str, float]:
        """Options of the trainer for the updates of this batch."""
        return {}

    def extra(self, reading: Reading) -> ExtraRollouts | None:
        """Rollouts that are to join this batch."""
        return None

    def report(self) -> dict[str, float]:
        """Numbers of the method's own for the log, under ``entropy/``."""
        return {}

    def memory(self) -> dict[str, Any]:
        """Everything the method remembers besides its target's anchor, JSON-serializable."""
        return {}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take back what `memory` gave."""

    # State ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, for JSON."""
        return {
            "version": 1,
            "method": self.name,
            "goal": self._target.state_dict(),
            "memory": self.memory(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: not a state of this method; nothing was changed.
        """
        if not isinstance(state, dict) or state.get("version") != 1:
            raise ValueError(
                f"not a state of the method {self.name!r}: {str(state)[:200]}; was the checkpoint "
                "written by another method or version of entrocraft?"
            )
        if state.get("method") != self.name:
            raise ValueError(
                f"the checkpoint was written by the method {state.get('method')!r}, not by "
                f"{self.name!r}; resume with the method that wrote it"
            )
        self._target.load_state_dict(state["goal"])
        self.recall(state["memory"])


class RewardBaseline(Baseline):
    """A method that tells successes from failures by the raw reward.

    The raw reward is the weighted sum of the trainer's reward functions, so where accuracy and
    format give 1 each, a success has to be above 1.

    Args:
        success: smallest reward of a success.
    """

    def __init__(self, schedule: Any = None, *, success: float = SUCCESS) -> None:
        super().__init__(schedule)
        self.success = checked(self, "success", success)

    def successes(self, stats: RolloutStats) -> tuple[Tensor, Tensor]:
        """(B,) bool twice: rollouts that succeeded, and those that failed.

        With the default, rewards in {0, 1} and in {-1, 1} mean the same; a rollout that could not
        be scored is neither.
        """
        # in 32 bits as trainers have rewards, where 0.7 is a little less than in 64
        rewards = required_rewards(self, stats).float()
        return rewards >= self.success, rewards < self.success


class TokenBaseline(Baseline):
    """A method that weighs tokens.

    Attributes:
        scope: "update": `reweigh` sees each micro-batch on its way into the loss, under the present
            policy. "batch": it sees the rollouts of a batch once, before the first update.
    """

    scope: ClassVar[str] = "update"
    losses: ClassVar[tuple[str, ...] | None] = RATIO_LOSSES

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        """(b, T) advantages of the tokens.

        The trainer's loss multiplies them by the importance ratio, so that a token adds
        ``-A_t ratio_t grad log p_t`` to the gradient; whatever gradient a method asks for can be
        written as such an A_t.
        """
        raise NotImplementedError


def baseline(name: str) -> Callable[[_Class], _Class]:
    """Register a class as the method of this name."""

    def register(method: _Class) -> _Class:
        if name in BASELINES:
            raise ValueError(f"there is a method {name!r} already: {BASELINES[name].__qualname__}")
        method.name = name
        BASELINES[name] = method
        return method

    return register


def checked(
    owner: Baseline,
    name: str,
    value: float,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> float:
    """Return a number of a method's configuration.

    Raises:
        ValueError: it is not finite, outside [low, high], or not above `above`.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and low <= value <= high and value > above:
        return value
    bounds = [
        text
        for text, wanted in (
            (f"at least {low:g}", low > -math.inf),
            (f"above {above:g}", above > -math.inf),
            (f"at most {high:g}", high < math.inf),
        )
        if wanted
    ]
    raise ValueError(
        f"{owner.name}: {name} is {value!r}; use a finite number"
        + (f" {' and '.join(bounds)}" if bounds else "")
    )


def required_rewards(owner: Baseline, stats: RolloutStats) -> Tensor:
    """(B,) raw rewards, NaN where a rollout could not be scored.

    Raises:
        ValueError: the batch has none.
    """
    if stats.rewards is None:
        raise ValueError(
            f"the method {owner.name!r} trains on raw rewards; put RolloutBatch.rewards (B,) into "
            "the batch"
        )
    return stats.rewards


def without_the_rest(advantages: Tensor, stats: RolloutStats) -> Tensor:
    """Advantages (B,) as if rollouts with advantage 0 had been dropped from the batch.

    Zeroed rollouts stay in the loss's denominator; scaling by all over kept takes them out of it:
    tokens where the loss divides by their number (TRL's default), else rollouts, those without a
    token included, as TRL counts them too.
    """
    counted = torch.ones_like(stats.tokens) if stats.by_rollout else stats.tokens
    kept = float(counted[advantages != 0].sum())
    return advantages * (float(counted.sum()) / kept) if kept else torch.zeros_like(advantages)
