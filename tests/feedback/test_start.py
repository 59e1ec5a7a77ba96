"""What is said of a run before anything is measured, and at its first batch."""

import math
import warnings

import pytest

from entrocraft import EntropyController, EntropyControlWarning, schedules
from entrocraft.feedback.start import far_from_start, start_warnings
from entrocraft.methods import get_method
from tests.batches import make_batch

RAMP = schedules.linear("initial", 0.3, 300)


def found(schedule=RAMP, **settings):
    settings = {"steps": 300, "rollouts": 256} | settings
    return start_warnings(schedule, **settings)


def test_a_run_that_fits_gets_no_warning():
    assert found() == ()
    assert found(steps=None, rollouts=None) == ()
    assert found(rollouts=32) == ()
    assert found(schedules.constant(0.5), decay="linear") == ()
    assert found(schedules.linear(0.5, 0.3, 150), decay="linear") == ()


def test_a_schedule_longer_than_the_run():
    (text,) = found(steps=299)
    assert text == (
        "the schedule linear(initial, 0.3, 300) moves until optimizer step 300, and the run ends "
        "after 299: it will not get to the end of it; give the schedule 299 steps, or train longer"
    )
    assert found(steps=299, steered=False) == (text,)
    assert found(schedules.join([schedules.constant(0.5), RAMP], [1])) != ()
    assert found(lambda step: 0.5) == ()
    assert found(None) == ()


@pytest.mark.parametrize("rollouts", [8, 31])
def test_a_batch_too_small_to_steer(rollouts):
    (text,) = found(rollouts=rollouts)
    assert f"trains on {rollouts} rollouts, too few" in text
    assert "use 32 or more, better 256" in text
    assert found(rollouts=rollouts, steered=False) == ()


def test_a_learning_rate_that_decays_while_the_schedule_moves():
    (text,) = found(decay="lr_scheduler_type='cosine'")
    assert text.startswith("the learning rate decays (lr_scheduler_type='cosine')")
    assert "linear(initial, 0.3, 300)" in text
    assert found(decay="linear", steered=False) == ()
    assert found(schedules.linear(0.5, 0.3, 151), decay="linear") != ()
    # nobody knows where a plain function ends
    assert found(lambda step: 0.5, decay="linear") != ()


def test_a_schedule_that_begins_elsewhere():
    assert far_from_start(0.549, 0.5, 0.001) is None
    assert far_from_start(0.551, 0.5, 0.018) is None
    assert far_from_start(0.551, 0.5, math.nan) == far_from_start(0.551, 0.5, 0.01)
    for target in (0.3, 0.8):
        text = far_from_start(target, 0.5, 0.01)
        assert text == (
            f"the schedule asks for {target} nats per token at the first batch, whose entropy is "
            "0.5: rejection will be at its limit until they meet; begin there, as in "
            f"'linear(initial, {target}, 100)'"
        )


def test_controllers_say_what_concerns_them():
    run = {"steps": 100, "rollouts": 8, "decay": "linear"}
    assert len(EntropyController(RAMP).start_warnings(**run)) == 3
    assert EntropyController(RAMP, None).start_warnings(**run) == ()
    assert EntropyController(None, None).start_warnings(**run) == ()
    follows = get_method("aent", "linear(0.5, 0.3, 300)")
    assert follows.follows
    assert follows.start_warnings(**run) == found(schedules.linear(0.5, 0.3, 300), steps=100)
    assert get_method("clip_cov", RAMP).start_warnings(**run) == ()


def test_the_first_batch_is_compared_with_the_schedule_once():
    steered = EntropyController("constant(0.9)")
    with pytest.warns(EntropyControlWarning, match="asks for 0.9 nats per token at the first"):
        steered.decide(make_batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error", EntropyControlWarning)
        steered.decide(make_batch(1))
        EntropyController("constant(initial)").decide(make_batch())
