"""The guard: bounds of the entropy beyond which a run stops or its updates pause."""

import pytest
import torch

from entrocraft import EntropyController, EntropyControlWarning
from entrocraft.feedback import Guard
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
        ({"low": 0.1, "action": "warn"}, "must be 'stop' or 'pause', got 'warn'"),
        ({"low": 0.1, "batches": 0}, "at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Guard(**settings)
