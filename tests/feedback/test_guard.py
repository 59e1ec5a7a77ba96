"""The guard: bounds of the entropy beyond which a run stops or its updates pause."""

import warnings
from dataclasses import replace

import pytest
import torch

from entrocraft import EntropyController, EntropyControlWarning
from entrocraft.feedback import Guard
from entrocraft.feedback.guard import GuardResult
from tests.batches import make_batch


def decide(steered, levels):
    return [steered.decide(make_batch(step, level=level)) for step, level in enumerate(levels)]


@pytest.mark.parametrize("schedule", [None, "constant(initial)"])
def test_a_run_stops_after_its_batches_in_a_row(schedule):
    rule = None if schedule is None else "tilt"
    guard = Guard(low="0.5*initial", batches=2)
    steered = EntropyController(schedule, rule, guard=guard)
    found = decide(steered, [0.6, 0.1, 0.6, 0.1, 0.1])
    assert [decision.stop is not None for decision in found] == [False] * 4 + [True]
    assert "below the bound 0.2997" in found[-1].stop
    assert "for 2 batches in a row; the guard stops the run" in found[-1].stop


def test_a_pause_leaves_out_the_updates_beyond_the_bound():
    steered = EntropyController(None, None, guard=Guard(high=1.0, action="pause", batches=1))
    assert steered.sets_learning_rate
    with pytest.warns(EntropyControlWarning, match="above the bound 1, for"):
        found = decide(steered, [0.6, 1.5, 0.6])
    assert [decision.learning_rate_factor for decision in found] == [1.0, 0.0, 1.0]
    assert [decision.stop for decision in found] == [None] * 3


def test_a_resumed_run_goes_on_counting():
    guard = Guard(low=0.3, batches=3)
    steered = EntropyController(None, None, guard=guard)
    decide(steered, [0.6, 0.1, 0.1])
    resumed = EntropyController(None, None, guard=guard)
    resumed.load_state_dict(steered.state_dict())
    assert resumed.decide(make_batch(level=0.1)).stop is not None
    without = steered.state_dict()
    del without["beyond"]
    resumed.load_state_dict(without)
    assert resumed.state.beyond == 0


def test_the_bounds_themselves_are_allowed():
    guard = Guard(low=0.25, high="2*initial")
    assert guard.check(0.25, 0.5, 7) == GuardResult(0)
    assert guard.check(1.0, 0.5, 7) == GuardResult(0)
    low, high = (guard.check(measured, 0.5, 2).text for measured in (0.2, 1.5))
    assert low.startswith("entropy is 0.2 nats per token, below the bound 0.25, for 3 batches")
    assert high.startswith("entropy is 1.5 nats per token, above the bound 1, for 3 batches")
    # rounding may leave the entropy of a deterministic policy a hair below 0
    assert Guard(low="initial").check(0.0, -1e-12, 7) == GuardResult(0)


def test_a_pause_lets_through_what_brings_entropy_back():
    guard = Guard(low=0.3, high=0.9, action="pause", batches=2)
    assert guard.check(0.2, 0.5, 0) == GuardResult(1)
    assert guard.check(0.2, 0.5, 1, change=0.01) == GuardResult(2)
    assert guard.check(1.0, 0.5, 1, change=-0.01) == GuardResult(2)
    for measured, change in ((0.2, -0.01), (0.2, 0.0), (1.0, 0.01)):
        found = guard.check(measured, 0.5, 1, change)
        assert (found.pause, found.stop, found.beyond) == (True, False, 2)
    # a policy that is not updated does not come back
    assert guard.check(0.2, 0.5, 18, -0.01).pause
    last = guard.check(0.2, 0.5, 19, 0.01)
    assert (last.pause, last.stop) == (False, True)
    assert last.text.endswith("for 20 batches in a row; the guard stops the run")


def test_a_steered_run_that_is_pushed_back_is_not_paused():
    guard = Guard(low=0.45, action="pause", batches=1)
    steered = EntropyController("constant(0.5)", guard=guard)
    falling = EntropyController("constant(0.1)", guard=guard)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        up = decide(steered, [0.5, 0.4])[-1]
        down = decide(falling, [0.5, 0.4])[-1]
    assert up.metrics["entropy/chosen_change"] > 0
    assert up.learning_rate_factor == 1
    assert down.metrics["entropy/chosen_change"] < 0
    assert down.learning_rate_factor == 0
    assert down.metrics["entropy/learning_rate_factor"] == 0
    assert up.metrics["entropy/learning_rate_factor"] == 1
    # what is left out adds nothing to what is pending
    told = EntropyController("constant(0.1)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        decide(told, [0.5, 0.4])
    assert falling.state.feedback.pending > told.state.feedback.pending


def test_what_is_said():
    guard = Guard(low=0.3, batches=1)
    (found,) = decide(EntropyController(None, None, guard=guard), [0.25])
    measured = found.metrics["entropy/measured"]
    text = f"entropy is {measured:.4g} nats per token, below the bound 0.3, for 1 batches in a row"
    assert found.stop == f"{text}; the guard stops the run"
    pausing = EntropyController(None, None, guard=replace(guard, action="pause"))
    assert not EntropyController(None, None, guard=guard).sets_learning_rate
    with pytest.warns(EntropyControlWarning) as seen:
        decide(pausing, [0.25])
    assert str(seen[0].message) == f"{text}; the guard leaves out its update"


def test_within_the_bounds_nothing_changes():
    plain, guarded = (
        EntropyController("constant(0.6)", guard=guard) for guard in (None, Guard(low=0.01))
    )
    batch = make_batch(level=0.5)
    assert torch.equal(plain.decide(batch).weights, guarded.decide(batch).weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a guard needs a bound"),
        ({"low": "0.2*final"}, "no entropy level"),
        ({"low": -1.0}, "never negative"),
        ({"low": 0.1, "action": "warn"}, "is 'warn'; it has to be 'stop' or 'pause'"),
        ({"low": 0.1, "batches": 0}, "at least 1, got 0"),
        ({"low": 0.1, "batches": 1.5}, r"is 1\.5; it has to be a whole"),
        ({"low": 0.9, "high": 0.1}, "no entropy is within"),
        ({"high": "final"}, "no entropy level"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Guard(**settings)
