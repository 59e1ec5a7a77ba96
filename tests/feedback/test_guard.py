"""The guard: bounds of the entropy beyond which a run stops or its updates pause."""

from dataclasses import replace

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
    without = steered.state_dict()
    del without["beyond"]
    resumed.load_state_dict(without)
    assert resumed.state.beyond == 0


def test_the_bounds_themselves_are_allowed():
    guard = Guard(low=0.25, high="2*initial")
    assert guard.check(0.25, 0.5, 7) == (0, None)
    assert guard.check(1.0, 0.5, 7) == (0, None)
    low, high = (guard.check(measured, 0.5, 2)[1] for measured in (0.2, 1.5))
    assert low.startswith("entropy is 0.2 nats per token, below the bound 0.25, for 3 batches")
    assert high.startswith("entropy is 1.5 nats per token, above the bound 1, for 3 batches")
    # rounding may leave the entropy of a deterministic policy a hair below 0
    assert Guard(low="initial").check(0.0, -1e-12, 7) == (0, None)


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
        ({"low": 0.1, "action": "warn"}, "must be 'stop' or 'pause', got 'warn'"),
        ({"low": 0.1, "batches": 0}, "at least 1, got 0"),
        ({"low": 0.1, "batches": 1.5}, "at least 1, got 1.5"),
        ({"high": "final"}, "no entropy level"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Guard(**settings)
