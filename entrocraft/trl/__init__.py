"""Entropy control for TRL's trainers: the same classes and arguments, plus `entropy_control=`.

    from entrocraft.trl import GRPOTrainer

    trainer = GRPOTrainer(..., entropy_control="linear(initial, 0.3, 300)")

`EntropyControlMixin` does the same for a subclass of your own. With `entropy_control=None` the
trainers are TRL's, bit for bit.
"""

try:
    import trl  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"entrocraft.trl needs TRL ({error}); pip install 'entrocraft[trl]'"
    ) from error

from entrocraft.trl.metrics import MetricsFile
from entrocraft.trl.steering import Steering
from entrocraft.trl.trainers import EntropyControlMixin, GRPOTrainer, RLOOTrainer

__all__ = ["EntropyControlMixin", "GRPOTrainer", "MetricsFile", "RLOOTrainer", "Steering"]
