"""What TRL's loss puts on each token, asked of the trainer's own loss.

It depends on the loss type, its normalizers, importance sampling, clipping, entropy quantile and
version of TRL. So the loss is evaluated on log-probabilities that stand for the model's, without a
pass through the model, and differentiated in them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

__all__ = ["accumulation_factor", "loss_coefficients"]


def loss_coefficients(
    trainer: Any, output: dict[str, Any], mask: Tensor, logprobs: Tensor, entropies: Tensor
) -> Tensor:
    """What the loss of one optimizer step on this batch puts on each token: (B, T), 0 outside.

    The loss has, in the log-probability of token t of rollout j, the slope ``-A_j c_jt``; c is
    returned.

    Args:
        trainer: TRL's, on one process; its `_compute_loss` is called without the model and without
            trace: metrics and attributes that it sets are put back.
        output: generation batch as TRL scored it; cut into `gradient_accumulation_steps` passes.
        mask: (B, T) bool, response tokens.
        logprobs: (B, T), of the policy that is about to be updated; decides clipping.
        entropies: (B, T), likewise.

    Raises:
        ValueError: a loss that is no function of TRL's per-token log-probabilities, or one that
            trains tokens outside the mask.
    """
    # the sign matters to clipping and to some losses, the size does not
    signs = torch.where(output["advantages"] < 0, -1.0, 1.0).to(output["advantages"].dtype)
    tokens = {"_logprobs": logprobs.detach(), "_entropies": entropies.detach(), "_signs": signs}
    parts = []
    with _without_trace(trainer):
        for part in split_tensor_dict(output | tokens, trainer.args.gradient_accumulation_steps):
            own: dict[str, Any] = {name: part.pop(name) for name in tokens}
            signs = own["_signs"]
            # with an advantage of 0 the slope is that of KL terms and the like
            with_signs, with_zeros = (
                _slope(trainer, part | {"advantages": a}, own["_logprobs"], own["_entropies"])
                for a in (signs, 0 * signs)
            )
            parts.append((with_zeros - with_signs) * signs[:, None])
    slopes = torch.cat(parts)
    outside = float(slopes.masked_fill(mask, 0.0).abs().max())
    if outside > 1e-6 * float(slopes.abs().max()):
        raise ValueError(
            f"the loss of {type(trainer).__name__} trains tokens outside the response mask (older "
            "TRL does so with loss_type='luspo' and importance_sampling_level='token'; 'sequence' "
            "is right); choose another loss_type"
        )
    return slopes.masked_fill(~mask, 0.0) * accumulation_factor(trainer)


def accumulation_factor(trainer: Any) -> float:
    """What the Trainer multiplies the loss of a micro-batch by; 1 if the loss does it itself."""
    declared = getattr(trainer, "loss_is_scaled_for_ga", None)
    scaled = trainer.compute_loss_func is not None if declared is None else bool(declared)
    return 1.0 if scaled else 1.0 / trainer.args.gradient_accumulation_steps


def _slope(trainer: Any, inputs: dict[str, Any], logprobs: Tensor, entropies: Tensor) -> Tensor:
    """Derivative of TRL's loss of one micro-batch in the log-probabilities, (b, T)."""
    logprobs = logprobs.clone().requires_grad_()

    def stand_in(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        # later versions of TRL expect a third value, and ask whether to compute it
        more = (torch.zeros((), device=logprobs.device),) if "compute_aux_loss" in kwargs else ()
        return (logprobs, entropies, *more)

    trainer._get_per_token_logps_and_entropies = stand_in
    with torch.enable_grad():
        loss = trainer._compute_loss(trainer.model, inputs)
        if loss.requires_grad:
            (slope,) = torch.autograd.grad(loss, logprobs, allow_unused=True)
            if slope is not None:
                return slope
    raise ValueError(
        f"the loss of {type(trainer).__name__} (loss_type="
        f"{getattr(trainer, 'loss_type', None)!r}) is no function of TRL's per-token "
        "log-probabilities, so the gradient level cannot weigh tokens; choose another loss_type"
    )


@contextmanager
def _without_trace(trainer: Any) -> Iterator[None]:
    """Let a loss be evaluated for its slopes alone."""
    before = dict(vars(trainer))
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    for bonus in ("_entropy_bonus_enabled", "use_adaptive_entropy"):
        if hasattr(trainer, bonus):
            setattr(trainer, bonus, False)
    try:
        yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(before)
