"""Optimizer momentum: how long the effect of a step persists in later steps."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["innermost_optimizer", "optimizer_momentum"]


def optimizer_momentum(optimizer: Any) -> float | None:
    """Factor by which the pending change shrinks from step to step; the largest of all groups.

    Adam's beta1, SGD's momentum; None if the optimizer is none of those known here.
    """
    optimizer = innermost_optimizer(optimizer)
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return max(float(group["betas"][0]) for group in optimizer.param_groups)
    if isinstance(optimizer, torch.optim.SGD):
        return max(float(group["momentum"]) for group in optimizer.param_groups)
    return None


def innermost_optimizer(optimizer: Any) -> Any:
    """Return the optimizer that accelerate and others wrap: the state is the inner one's."""
    while not isinstance(optimizer, torch.optim.Optimizer) or type(optimizer).__module__.startswith(
        "accelerate"
    ):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            break
        optimizer = inner
    return optimizer
