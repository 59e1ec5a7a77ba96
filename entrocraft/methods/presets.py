"""Presets: baselines that consist of options of TRL's trainer and have no code of their own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from entrocraft.method import Measurement, Method, checked
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
    "Preset",
]


class Preset(Method):
    """A method that is nothing but options of the trainer, by TRL's names."""

    trainer_options: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, schedule: Any = None, **options: Any) -> None:
        super().__init__(schedule)
        self.trainer_options = options


class EntropyBonus(Preset):
    """``L = L_policy - c mean_t H_t``, the mean over response tokens, with gradient through H.

    Source: Williams & Peng, 1991; A3C (arXiv 1602.01783). The default is what the Entrocraft paper
    (arXiv 2604.26326) gave its GRPO and GSPO baselines.

    Args:
        bonus: c; negative values push entropy down.
    """

    name = "entropy_bonus"
    coefficient = "bonus"

    def __init__(self, schedule: Any = None, *, bonus: float = 0.003) -> None:
        bonus = checked(self, "bonus", bonus)
        super().__init__(schedule, entropy_coef=bonus, use_adaptive_entropy=False)


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

    def __init__(
        self, schedule: Any = None, *, delta: float = 0.005, lowest: float = 0, highest: float = 1
    ) -> None:
        super().__init__(
            schedule,
            use_adaptive_entropy=True,
            entropy_coef=lowest,
            entropy_coef_delta=checked(self, "delta", delta, above=0),
            entropy_coef_min=checked(self, "lowest", lowest, 0),
            entropy_coef_max=checked(self, "highest", highest, lowest),
        )

    def settings(self, seen: Measurement) -> dict[str, float]:
        assert seen.target is not None, "it has a target of its own"
        return {"entropy_target": seen.target}


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

    def __init__(self, schedule: Any = None, *, low: float = 0.2, high: float = 0.28) -> None:
        low, high = checked(self, "low", low, 0), checked(self, "high", high, 0)
        super().__init__(schedule, epsilon=low, epsilon_high=high)


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

    def __init__(self, schedule: Any = None, *, low: float = 0.1, high: float = 0.2) -> None:
        super().__init__(schedule, low=low, high=high)


class DrGRPO(Preset):
    """``A = R - mean_group R``; loss summed over tokens and divided by a constant length.

    Source: Liu et al., Understanding R1-Zero-like training (arXiv 2503.20783). In TRL the constant
    is `max_completion_length`.
    """

    name = "dr_grpo"
    losses = ("dr_grpo",)

    def __init__(self, schedule: Any = None) -> None:
        super().__init__(schedule, loss_type="dr_grpo", scale_rewards="none")


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

    def __init__(self, schedule: Any = None, *, low: float = 3e-4, high: float = 4e-4) -> None:
        super().__init__(
            schedule,
            importance_sampling_level="sequence",
            loss_type="grpo",
            epsilon=checked(self, "low", low, 0),
            epsilon_high=checked(self, "high", high, 0),
        )


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

    def __init__(self, schedule: Any = None, *, high: float = 5.0) -> None:
        high = checked(self, "high", high, above=0)
        super().__init__(schedule, loss_type="cispo", epsilon_high=high)


class SAPO(Preset):
    """``L = -mean_t sigmoid(tau (r - 1)) 4 / tau A``: a soft gate; tau depends on the sign of A.

    Source: SAPO (arXiv 2511.20347), with the defaults of TRL's loss "sapo"; verl has the same gate.

    Args:
        positive: tau where A > 0.
        negative: tau elsewhere; larger lets go of off-policy tokens earlier.
    """

    name = "sapo"
    coefficient = "negative"
    losses = ("sapo",)
    needs_updates = True

    def __init__(
        self, schedule: Any = None, *, positive: float = 1.0, negative: float = 1.05
    ) -> None:
        super().__init__(
            schedule,
            loss_type="sapo",
            sapo_temperature_pos=checked(self, "positive", positive, above=0),
            sapo_temperature_neg=checked(self, "negative", negative, above=0),
        )
