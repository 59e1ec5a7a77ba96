"""Selection: pressure and predicted effects decide which rollouts enter the update."""

from entrocraft.selection.response import Response, rule_input
from entrocraft.selection.rules import (
    RULES,
    SUCCESS,
    Rule,
    RuleInput,
    Selection,
    Sign,
    Switch,
    Tilt,
    tilt,
)
from entrocraft.selection.sampling import SelectionSettings, systematic_draw

__all__ = [
    "RULES",
    "SUCCESS",
    "Response",
    "Rule",
    "RuleInput",
    "Selection",
    "SelectionSettings",
    "Sign",
    "Switch",
    "Tilt",
    "get_rule",
    "rule_input",
    "systematic_draw",
    "tilt",
]


def get_rule(name: str, settings: SelectionSettings | None = None) -> Rule:
    """Make the rule of this name.

    Raises:
        ValueError: an unknown name, or a setting that the rule does not have; the message lists
            the known ones.
    """
    settings = settings or SelectionSettings()
    if name not in RULES:
        raise ValueError(
            f"unknown rule {name!r}; choose one of {', '.join(RULES)} or None for plain RL"
        )
    if settings.constant_reward_groups and name != "tilt":
        raise ValueError(
            f"constant_reward_groups needs rule='tilt', got {name!r}; 'switch' uses such groups by "
            "itself"
        )
    rules: dict[str, Rule] = {"tilt": Tilt(settings.floor), "sign": Sign(), "switch": Switch()}
    return rules[name]
