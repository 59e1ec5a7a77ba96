"""Advantages for studies: raw rewards, or noise on the estimator's, before the entropy method."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["with_changed_advantages"]


def with_changed_advantages(trainer_class: type, raw: bool, noise: float, seed: int) -> type:
    """Return a subclass of the trainer whose advantages are raw rewards, or carry noise, or both.

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
            own = output["advantages"]
            if own.ndim == 1:
                start = self.accelerator.process_index * len(own)
                mine = slice(start, start + len(own))
                advantages = self._rollout_rewards[mine].nan_to_num().to(own) if raw else own
                if noise:
                    step = seed * 1_000_003 + self.state.global_step
                    generator = torch.Generator().manual_seed(step)
                    count = len(own) * self.accelerator.num_processes
                    drawn = noise * torch.randn(count, generator=generator)
                    advantages = advantages + drawn[mine].to(own)
                output["advantages"] = advantages
            super()._decide_on(output)

    Changed.__name__ = Changed.__qualname__ = trainer_class.__name__
    return Changed
