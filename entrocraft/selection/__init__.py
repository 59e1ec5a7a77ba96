"""Selection: pressure and predicted effects decide which rollouts enter the update."""

from entrocraft.selection.response import Response, ResponseCurve, rule_input
from entrocraft.selection.rules import RULES, RuleInput, Selection, SelectionSettings, get_rule

__all__ = [
    "RULES",
    "Response",
    "ResponseCurve",
    "RuleInput",
    "Selection",
    "SelectionSettings",
    "get_rule",
    "rule_input",
]
