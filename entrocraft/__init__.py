"""Entropy as a hyperparameter with a schedule, for reinforcement learning of language models.

The library needs torch alone; trainers are reached through adapters such as `entrocraft.trl`,
imported only when asked for. `entrocraft.lab` trains, measures and draws, and is an extra.
"""

from importlib.metadata import PackageNotFoundError, version

from entrocraft import schedules
from entrocraft.controller import EntropyController
from entrocraft.feedback import FeedbackSettings
from entrocraft.method import Decision, EntropyControlWarning
from entrocraft.rollouts import RolloutBatch
from entrocraft.selection import SelectionSettings

try:
    __version__ = version("entrocraft")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = [
    "Decision",
    "EntropyControlWarning",
    "EntropyController",
    "FeedbackSettings",
    "RolloutBatch",
    "SelectionSettings",
    "__version__",
    "schedules",
]
