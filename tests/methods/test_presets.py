"""Presets: what is handed to the trainer."""

import pytest

from entrocraft.method import Measurement
from entrocraft.methods import get_method
from entrocraft.rollouts import StepInfo
from tests.methods.batches import hand_made


def test_the_adaptive_bonus_hands_the_schedule_to_the_trainer():
    method = get_method("adaptive_bonus", "linear(0.6, 0.2, 4)")
    targets = [method.decide(hand_made(), step=StepInfo(step)).settings for step in range(5)]
    assert [s["entropy_target"] for s in targets] == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2])


def test_options_of_the_trainer_by_its_own_names():
    assert get_method("entropy_bonus", bonus=-0.01).trainer_options == {
        "entropy_coef": -0.01,
        "use_adaptive_entropy": False,
    }
    assert get_method("clip_low").trainer_options == {"epsilon": 0.1, "epsilon_high": 0.2}
    assert get_method("gspo", low=0.1).trainer_options == {
        "importance_sampling_level": "sequence",
        "loss_type": "grpo",
        "epsilon": 0.1,
        "epsilon_high": 4e-4,
    }


def test_mai_clip_widens_below_the_target_and_narrows_above():
    method = get_method("mai_clip", "constant(0.5)", most=0.6)
    assert method.trainer_options == {"epsilon": 0.6, "epsilon_high": pytest.approx(1.5)}
    seen = []
    for entropy in (0.4, 0.4, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6):
        settings = method.settings(Measurement(0, entropy, 0.5))
        seen.append(settings["epsilon_high"])
        assert method.report() == {"entropy/clip_high": seen[-1]}
    # the upper end is 1 / (1 - 0.6) + k
    assert seen == pytest.approx([1.5 + k for k in (0.25, 0.5, 0.6, 0.6, 0.35, 0.1, 0, 0)])
