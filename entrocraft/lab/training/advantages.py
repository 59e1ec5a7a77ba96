"""Changes to the estimator's advantages before the entropy method sees them."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["with_changed_advantages"]


def with_changed_advantages(trainer_class: type, raw: bool, noise: float, seed: int) -> type:
    """Return a trainer of ours whose advantages are raw rewards, or carry noise, or both.

    Args:
        trainer_class: `entrocraft.trl.GRPOTrainer` or `RLOOTrainer`.
        raw: the rollouts' own rewards take the place of the estimator's advantages (REINFORCE
            without a baseline).
        noise: standard deviation of normal noise on every advantage.
        seed: of the noise; it is drawn anew from the step, so that a resumed run sees the same.
    """

    class Changed(trainer_class):
        """The trainer with changed advantages."""

        def _decide_on(self, output: dict[str, Any]) -> None:
            advantages = output["advantages"]
            if advantages.ndim == 1:
                start = self.accelerator.process_index * len(advantages)
                mine = slice(start, start + len(advantages))
                if raw:
                    rewards = self._rollout_rewards[mine].nan_to_num()
                    advantages = rewards.to(advantages.device, advantages.dtype)
                if noise:
                    generator = torch.Generator().manual_seed(
                        seed * 1_000_003 + self.state.global_step
                    )
                    count = len(output["advantages"]) * self.accelerator.num_processes
                    drawn = noise * torch.randn(count, generator=generator)
                    advantages = advantages + drawn[mine].to(advantages.device, advantages.dtype)
                output["advantages"] = advantages
            super()._decide_on(output)

    Changed.__name__ = Changed.__qualname__ = trainer_class.__name__
    return Changed
