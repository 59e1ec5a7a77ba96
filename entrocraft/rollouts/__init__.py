"""Rollouts: what a trainer shows an entropy method, per token, per rollout and per step."""

from entrocraft.rollouts.batch import RolloutBatch, RolloutStats
from entrocraft.rollouts.step import StepInfo
from entrocraft.rollouts.tokens import TokenBatch

__all__ = ["RolloutBatch", "RolloutStats", "StepInfo", "TokenBatch"]
