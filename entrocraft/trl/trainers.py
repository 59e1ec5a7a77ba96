"""TRL's trainers with entropy control mixed in."""

import trl

from entrocraft.trl.mixin import EntropyControlMixin

__all__ = ["GRPOTrainer", "RLOOTrainer"]


class GRPOTrainer(EntropyControlMixin, trl.GRPOTrainer):
    """`trl.GRPOTrainer` with `entropy_control=`; every loss type and importance-sampling level."""


class RLOOTrainer(EntropyControlMixin, trl.RLOOTrainer):
    """`trl.RLOOTrainer` with `entropy_control=`."""
