"""Presets: baselines that consist of options of TRL's trainer and have no code of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from entrocraft.method import Measurement, Method, number
from entrocraft.methods.token_weights import PPO_LOSSES

__all__ = [
    "CISPO",
    "GSPO",
    "SAPO",
    "AdaptiveBonus",
    "ClipHigher",
    "ClipLow",
    "DrGRPO",
    "EntropyBonus",
    "MAIClip",
    "Preset",
]


class Preset(Method):
    """A method that is nothing but options of the trainer.

    They are `fixed`, set by a `number` of its own, or the loss if it fits a single one.
    """

    fixed: ClassVar[Mapping[str, Any]] = {}

    @property
    def trainer_options(self) -> dict[str, Any]:
        options = dict(self.fixed)
        if self.losses is not None and len(self.losses) == 1:
            options["loss_type"] = self.losses[0]
        for option in fields(self):
            if name := option.metadata.get("sets"):
                options[name] = getattr(self, option.name)
        return options


@dataclass(eq=False)
class EntropyBonus(Preset):
    """``L = L_policy - c mean_t H_t``, the mean over response tokens, with gradient through H.

    Source: Williams & Peng, 1991; A3C (arXiv 1602.01783). The default is what the Entrocraft paper
    (arXiv 2604.26326) gave its GRPO and GSPO baselines.

    Args:
        bonus: c; negative values push entropy down.
    """

    name = "entropy_bonus"
    coefficient = "bonus"
    fixed: ClassVar[Mapping[str, Any]] = {"use_adaptive_entropy": False}

    bonus: float = number(0.003, sets="entropy_coef")


@dataclass(eq=False)
class AdaptiveBonus(Preset):
    """Adaptive entropy coefficient: with H the last optimizer step's entropy and h the target::

        c <- min(c + delta, highest) if H <= h else max(c - delta, lowest)
        L = L_policy - (c if H <= h else 0) mean_t H_t

    It only raises entropy: above the target the bonus is off.

    Source: He et al., Skywork-OR1 (arXiv 2505.22312), delta 1e-4 and at most 0.005 for 7B and 32B
    models, where H < h is asked of the present step's H; here TRL's form and defaults.

    Args:
        delta: change of the coefficient per optimizer step.
        lowest: smallest coefficient.
        highest: largest coefficient.
    """

    name = "adaptive_bonus"
    follows = True
    own_target = 0.2
    coefficient = "delta"
    fixed: ClassVar[Mapping[str, Any]] = {"use_adaptive_entropy": True}

    delta: float = number(0.005, sets="entropy_coef_delta", above=0)
    lowest: float = number(0, sets="entropy_coef_min", low=0)
    highest: float = number(1, sets="entropy_coef_max", low="lowest")

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {**super().trainer_options, "entropy_coef": self.lowest}

    def settings(self, seen: Measurement) -> dict[str, float]:
        assert seen.target is not None, "it has a target of its own"
        return {"entropy_target": seen.target}


@dataclass(eq=False)
class ClipHigher(Preset):
    """``L = -mean_t min(r A, clip(r, 1 - low, 1 + high) A)`` with high above low.

    Source: DAPO (Yu et al., arXiv 2503.14476), low 0.2, high 0.28. Of DAPO this is the clip alone:
    its token mean is TRL's default; dynamic sampling and overlong punishment are left out.

    Args:
        low: clip below 1 - low.
        high: clip above 1 + high.
    """

    name = "clip_higher"
    coefficient = "high"
    losses = PPO_LOSSES
    needs_updates = True

    low: float = number(0.2, sets="epsilon", low=0)
    high: float = number(0.28, sets="epsilon_high", low=0)


@dataclass(eq=False)
class ClipLow(ClipHigher):
    """PPO's clip with low below high: the lower clip raises entropy, the upper one lowers it.

    Source: the clip-low / clip-high study (arXiv 2509.26114), which advises to tighten the lower
    clip. Its values could not be verified: the default, half of PPO's 0.2, is ours.

    Args:
        low: clip below 1 - low.
        high: clip above 1 + high.
    """

    name = "clip_low"
    coefficient = "low"

    low: float = number(0.1, sets="epsilon", low=0)
    high: float = number(0.2, sets="epsilon_high", low=0)


@dataclass(eq=False)
class MAIClip(Preset):
    """PPO's clip to [1 - e, 1 / (1 - e) + k], whose upper end follows the entropy's side::

        k <- clip(k + delta sign(h - H), 0, most),   once per batch, H its entropy, h the target

    Source: MAI-Thinking-1 (Microsoft AI, June 2026), by notes on its report: e 0.6, delta 0.25,
    k at most 2.5, h 0.3; H there is weighted by importance.

    Args:
        low: e.
        delta: change of k per batch.
        most: largest k.
    """

    name = "mai_clip"
    follows = True
    own_target = 0.3
    coefficient = "delta"
    losses = PPO_LOSSES
    needs_updates = True
    memory = ("extra",)
    _extra = 0.0

    low: float = number(0.6, sets="epsilon", low=0, high=0.99)
    delta: float = number(0.25, above=0)
    most: float = number(2.5, low=0)

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {**super().trainer_options, "epsilon_high": self._upper}

    @property
    def _upper(self) -> float:
        return 1 / (1 - self.low) + self._extra - 1

    def settings(self, seen: Measurement) -> dict[str, float]:
        change = self.delta * ((seen.error < 0) - (seen.error > 0))
        self._extra = min(max(self._extra + change, 0.0), self.most)
        return {"epsilon_high": self._upper}

    def report(self) -> dict[str, float]:
        return {"entropy/clip_high": self._upper}


class DrGRPO(Preset):
    """``A = R - mean_group R``; loss summed over tokens and divided by a constant length.

    Source: Liu et al., Understanding R1-Zero-like training (arXiv 2503.20783). In TRL the constant
    is `max_completion_length`.
    """

    name = "dr_grpo"
    losses = ("dr_grpo",)
    fixed: ClassVar[Mapping[str, Any]] = {"scale_rewards": "none"}


@dataclass(eq=False)
class GSPO(Preset):
    """``s = exp(mean_t log r_t)`` in place of the token ratio, clipped to [1 - low, 1 + high].

    Source: Zheng et al., GSPO (arXiv 2507.18071), four updates per batch. The Entrocraft paper's
    GSPO clips at 0.2, which sequence ratios hardly reach.

    Args:
        low: clip below 1 - low.
        high: clip above 1 + high.
    """

    name = "gspo"
    losses = ("grpo",)
    needs_updates = True
    fixed: ClassVar[Mapping[str, Any]] = {"importance_sampling_level": "sequence"}

    low: float = number(3e-4, sets="epsilon", low=0)
    high: float = number(4e-4, sets="epsilon_high", low=0)


@dataclass(eq=False)
class CISPO(Preset):
    """``L = -mean_t sg(min(r, high)) A log pi``: the weight is clipped, the gradient stays.

    Source: MiniMax-M1 (arXiv 2506.13585). The default is TRL's advice for its loss "cispo", whose
    `epsilon_high` bounds the ratio itself.

    Args:
        high: largest importance weight.
    """

    name = "cispo"
    coefficient = "high"
    losses = ("cispo",)
    needs_updates = True

    high: float = number(5.0, sets="epsilon_high", above=0)


@dataclass(eq=False)
class SAPO(Preset):
    """``L = -mean_t sigmoid(tau (r - 1)) 4 / tau A``: a soft gate; tau depends on the sign of A.

    Source: SAPO (arXiv 2511.20347), with the defaults of TRL's loss "sapo"; verl has the same gate.

    Args:
        positive: tau where A > 0.
        negative: tau elsewhere; larger damps off-policy tokens more sharply.
    """

    name = "sapo"
    coefficient = "negative"
    losses = ("sapo",)
    needs_updates = True

    positive: float = number(1.0, sets="sapo_temperature_pos", above=0)
    negative: float = number(1.05, sets="sapo_temperature_neg", above=0)
