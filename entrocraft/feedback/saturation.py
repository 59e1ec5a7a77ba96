"""The saturation monitor: says when rejection has been at its limit for long, and what helps."""

from __future__ import annotations

from dataclasses import dataclass

from entrocraft.rollouts.step import StepInfo

__all__ = ["Remedies", "SaturationMonitor"]

_BEFORE_WARNING, _BEFORE_SECOND = 10, 40  # optimizer steps at the limit in a row
_MISSED = 0.02  # of the target: a mean distance that is worth a warning


@dataclass(frozen=True)
class Remedies:
    """What a user could change where rejection is at its limit, and has not changed yet.

    Attributes:
        tilt: the rule tilt, in place of a band rule.
        learning_rate: `FeedbackSettings.learning_rate`.
        constant_reward_groups: `SelectionSettings.constant_reward_groups`.
    """

    tilt: bool = False
    learning_rate: bool = False
    constant_reward_groups: bool = False

    def text(self, below: bool, learning_rate: float | None) -> str:
        """What can be changed where the entropy is below its target, or above it.

        Args:
            below: True if below.
            learning_rate: of the run, if it is known.
        """
        now = "" if learning_rate is None else f" (now {learning_rate:.2g})"
        found = [f"lower the learning rate{now}"] if below else [f"raise the learning rate{now}"]
        if below and self.learning_rate:
            found.append(
                "in TRL let the controller do so while it is needed "
                "(feedback=FeedbackSettings(learning_rate=True))"
            )
        found.append("ask for less entropy" if below else "give the schedule more steps")
        if self.tilt:
            found.append("use rule='tilt'")
        if self.constant_reward_groups:
            found.append(
                "let all-correct and all-wrong groups join "
                "(selection=SelectionSettings(constant_reward_groups=True))"
            )
        return f"{', '.join(found[:-1])} or {found[-1]}"


@dataclass(frozen=True)
class SaturationMonitor:
    """Watches decisions; each warning is given once in a run, `warned` has their topics.

    Attributes:
        saturated_in_a_row: optimizer steps at the limit until now; negative where entropy was to
            fall.
        gap: mean of measured minus target over these steps, nats per token.
        warned: topics of the warnings given.
    """

    saturated_in_a_row: int = 0
    gap: float = 0.0
    warned: tuple[str, ...] = ()

    def check(
        self, metrics: dict[str, float], useful: int, remedies: Remedies, step: StepInfo
    ) -> tuple[SaturationMonitor, tuple[str, ...]]:
        """Look at one decision.

        Args:
            metrics: what it logs.
            useful: how many of its rollouts carry a gradient.
            remedies: what a user could change.
            step: the batch's place in the run.

        Returns:
            The monitor after it, and the texts of new warnings.
        """
        found, row, gap = {}, 0, 0.0
        if metrics["entropy/saturated"] > 0:
            measured, target = metrics["entropy/measured"], metrics["entropy/target"]
            sign = 1 if metrics["entropy/pressure"] > 0 else -1
            new = max(round(step.optimizer_steps), 1)
            row = sign * new + max(self.saturated_in_a_row * sign, 0) * sign
            share = new / abs(row)
            gap = (1 - share) * self.gap + share * (measured - target)
            below, missed = row > 0, -gap * sign > _MISSED * target
            side = "below" if below else "above"
            if abs(row) >= _BEFORE_WARNING and missed:
                found["saturated"] = (
                    f"entropy has been {side} its schedule for {abs(row)} optimizer steps with "
                    f"rejection at its limit: target {target:.3f}, measured {measured:.3f} nats "
                    f"per token, keeping {metrics['entropy/kept_fraction']:.0%} of the rollouts. "
                    "Rejection alone cannot do more: "
                    f"{remedies.text(below, step.learning_rate)}"
                )
            if abs(row) >= _BEFORE_SECOND and missed:
                found["missed"] = (
                    f"the schedule is being missed: over the last {abs(row)} steps entropy was "
                    f"{abs(gap):.3f} nats per token {side} it on average; the target is now "
                    f"{target:.3f}"
                )
        if useful == 0:
            found["empty"] = (
                "no rollout with a non-zero advantage is left in a batch (logged as "
                "entropy/empty): the rollouts of each prompt had one reward, or were rejected. Its "
                "update carries no policy gradient, the optimizer still moves by momentum and "
                "weight decay. If it stays so, look at the reward, or at how hard the task is"
            )
        fresh = {topic: text for topic, text in found.items() if topic not in self.warned}
        warned = tuple(sorted({*self.warned, *fresh}))
        return SaturationMonitor(row, gap, warned), tuple(fresh.values())
