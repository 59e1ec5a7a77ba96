"""The controller: randomness and memory."""

import json
import warnings

import pytest
import torch

from entrocraft import EntropyControlWarning, schedules
from entrocraft.feedback import ProportionalIntegral
from tests.batches import RULES, controller, make_batch, repeat

pytestmark = pytest.mark.filterwarnings("error::entrocraft.EntropyControlWarning")


def test_the_global_generator_is_never_touched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    steered = controller(0.6)
    repeat(steered, make_batch(), 5)
    assert torch.equal(before, torch.get_rng_state())
    first = controller(0.53).decide(make_batch()).weights
    torch.manual_seed(6)
    assert torch.equal(first, controller(0.53).decide(make_batch()).weights)


def test_seeds():
    def weights(seed):
        steered = controller(0.52, seed=seed)
        return torch.stack([steered.decide(make_batch(step)).weights for step in range(10)])

    assert torch.equal(weights(3), weights(3))
    assert len({tuple(weights(seed).flatten().tolist()) for seed in (-1, 0, 1, 2)}) == 4


def test_draws_differ_from_decision_to_decision():
    # flat gains hold the pressure, so only the draw can change
    loop = ProportionalIntegral(proportional_gain=5.0, integral_gain=0.0, smoothing=0.0)
    steered, batch = controller(0.6, feedback=loop), make_batch()
    decisions = [steered.decide(batch) for _ in range(10)]
    assert all(torch.equal(d.probabilities, decisions[0].probabilities) for d in decisions)
    assert len({tuple(d.weights.tolist()) for d in decisions}) > 5


def make_steered(rule):
    return controller("linear(initial, 0.8*initial, 30)", rule=rule, seed=4)


@pytest.mark.parametrize("rule", [*RULES, None])
@pytest.mark.parametrize("cut", [0, 1, 13, 29])
def test_a_resumed_run_decides_as_the_uninterrupted_one(rule, cut):
    batches = [make_batch(step, level=0.5 - 0.001 * step) for step in range(40)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        whole = make_steered(rule)
        expected = [whole.decide(batch) for batch in batches]
        first = make_steered(rule)
        got = [first.decide(batch) for batch in batches[:cut]]
        second = make_steered(rule)
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        got += [second.decide(batch) for batch in batches[cut:]]
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a.weights, b.weights)
        assert torch.equal(a.probabilities, b.probabilities)
        assert torch.equal(a.advantages, b.advantages)
        assert a.metrics == b.metrics
    assert whole.state_dict() == second.state_dict()


def test_a_loaded_state_brings_its_own_anchor():
    one, two = (controller("constant(initial)") for _ in range(2))
    one.decide(make_batch(level=0.5))
    two.decide(make_batch(level=0.9))
    two.load_state_dict(one.state_dict())
    measured = make_batch(level=0.5).stats().mean_entropy()
    assert two.decide(make_batch(1)).metrics["entropy/target"] == pytest.approx(measured)
    two.load_state_dict(controller("constant(initial)").state_dict())
    fresh = make_batch(1, level=0.7)
    assert two.decide(fresh).metrics["entropy/target"] == pytest.approx(
        fresh.stats().mean_entropy()
    )


def test_other_settings_are_told_about():
    state = controller(0.5).state_dict()
    with pytest.warns(EntropyControlWarning, match=r"constant\(0\.5\).* this one is .*0\.6"):
        controller(0.6).load_state_dict(state)


def test_plain_functions_resume_without_a_false_alarm():
    def make():
        return controller(schedules.join([lambda step: 0.5, lambda step: 0.4], [10]))

    make().load_state_dict(make().state_dict())


@pytest.mark.parametrize("state", [{}, None, [], {"version": 1}, "state"])
def test_what_is_no_state(state):
    with pytest.raises(ValueError, match="not a controller state of version 2"):
        controller().load_state_dict(state)


def test_a_state_of_another_feedback_is_refused_and_changes_nothing():
    steered, other = controller(), controller(rule="sign", band=1)
    steered.decide(make_batch())
    other.decide(make_batch())
    before = steered.state_dict()
    with (
        pytest.warns(EntropyControlWarning, match="this one is"),
        pytest.raises(ValueError, match=r"does not fit .* feedback Planner"),
    ):
        steered.load_state_dict(other.state_dict())
    assert steered.state_dict() == before


def test_the_schedule_is_indexed_by_the_optimizer_step():
    steered = controller("linear(0.6, 0.3, 300)")
    for step in (0, 150, 300, 20):
        metrics = steered.decide(make_batch(step, optimizer_steps=4)).metrics
        assert metrics["entropy/target"] == pytest.approx(0.6 - 0.001 * step)


def test_sums_decide_as_their_batch():
    batch = make_batch(7, optimizer_steps=3, drift=0.01)
    one, two = controller(0.53), controller(0.53)
    a = one.decide(batch)
    b = two.decide(batch.stats(), step=7, optimizer_steps=3, drift=0.01)
    assert torch.equal(a.weights, b.weights)
    assert a.metrics == pytest.approx(b.metrics)
    assert one.state_dict() == two.state_dict()


def test_a_start_that_makes_the_new_schedule_impossible_is_told_as_that():
    first = controller("constant(initial)")
    first.decide(make_batch(level=0.3))
    second = controller("initial - 0.5")
    with (
        pytest.warns(EntropyControlWarning, match="used with the new settings"),
        pytest.raises(ValueError, match="a target must be finite and at least 0"),
    ):
        second.load_state_dict(first.state_dict())
    assert second.target(0) is None
