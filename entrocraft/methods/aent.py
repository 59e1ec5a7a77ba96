"""AEnt: an adaptive bonus on the entropy of the likely part of the vocabulary."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from entrocraft.method import Measurement, Method, number

__all__ = ["AEnt"]


@dataclass(eq=False)
class AEnt(Method):
    """``L = L_policy - c mean_t Hc_t`` with an adaptive c.

    Hc is the clamped entropy: of each distribution the ``floor(V clamp)`` least likely tokens are
    dropped and the rest is normalized anew. After `warmup` optimizer steps::

        c <- clip(c - rate (min(0, Hc - low) + max(0, Hc - high)), smallest, largest)

    c is never negative: AEnt can weaken its bonus but not push entropy down. A schedule takes the
    place of low and high, and the entropy of the whole vocabulary, measured once a rollout batch,
    that of Hc in this rule. The `entropy` in TRL's own log is Hc, as that is what its bonus takes.

    Source: Shen, AEnt (arXiv 2509.03493); AReaL's recipe: c 0.001, clamp 0.2, bounds 0.1 and 0.5,
    rate 0.001, box [1e-5, 0.01].

    Args:
        bonus: c at the start.
        clamp: share of the vocabulary that is dropped.
        low: c rises while Hc is below, nats; None for 0.1, or with a schedule.
        high: c falls while Hc is above, nats; None for 0.5, or with a schedule.
        rate: change of c per nat and optimizer step.
        smallest: least c.
        largest: greatest c.
        warmup: optimizer steps before c moves.
    """

    name = "aent"
    follows = True
    coefficient = "rate"
    uses_bonus = True
    memory = ("bonus", "steps", "error")
    _bonus = 0.0
    _steps = 0
    _error: float | None = field(default=None, init=False, repr=False)

    bonus: float = number(0.001, low="smallest", high="largest")
    clamp: float = number(0.2, low=0, high=0.999)
    low: float = number(None, low=0)
    high: float = number(None, low="low")
    rate: float = number(0.001, above=0)
    smallest: float = number(1e-5, above=0)
    largest: float = number(0.01, low="smallest")
    warmup: float = number(0, low=0)

    def __post_init__(self) -> None:
        for name, published in (("low", 0.1), ("high", 0.5)):
            bound = getattr(self, name)
            if bound is None:
                setattr(self, name, published)
            elif self.schedule is not None:
                raise ValueError(
                    f"aent: {name} is {bound!r}, and the schedule {self.schedule!r} takes its "
                    "place; leave it out, or have no schedule (None; control.schedule: null)"
                )
        super().__post_init__()
        self._bonus = self.bonus

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {"entropy_coef": self._bonus, "use_adaptive_entropy": False}

    def settings(self, seen: Measurement) -> dict[str, float]:
        if self.schedule is not None:
            self._error = seen.error
        return {"entropy_coef": self._bonus}

    def bonus_entropy(self, logits: Tensor) -> Tensor:
        kept = logits.shape[-1] - int(logits.shape[-1] * self.clamp)
        log_p = logits.topk(kept, dim=-1).values.log_softmax(-1)
        # masked before the product, as 0 * -inf has no derivative either
        return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)

    def stepped(self, bonus: float) -> dict[str, float]:
        self._steps += 1
        if self._steps > self.warmup:
            low, high = min(0.0, bonus - self.low), max(0.0, bonus - self.high)
            error = low + high if self._error is None else self._error
            self._bonus = min(self.largest, max(self.smallest, self._bonus - self.rate * error))
        return {"entropy_coef": self._bonus}

    def report(self) -> dict[str, float]:
        return {"entropy/bonus": self._bonus}
