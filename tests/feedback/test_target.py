"""The target of a run: what is known when, its end, and what no policy can have."""

import math
import re

import numpy as np
import pytest

from entrocraft import schedules
from entrocraft.feedback import Target, TargetError

TABLE = [0.5, 0.4, 0.3, 0.2]


def test_text_numbers_and_functions_are_schedules():
    for schedule in (0.5, np.float32(0.5), "0.5", "constant(0.5)", lambda step: 0.5):
        assert Target(schedule).at(7, None) == 0.5
    assert Target(None).at(7, 0.5) is None
    assert Target(None).ahead(7, 4, 0.5) is None


@pytest.mark.parametrize("schedule", [[0.5], True, 1j, object()])
def test_what_is_no_schedule(schedule):
    with pytest.raises(ValueError, match="is no callable, text or number"):
        Target(schedule)


def test_a_relative_target_is_not_known_before_the_first_measurement():
    target = Target("linear(initial, 0.5*initial, 100)")
    assert target.at(50, None) is None
    assert target.ahead(50, 4, None) is None
    assert target.ahead(40, 10, 0.8) == pytest.approx(0.6)
    assert target.at(50, 0.8) == pytest.approx(0.6)
    assert target.at(50, 0.4) == pytest.approx(0.3), "it remembers no start"
    assert target.at(50, None) is None


def test_a_start_a_hair_below_0_is_0():
    assert Target("initial").at(0, -1e-12) == 0


def test_ahead_ends_with_the_run():
    """Of a run of 3 steps the state after the last one has a target, and nothing after it."""
    target = Target(lambda step: TABLE[step])
    target.prepare(None, 3)
    assert [target.ahead(0, steps, None) for steps in range(6)] == [*TABLE, 0.2, 0.2]
    assert [target.ahead(step, 2, None) for step in range(4)] == [0.3, 0.2, 0.2, 0.2]


def test_ahead_after_the_end_is_the_present():
    target = Target("linear(1.0, 0.0, 100)")
    target.prepare(None, 50)
    assert target.ahead(50, 10, None) == pytest.approx(0.5)
    assert target.ahead(60, 10, None) == pytest.approx(0.4), "a run that goes on all the same"


def test_ahead_without_a_known_end_looks_ahead():
    assert Target("linear(1.0, 0.0, 100)").ahead(50, 10, None) == pytest.approx(0.4)


def test_every_step_is_checked_the_last_state_included():
    for last, fails in ((3, False), (4, True)):
        target = Target(lambda step: 0.5 if step < 4 else -1.0)
        if fails:
            with pytest.raises(TargetError, match=r"asks for -1\.0 nats per token at step 4"):
                target.prepare(None, last)
        else:
            target.prepare(None, last)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1])
def test_impossible_targets(value):
    with pytest.raises(TargetError, match="a target must be finite and at least 0"):
        Target(lambda step: value).at(0, None)


def test_no_target_is_above_the_logarithm_of_the_vocabulary():
    target = Target("linear(0.6, 8, 100)")
    with pytest.raises(TargetError, match=re.escape("at step 86, above log(vocabulary) = 6.908")):
        target.prepare(1000, 100)
    with pytest.raises(TargetError, match="lower the target"):
        target.at(100, None)
    exact = Target(math.log(1000))
    exact.prepare(1000, None)
    assert exact.at(0, None) == math.log(1000)
    with pytest.raises(ValueError, match="vocabulary must be at least 1 token, got 0"):
        target.prepare(0, None)
    single = Target(0.0)
    single.prepare(1, None)
    assert single.at(0, None) == 0


def test_without_a_length_the_first_step_is_checked():
    with pytest.raises(TargetError, match="at step 0, above"):
        Target(8.0).prepare(1000, None)
    Target(lambda step: TABLE[0] if step == 0 else 8.0).prepare(1000, None)


def test_a_relative_target_is_checked_when_its_start_is_known():
    target = Target("linear(initial, initial - 1, 100)")
    target.prepare(None, 100)
    target.check(1.0)
    with pytest.raises(TargetError, match="at step 51; a target must be finite"):
        target.check(0.505)
    with pytest.raises(TargetError):
        target.prepare(None, 100, initial=0.505)


@pytest.mark.parametrize(
    ("schedule", "cause"),
    [(lambda step: TABLE[step], "IndexError"), (lambda step: None, "TypeError")],
)
def test_a_schedule_that_fails_is_named_with_its_step(schedule, cause):
    target = Target(schedule)
    with pytest.raises(
        TargetError, match=rf"has no number for step \d \({cause}.*up to the run's end"
    ):
        target.prepare(None, 4)


def test_a_joined_schedule_is_anchored_in_every_part():
    parts = [schedules.constant("initial"), schedules.constant("0.5*initial")]
    target = Target(schedules.join(parts, [10]))
    assert (target.at(9, 0.8), target.at(10, 0.8)) == (0.8, 0.4)
