"""The section `control` of a configuration: which entropy curve, and by which method."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from entrocraft import methods
from entrocraft.controller import EntropyController
from entrocraft.method import EntropyMethod
from entrocraft.selection.rules import RULES

__all__ = ["ControlConfig"]


@dataclass
class ControlConfig:
    """Which entropy curve, and by which rule.

    Args:
        rule: tilt, sign, switch; a peer by its name, such as clip_cov; or null: plain RL that logs
            the same numbers.
        options: the peer's own options, e.g. {ratio: 0.001}; the keys below are not for peers.
        schedule: target entropy in nats per token over optimizer steps, for example
            "linear(0.6, 0.3, 300)"; "initial" stands for the first measured entropy. null only for
            what needs none: rule null, and peers, some of which then follow a constant of theirs.
        effect: sign, sampled or logit; null takes the rule's own.
        band: half-width around the target, in nats, for the rules sign and switch.
        feedback: plan or pi, for the rule tilt; null takes plan.
        constant_reward_groups: let all-correct and all-wrong groups join with raw rewards.
        correction: importance weights a^-correction of what was kept with probability a; 0 to 1.
        draw: false weighs rollouts by their keep probability instead of drawing.
        effective_batch: rollouts with a vote to keep at most; null keeps all that are left.
        renormalize: none, rollouts or tokens; scales what is kept up to the whole batch's size.
        remeasure: score each batch once more after its update; null does so with feedback plan.
    """

    rule: str | None = "tilt"
    options: dict[str, Any] = field(default_factory=dict)
    schedule: str | float | None = "linear(initial, 0.6*initial, 150)"
    effect: str | None = None
    band: float = 0.05
    feedback: Literal["plan", "pi"] | None = None
    constant_reward_groups: bool = False
    correction: float = 0.0
    draw: bool = True
    effective_batch: int | None = None
    renormalize: Literal["none", "rollouts", "tokens"] = "none"
    remeasure: bool | None = None

    def build(self, seed: int) -> EntropyMethod:
        """Make the method; with rule null it observes and rejects nothing.

        Raises:
            ValueError: settings that cannot be met, or that this method does not have.
        """
        keys = dataclasses.asdict(self)
        options = keys.pop("options")
        if self.rule is None or self.rule in RULES:
            if options:
                raise ValueError(
                    f"control.options is {options}; the rule {self.rule!r} has keys of control "
                    "itself, options are for peers"
                )
            return EntropyController(**keys, seed=seed)
        if self.rule not in methods.METHODS:
            names = ", ".join([*RULES, *methods.METHODS])
            raise ValueError(f"unknown rule {self.rule!r}; choose null or one of {names}")
        defaults = dataclasses.asdict(ControlConfig())
        for key in keys.keys() - {"rule", "schedule"}:
            if keys[key] != defaults[key]:
                raise ValueError(
                    f"control.{key} is {keys[key]!r}; the method {self.rule!r} does not have it, "
                    "its own options go into control.options"
                )
        if "seed" in methods.options_of(self.rule):
            options = {"seed": seed} | options
        return methods.get_method(self.rule, self.schedule, **options)
