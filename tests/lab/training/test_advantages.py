"""Raw rewards and noise in the place of the estimator's advantages, in real TRL trainings."""

import pytest
import torch

from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.trainer import with_changed_advantages
from tests.trl.runs import CONTROLLED, Recording, make_trainer


def asked(kind="grpo", steps=3, **changes):
    """Advantages and rewards that the method was shown, batch by batch."""
    settings = {"raw": False, "noise": 0.0, "seed": 4} | changes
    control = Recording("constant(initial)", seed=0)
    make_trainer(
        kind,
        with_changed_advantages(CONTROLLED[kind], **settings),
        entropy_control=control,
        max_steps=steps,
        learning_rate=1e-9,
    ).train()
    return [(batch.advantages, batch.rewards) for batch, _ in control.asked]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_raw_rewards_take_the_place_of_advantages(kind):
    for advantages, rewards in asked(kind, raw=True):
        torch.testing.assert_close(advantages, rewards)
        assert float(rewards.std()) > 0


def test_noise_has_its_size_differs_between_steps_and_repeats_with_the_seed():
    plain, noisy = asked(steps=8), asked(steps=8, noise=0.5)
    added = torch.stack([a - b for (a, _), (b, _) in zip(noisy, plain, strict=True)])
    assert float(added.std()) == pytest.approx(0.5, abs=0.1)
    assert abs(float(added.mean())) < 0.15
    assert len({round(float(row[0]), 6) for row in added}) == 8
    again = asked(steps=8, noise=0.5)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(noisy, again, strict=True))


def test_bad_noise():
    with pytest.raises(ValueError, match="advantage_noise is -1; use a standard deviation of at"):
        TrainConfig(advantage_noise=-1)
