"""What a choice changes, seen from a step that is known before the choice.

Let w = 1/2 for every rollout be the anchor: the batch kept by halves, with momentum and weight
decay. The entropy after that step is measured, and only the departure from it is predicted, to
first order in the keep factors w:

    H(w) ~ H(1/2) + sum_j (w_j - 1/2) A_j sum_t c_jt <grad log pi(y_jt), u>

with ``u = -J^T h``, h the slope of the entropy *after* the anchor's step and J the derivative of
the optimizer's step in the gradient. Adam divides by the root of a second moment that the gradient
itself enters, so its J has two terms (elementwise; hats mark bias correction, r = sqrt(v_hat)):

    J = -lr [ (1 - b1) / (1 - b1^t) / (r + eps)
              - m_hat (1 - b2) g / (1 - b2^t) / (r (r + eps)^2) ]

The second counts when a batch's gradient is large beside those of earlier steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from entrocraft.lab.dynamics.optimizer import step_response

__all__ = ["step_direction"]


def step_direction(
    optimizer: torch.optim.Optimizer, slope: dict[Tensor, Tensor], gradient: dict[Tensor, Tensor]
) -> dict[Tensor, Tensor]:
    """u above: with it, the next step changes a quantity by ``-<u, dg>`` if the gradient is g + dg.

    Args:
        optimizer: torch's SGD, Adam or AdamW, before the step.
        slope: parameter -> h, where the step with g ends.
        gradient: parameter -> g, as clipped.

    Raises:
        ValueError: an optimizer that is not known.
    """
    response = step_response(optimizer, slope, gradient)
    direction = {p: response.share * part for p, part in response.direction.items()}
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return direction
    for group in optimizer.param_groups:
        if group["amsgrad"] or group["maximize"]:
            continue  # without the second term: still what `StepResponse` says
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            if parameter not in direction or parameter not in gradient:
                continue
            g, state = gradient[parameter].float(), optimizer.state.get(parameter, {})
            step = float(state["step"]) + 1 if state else 1.0
            mean = beta1 * state["exp_avg"].float() if state else torch.zeros_like(g)
            square = beta2 * state["exp_avg_sq"].float() if state else torch.zeros_like(g)
            mean = (mean + (1 - beta1) * g) / (1 - beta1**step)
            root = ((square + (1 - beta2) * g.square()) / (1 - beta2**step)).sqrt()
            grows = (1 - beta2) * g / (1 - beta2**step) / root.clamp(min=1e-30)
            bent = mean * grows / (root + group["eps"]).square()
            direction[parameter] = direction[parameter] - group["lr"] * slope[parameter] * bent
    return direction
