"""Settings of entropy control as a section of a configuration: Python, YAML and flags."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from entrocraft import methods
from entrocraft.controller import EntropyController
from entrocraft.feedback import FeedbackSettings, Guard
from entrocraft.method import Method
from entrocraft.selection import RULES, SelectionSettings
from entrocraft.typed import check_types

__all__ = ["ControlSettings", "settings_from_mapping"]


@dataclass(frozen=True)
class ControlSettings:
    """Which entropy curve, and by which method.

    Args:
        rule: tilt, sign, switch; a baseline by its name, such as clip_cov; or null: plain RL that
            logs the same numbers.
        schedule: target entropy in nats per token over optimizer steps, for example
            "linear(0.6, 0.3, 300)"; "initial" stands for the first measured entropy. null only with
            rule null and for baselines, some of which then follow a constant of theirs.
        options: a baseline's own, e.g. {ratio: 0.001}; it has none of the keys below.
        effect: sign, sampled or logit; null takes the rule's own.
        feedback: how target and measurement become pressure.
        selection: how pressure becomes weights.
        remeasure: share of the prompts, 0 to 1, that are scored once more after an update; null
            takes all with the rule tilt, else none.
        extra_pass: whether a trainer that does not score a batch before its update makes one pass
            more to do so.
        drop_rejected: whether rejected rollouts leave TRL's update, which then costs less and has
            the same gradient; they have to be known before it, as with `extra_pass`.
        guard: bounds of the entropy beyond which the run stops or its updates pause.
    """

    rule: str | None = "tilt"
    schedule: str | float | None = "linear(initial, 0.6*initial, 150)"
    options: dict[str, Any] = field(default_factory=dict)
    effect: str | None = None
    feedback: FeedbackSettings = field(default_factory=FeedbackSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    remeasure: float | None = None
    extra_pass: bool = False
    drop_rejected: bool = False
    guard: Guard | None = None

    def __post_init__(self) -> None:
        check_types(self, "control.")

    def build(self, seed: int) -> Method:
        """Make the method; with rule null it observes and rejects nothing.

        Raises:
            ValueError: settings that cannot be met, or that this method does not have.
        """
        if self.rule is None or self.rule in RULES:
            if self.options:
                raise ValueError(
                    f"control.options is {self.options}; rule {self.rule!r} takes keys of control "
                    "itself; options are for baselines"
                )
            return EntropyController(
                self.schedule,
                self.rule,
                self.effect,
                feedback=self.feedback,
                selection=self.selection,
                remeasure=self.remeasure,
                extra_pass=self.extra_pass,
                drop_rejected=self.drop_rejected,
                guard=self.guard,
                seed=seed,
            )
        if self.rule not in methods.METHODS:
            names = ", ".join([*RULES, *methods.METHODS])
            raise ValueError(f"unknown rule {self.rule!r}; choose null or one of {names}")
        own = ("effect", "feedback", "selection", "remeasure", "extra_pass", "drop_rejected")
        for name in (*own, "guard"):
            if getattr(self, name) != getattr(ControlSettings(), name):
                raise ValueError(
                    f"control.{name} is {getattr(self, name)!r}; the method {self.rule!r} does not "
                    "have it, its own options go into control.options"
                )
        known = methods.options_of(self.rule)
        if unknown := [key for key in self.options if key not in known]:
            raise ValueError(
                f"the method {self.rule!r} has no option {unknown[0]!r}; it has "
                f"{', '.join(known) or 'none'}"
            )
        seeded = {"seed": seed} if "seed" in methods.options_of(self.rule) else {}
        return methods.get_method(self.rule, self.schedule, **(seeded | self.options))


def settings_from_mapping(keys: Mapping[str, Any]) -> ControlSettings:
    """Read the section from nested keys; a schedule has no default here.

    Raises:
        ValueError: an unknown key, or a value of the wrong type; the message names it.
    """
    values: dict[str, Any] = {"schedule": None, **keys}
    sections = {"feedback": FeedbackSettings, "selection": SelectionSettings, "guard": Guard}
    for name, kind in sections.items():
        if name in values and (name, values[name]) != ("guard", None):
            values[name] = _section(kind, name, values[name])
    return _section(ControlSettings, "control", values)


def _section(kind: Any, name: str, keys: Any) -> Any:
    known = [part.name for part in fields(kind)]
    if not isinstance(keys, Mapping):
        raise ValueError(f"{name} is {keys!r}; it has keys: {', '.join(known)}")
    if unknown := [key for key in keys if key not in known]:
        raise ValueError(f"{name} has no key {unknown[0]!r}; known are {', '.join(known)}")
    try:
        return kind(**keys)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
