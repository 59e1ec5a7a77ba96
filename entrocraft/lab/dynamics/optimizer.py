"""AdamW's next step, to first order in the gradient that it gets.

The step is written as a function of the gradient, and autograd takes its derivative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entrocraft.trl.adapter import innermost_optimizer


@dataclass(frozen=True)
class StepResponse:
    """How the next optimizer step moves a quantity: by ``-<direction, g> + pending``."""

    direction: dict[Tensor, Tensor]  # parameter -> u, of the parameter's shape, float32
    pending: float  # what momentum and weight decay bring, in the quantity's unit


def step_response(
    optimizer: Any,
    slope: Mapping[Any, Tensor],
    gradient: Mapping[Any, Tensor],
    through_second_moment: bool = False,
) -> StepResponse:
    """Linearize the optimizer's next step along `slope`; nothing is changed.

    Args:
        optimizer: torch's AdamW, without amsgrad and maximize.
        slope: parameter -> h, the gradient of the quantity.
        gradient: parameter -> the gradient that comes next, or about it. It enters the second
            moment, without which parameters that were hardly ever trained would have no bound.
            Parameters that either mapping lacks take no part.
        through_second_moment: differentiate the second moment too, at `gradient`; else it is held,
            and the step is linear in the gradient from 0 on.

    Raises:
        ValueError: another optimizer.
    """
    optimizer = innermost_optimizer(optimizer)
    groups = optimizer.param_groups
    unusual = any(group.get("amsgrad") or group.get("maximize") for group in groups)
    if unusual or not isinstance(optimizer, torch.optim.AdamW):
        remedy = "only those of torch's AdamW without amsgrad and maximize; leave trainer.optim out"
        raise ValueError(f"steps of {type(optimizer).__name__} cannot be predicted, {remedy}")
    direction: dict[Tensor, Tensor] = {}
    pending = 0.0
    for group in groups:
        for parameter in (p for p in group["params"] if p in slope and p in gradient):
            g = gradient[parameter].detach().double().requires_grad_()
            with torch.enable_grad():
                squared = g if through_second_moment else g.detach()
                step = _step(group, optimizer.state.get(parameter), parameter, g, squared)
                moved = (slope[parameter].double() * step).sum()
            (derivative,) = torch.autograd.grad(moved, g)
            direction[parameter] = -derivative.float()
            pending += float(moved.detach() - (derivative * g.detach()).sum())
    return StepResponse(direction, pending)


def _step(group: Any, state: Any, parameter: Tensor, g: Tensor, squared: Tensor) -> Tensor:
    """Change of a parameter; `squared` is the gradient as it enters the second moment."""
    (beta1, beta2), count = group["betas"], float(state["step"]) + 1 if state else 1.0
    mean, square = (state[n].double() if state else 0.0 for n in ("exp_avg", "exp_avg_sq"))
    mean = (beta1 * mean + (1 - beta1) * g) / (1 - beta1**count)
    square = (beta2 * square + (1 - beta2) * squared.square()) / (1 - beta2**count)
    # where nothing was ever trained the root has no derivative, and none is needed
    step = mean / (square.clamp(min=1e-60).sqrt() + group["eps"])
    return -float(group["lr"]) * (step + group["weight_decay"] * parameter.detach().double())
