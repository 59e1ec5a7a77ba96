"""Position of a batch in the run: what is refused, and the momentum that is not known."""

import math
import re

import pytest

from entrocraft.rollouts import StepInfo


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, "step must be at least 0 optimizer steps, got -1"),
        ({"step": math.nan}, "step is nan; it has to be a whole number"),
        ({"step": math.inf}, "step is inf; it has to be a whole number"),
        ({"optimizer_steps": 0}, "optimizer_steps must be above 0 and at most 100000, got 0"),
        ({"optimizer_steps": -2}, "optimizer_steps must be above 0 and at most 100000, got -2"),
        ({"optimizer_steps": math.nan}, "optimizer_steps is nan; it has to be a finite number"),
        ({"optimizer_steps": math.inf}, "optimizer_steps is inf; it has to be a finite number"),
        ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0; None if it is not known"),
        ({"momentum": -0.1}, "momentum must be in [0, 1), got -0.1"),
        ({"momentum": math.nan}, "momentum is nan; it has to be a finite number"),
        ({"relative_learning_rate": 1.1}, "relative_learning_rate must be in [0, 1], got 1.1"),
        ({"relative_learning_rate": -0.1}, "relative_learning_rate must be in [0, 1], got -0.1"),
    ],
)
def test_errors_name_value_and_range(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StepInfo(**({"step": 0} | changes))


@pytest.mark.parametrize(("momentum", "decay"), [(None, 0.9), (0.0, 0.0), (0.5, 0.5)])
def test_an_unknown_momentum_is_that_of_adam(momentum, decay):
    assert StepInfo(0, momentum=momentum).decay == decay


def test_a_batch_may_be_a_part_of_a_step():
    assert StepInfo(3, 0.25).optimizer_steps == 0.25


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_learning_rate_is_a_share_of_the_largest(share):
    assert StepInfo(3, relative_learning_rate=share).relative_learning_rate == share
