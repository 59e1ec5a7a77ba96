"""Entropy as a hyperparameter with a schedule, for reinforcement learning of language models.

The core (`schedules`, `effects`, `feedback`, `acceptance`, `controller` and what they use) needs
torch alone; trainers are reached through adapters such as `entrocraft.trl`, imported only when
asked for.
"""

from importlib.metadata import PackageNotFoundError, version

from entrocraft import schedules
from entrocraft.controller import EntropyController
from entrocraft.method import Decision, EntropyControlWarning
from entrocraft.rollouts import RolloutBatch

try:
    __version__ = version("entrocraft")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = [
    "Decision",
    "EntropyControlWarning",
    "EntropyController",
    "RolloutBatch",
    "__version__",
    "schedules",
]
