"""Entropy as a hyperparameter with a schedule, for reinforcement learning of language models.

The library needs torch alone; trainers are reached through adapters such as `entrocraft.trl`,
imported only when asked for. `entrocraft.lab` trains, measures and draws, and is an extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entrocraft import schedules
    from entrocraft.controller import EntropyController
    from entrocraft.feedback import FeedbackSettings, Guard
    from entrocraft.method import Decision, EntropyControlWarning
    from entrocraft.rollouts import RolloutBatch
    from entrocraft.selection import SelectionSettings

    __version__: str

__all__ = [
    "Decision",
    "EntropyControlWarning",
    "EntropyController",
    "FeedbackSettings",
    "Guard",
    "RolloutBatch",
    "SelectionSettings",
    "__version__",
    "schedules",
]

_HOME = {
    "Decision": "method",
    "EntropyControlWarning": "method",
    "EntropyController": "controller",
    "FeedbackSettings": "feedback",
    "Guard": "feedback",
    "RolloutBatch": "rollouts",
    "SelectionSettings": "selection",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command line prints its help without torch."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("entrocraft")
        except PackageNotFoundError:  # running from a source tree that was never installed
            return "0.0.0"
    if name == "schedules":
        return import_module("entrocraft.schedules")
    if name in _HOME:
        return getattr(import_module(f"entrocraft.{_HOME[name]}"), name)
    raise AttributeError(f"module 'entrocraft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
