"""AEnt: its clamped entropy and its coefficient against the formulas."""

import math

import pytest
import torch

from entrocraft.methods import get_method
from entrocraft.rollouts import StepInfo
from tests.methods.batches import MEASURED, hand_made


@pytest.mark.parametrize("clamp", [0.0, 0.2, 0.55])
def test_aents_clamped_entropy(clamp):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 11, generator=generator, dtype=torch.float64)
    found = get_method("aent", clamp=clamp).bonus_entropy(logits)
    for row, value in zip(logits.tolist(), found.tolist(), strict=True):
        kept = sorted(row)[int(11 * clamp) :]
        total = sum(math.exp(x) for x in kept)
        chances = [math.exp(x) / total for x in kept]
        assert value == pytest.approx(-sum(p * math.log(p) for p in chances))


def test_aent_adapts_its_coefficient_by_its_own_bounds():
    method = get_method("aent", bonus=0.001, low=0.3, high=0.6, rate=0.01, warmup=2)
    coefficient = 0.001
    for step, entropy in enumerate([0.1, 0.1, 0.1, 0.45, 0.9, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0]):
        method.decide(hand_made(), step=StepInfo(step))
        if step >= 2:
            error = min(0.0, entropy - 0.3) + max(0.0, entropy - 0.6)
            coefficient = min(0.01, max(1e-5, coefficient - 0.01 * error))
        assert method.stepped(entropy)["entropy_coef"] == pytest.approx(coefficient)
    assert coefficient == 0.01


def test_aent_follows_a_schedule_by_the_whole_entropy():
    method = get_method("aent", "linear(0.5, 0.9, 4)", rate=0.01, bonus=0.004)
    coefficient = 0.004
    for step in range(4):
        decision = method.decide(hand_made(), step=StepInfo(step))
        assert decision.settings == {"entropy_coef": pytest.approx(coefficient)}
        coefficient -= 0.01 * (MEASURED - (0.5 + 0.1 * step))
        assert method.stepped(123.0)["entropy_coef"] == pytest.approx(coefficient)
