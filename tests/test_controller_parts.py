"""The controller: a batch that is decided on part by part, before the whole of it is known."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrocraft.controller import PressureAndScale
from entrocraft.effects import BatchMeans
from entrocraft.feedback import Pressure, Situation
from entrocraft.selection import ResponseCurve
from entrocraft.state import LastBatch
from tests.batches import controller, make_batch

pytestmark = pytest.mark.filterwarnings("ignore::entrocraft.EntropyControlWarning")


def part_of(stats, rows):
    """Some rollouts of a batch, which know of the whole what a trainer knows."""
    tensors = {name: value for name, value in vars(stats).items() if torch.is_tensor(value)}
    part = replace(stats, **{name: value[rows] for name, value in tensors.items()})
    return replace(part, constant=stats.constant_reward[rows])


def decide_in_parts(steered, batch, parts=(slice(None),)):
    """Decision of a bound controller, and the advantages that its parts were given."""
    stats, place = batch.stats(), batch.step_info()
    chosen = steered.begin(place)
    weights, advantages = torch.empty(2, len(stats), dtype=torch.float64)
    for number, rows in enumerate(parts):
        found = steered.decide_part(part_of(stats, rows), chosen, number)
        weights[rows], advantages[rows] = found
    return steered.finish(stats, place, chosen, weights), advantages


def some_batch(step, weighed=False, **changes):
    """Batch with groups of one reward in it, some of whose rollouts have no tokens."""
    batch = make_batch(step, level=0.5 + 0.02 * step, **changes)
    rewards, advantages, mask = batch.rewards.clone(), batch.advantages.clone(), batch.mask.clone()
    rewards[:4], rewards[4:8], advantages[:8] = 1.0, 0.0, 0.0
    rewards[8:12], advantages[8:12] = torch.tensor([0.0, 0.5, 1.0, 0.5]), torch.zeros(4)
    advantages[8], advantages[10] = -0.5, 0.5  # the mean of its group has an advantage of 0
    mask[[2, 13]] = False
    weight = 1 / mask.sum(1).clamp(min=1) if weighed else None
    return replace(batch, rewards=rewards, advantages=advantages, mask=mask, token_weight=weight)


OPTIONS = {
    "tilt": {},
    "logit": {"effect": "logit"},
    "sign": {"effect": "sign"},
    "joining": {"constant_reward_groups": True},
    "learning rate": {"learning_rate": True},
}


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_concluding_with_an_updates_choice_is_that_update(name, weighed):
    """The whole batch as its only part, under the pressure, scale and means that it would choose.

    All is the same: draw, decision, and state but for the memory of the batch.
    """
    steered = controller("linear(initial, 0.9*initial, 20)", **OPTIONS[name])
    drawn = 0
    for step in range(8):
        batch = some_batch(step, weighed, optimizer_steps=2)
        stats, place, state = batch.stats(), batch.step_info(), steered.state
        chosen, _ = steered.choose_pressure(state, stats, place)
        expected, after = steered.update(state, stats, place)
        weights, advantages = steered.decide_part(stats, chosen, 0)
        found, concluded = steered.conclude(state, stats, place, chosen, weights)
        for attribute in ("weights", "probabilities", "advantages"):
            assert torch.equal(getattr(found, attribute), getattr(expected, attribute)), attribute
        assert torch.equal(advantages, expected.advantages)
        assert found.metrics == expected.metrics
        assert found.useful == expected.useful
        assert found.learning_rate_factor == expected.learning_rate_factor
        assert concluded.last is not None
        assert after.last is None
        assert replace(concluded, last=None).as_dict() == after.as_dict()
        drawn += int((weights == 0).sum())
        steered.state = after
    assert drawn > 0


@given(
    st.permutations(range(32)),
    st.lists(st.integers(1, 31), unique=True, max_size=6),
    st.sampled_from(["sampled", "sign", "logit"]),
    st.booleans(),
    st.booleans(),
    st.floats(-8, 8),
)
def test_parts_with_the_wholes_means_have_its_probabilities(
    order, cuts, effect, joining, weighed, pressure
):
    """Also where a part holds a piece of a group, whose rewards in it are all alike."""
    steered = controller(effect=effect, constant_reward_groups=joining)
    stats = some_batch(3, weighed).stats()
    chosen = PressureAndScale(Pressure(pressure), 0.003, BatchMeans.of(stats))
    whole = steered.select(stats, chosen)
    edges = [0, *sorted(cuts), 32]
    for start, end in pairwise(edges):
        rows = torch.tensor(order[start:end])
        selection = steered.select(part_of(stats, rows), chosen)
        assert torch.equal(selection.probabilities, whole.probabilities[rows])
        assert torch.equal(selection.advantages, whole.advantages[rows])


def test_the_decision_is_made_of_what_the_parts_were_given():
    quarters = [slice(start, start + 8) for start in range(0, 32, 8)]
    steered = controller("linear(initial, 0.5*initial, 20)", constant_reward_groups=True)
    for step in range(6):
        decision, advantages = decide_in_parts(steered, some_batch(step), quarters)
        assert torch.equal(decision.advantages, advantages)
        assert bool((decision.weights[decision.probabilities == 1] == 1).all())
        # a run's first batch is kept as it is, and nothing joins it
        assert (0 in decision.weights[8:]) == (step > 0)
        planned = decision.metrics["entropy/pressure"]
        assert (planned == 0) == (step == 0)


def test_the_pressure_is_planned_from_the_batch_before():
    steered = controller(0.495)
    for step in range(4):
        batch = make_batch(step)
        place, state, last = batch.step_info(), steered.state, steered.state.last
        chosen = steered.begin(place)
        assert steered.anticipate(state, place) == chosen
        assert steered.state is state
        if last is not None:
            situation = Situation(last.measured, lambda ahead: 0.495, place, last.curve)
            pressure, _ = steered.feedback.plan(state.feedback, situation)
            assert chosen == PressureAndScale(pressure, state.scale, last.means)
            assert chosen.pressure.value != 0
        _, after = steered.update(state, batch.stats(), place)
        decide_in_parts(steered, batch)
        assert steered.state.scale == after.scale > 0, "that of this batch, for the next"
        assert steered.state.last.measured == batch.stats().mean_entropy()
        assert steered.state.last.means == BatchMeans.of(batch.stats())


def test_draws_of_parts_are_reproducible_and_independent():
    """Sixty-four rollouts alike but for the part that they are in: each part is a new chance."""
    batch = make_batch(rows=8)
    stats, place = batch.stats(), batch.step_info()
    chosen = PressureAndScale(Pressure(1.0), 0.005, BatchMeans.of(stats))
    steered = controller(0.45, seed=3)
    draws = torch.stack([steered.decide_part(stats, chosen, n)[0] for n in range(2000)])
    again = torch.stack([steered.decide_part(stats, chosen, n)[0] for n in range(2000)])
    assert torch.equal(draws, again)
    expected = steered.select(stats, chosen).probabilities
    open_ = expected < 1
    assert int(open_.sum()) > 2
    error = (expected * (1 - expected) / 2000).sqrt()
    assert bool(((draws.mean(0) - expected).abs()[open_] < 4.5 * error[open_]).all())
    # neighbors, and parts a process apart, know nothing of each other
    for apart in (1, 2, 7):
        centered = (draws - expected)[:, open_]
        correlation = (centered[apart:] * centered[:-apart]).mean(0) / centered.square().mean(0)
        assert float(correlation.abs().max()) < 0.1
    other = torch.stack([controller(0.45, seed=4).decide_part(stats, chosen, n)[0] for n in (0, 1)])
    assert not torch.equal(other, draws[:2])
    decide_in_parts(steered, batch)
    later = torch.stack([steered.decide_part(stats, chosen, n)[0] for n in range(8)])
    assert not torch.equal(later, draws[:8]), "another batch is another chance"
    assert place.step == 0


@pytest.mark.parametrize(
    ("seed", "decisions", "part", "rejected"),
    [
        (0, 0, 0, [32, 67, 76, 84, 110]),
        (3, 5, 2, [37, 39, 47, 114, 120]),
        (-7, 1, 1, [25, 37, 47, 86, 93]),
    ],
)
def test_a_seed_draws_the_same_in_every_release(seed, decisions, part, rejected):
    steered, stats = controller(seed=seed), make_batch(rows=128).stats()
    steered.state = replace(steered.state, decisions=decisions)
    chosen = PressureAndScale(Pressure(0.5), 0.005, BatchMeans.of(stats))
    weights, _ = steered.decide_part(stats, chosen, part)
    assert (weights == 0).nonzero().flatten().tolist() == rejected


def test_a_first_batch_may_have_parts_without_a_token():
    batch = make_batch()
    mask = batch.mask.clone()
    mask[:8] = False
    for weight in (None, 1 / mask.sum(1).clamp(min=1)):
        silent = replace(batch, mask=mask, token_weight=weight)
        parts = [slice(0, 8), slice(8, 32)]
        for options in OPTIONS.values():
            steered = controller(0.3, **options)
            for step in range(2):
                decision, advantages = decide_in_parts(steered, replace(silent, step=step), parts)
                assert bool((decision.weights[:8] == 1).all())
                assert torch.equal(decision.advantages, advantages)


@pytest.mark.parametrize("schedule", [None, 0.4])
def test_who_only_observes_keeps_every_part(schedule):
    watcher, batch = controller(schedule, rule=None), make_batch()
    weights, _ = watcher.decide_part(batch.stats(), watcher.begin(batch.step_info()), 0)
    assert weights.dtype == torch.float64
    decision, advantages = decide_in_parts(watcher, batch, [slice(0, 8), slice(8, 32)])
    expected = controller(schedule, rule=None).decide(batch)
    assert torch.equal(advantages, batch.advantages)
    assert torch.equal(decision.weights, torch.ones(32, dtype=torch.float64))
    assert decision.metrics == expected.metrics
    assert watcher.decides_in_parts


def test_which_methods_decide_in_parts():
    assert controller().decides_in_parts
    assert not controller(extra_pass=True).decides_in_parts
    # the paper's rules compare the batch's own entropy with their band
    assert not controller(rule="sign").decides_in_parts
    assert not controller(rule="switch").decides_in_parts


def test_a_conclusion_that_raises_changes_nothing():
    steered = controller(lambda step: 0.5 if step < 6 else 9.0)
    steered.prepare(vocabulary=1000)
    decide_in_parts(steered, make_batch())
    before, state = json.dumps(steered.state_dict()), steered.state
    batch = make_batch(2)  # whose plan looks at step 6
    with pytest.raises(ValueError, match=r"above log\(vocabulary\)"):
        steered.begin(batch.step_info())
    chosen = PressureAndScale(Pressure(0.0), 0.0)
    with pytest.raises(ValueError, match=r"above log\(vocabulary\)"):
        steered.finish(batch.stats(), batch.step_info(), chosen, torch.ones(32).double())
    assert steered.state is state
    assert json.dumps(steered.state_dict()) == before


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("cut", [1, 7])
def test_a_resumed_run_goes_on_exactly(name, cut):
    def make():
        return controller("linear(initial, 0.8*initial, 30)", seed=4, **OPTIONS[name])

    def run(steered, steps):
        decisions, halves = [], [slice(0, 16), slice(16, 32)]
        for step in steps:
            decisions.append(decide_in_parts(steered, some_batch(step), halves))
            steered.post_update(-0.001, 0.002, trained=step % 2 == 0)
        return decisions

    whole, half, second = make(), make(), make()
    expected = run(whole, range(12))
    run(half, range(cut))
    text = json.dumps(half.state_dict(), allow_nan=False)
    second.load_state_dict(json.loads(text))
    assert json.dumps(second.state_dict()) == text
    for (one, _), (other, _) in zip(run(second, range(cut, 12)), expected[cut:], strict=True):
        assert torch.equal(one.weights, other.weights)
        assert one.metrics == other.metrics
        assert one.learning_rate_factor == other.learning_rate_factor
    assert second.state_dict() == whole.state_dict()


ENTROPY = st.floats(-0.01, allow_infinity=False)
LOGPROB = st.floats(-1e9, allow_infinity=False)
POSITIVE = st.floats(min_value=5e-324, allow_infinity=False)


@given(
    ENTROPY,
    st.floats(0, allow_infinity=False),
    POSITIVE,
    POSITIVE,
    LOGPROB,
    st.floats(0, 1, exclude_min=True),
    st.integers(0, 2**32),
)
def test_any_last_batch_comes_back_from_json_to_the_last_digit(
    measured, size, tokens, weight, logprob, factor, seed
):
    steered = controller(0.45)
    decide_in_parts(steered, make_batch())
    sums = torch.randn(33, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    last = LastBatch(measured, ResponseCurve(sums, size, 8.0), BatchMeans(tokens, weight, logprob))
    steered.state = replace(steered.state, last=last, learning_rate_factor=factor)
    other = controller(0.45)
    other.load_state_dict(json.loads(json.dumps(steered.state_dict(), allow_nan=False)))
    found = other.state.last
    assert (found.measured, found.means) == (measured, last.means)
    assert (found.curve.size, found.curve.limit) == (size, 8.0)
    assert torch.equal(found.curve.sums, sums)
    assert other.state.learning_rate_factor == factor
    assert other.state_dict() == steered.state_dict()


def test_a_batch_decided_with_its_own_pass_leaves_no_last_batch():
    """An old curve is never planned on."""
    steered = controller(0.45)
    decide_in_parts(steered, make_batch())
    assert steered.state.last is not None
    steered.decide(make_batch(1))
    assert steered.state.last is None
    assert steered.begin(make_batch(2).step_info()).pressure.value == 0


# ---------------------------------------------------------------- learning rate


def test_the_learning_rate_is_lowered_only_while_saturated_below_the_target():
    pressures = [
        (Pressure(8.0, True, 0.1), 0.8),
        (Pressure(8.0, True, 0.1), 0.8**2),
        (Pressure(-8.0, True, -0.1), 1.05 * 0.8**2),  # saturated above it
        (Pressure(4.0), 1.05**2 * 0.8**2),
        (Pressure(8.0), 1.05**3 * 0.8**2),  # at the limit by chance
    ]
    feedback, factor = controller(learning_rate=True).feedback_settings, 1.0
    for pressure, expected in pressures:
        factor = feedback.learning_rate_factor(factor, pressure)
        assert factor == pytest.approx(expected)
    for _ in range(200):
        factor = feedback.learning_rate_factor(factor, Pressure(8.0, True, 0.1))
    assert factor == 0.02
    for _ in range(200):
        factor = feedback.learning_rate_factor(factor, Pressure(0.0))
    assert factor == 1.0
    off = controller().feedback_settings
    assert off.learning_rate_factor(1.0, Pressure(8.0, True, 0.1)) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.floats(-1, 1)), max_size=60))
def test_the_factor_stays_within_its_bounds(found):
    feedback, factor = controller(learning_rate=True).feedback_settings, 1.0
    for saturated, shortfall in found:
        before = factor
        factor = feedback.learning_rate_factor(before, Pressure(1.0, saturated, shortfall))
        assert 0.02 <= factor <= 1
        assert factor <= before if saturated and shortfall > 0 else factor >= before


@pytest.mark.parametrize("in_parts", [False, True])
def test_decisions_carry_the_factor_and_log_it(in_parts):
    def decide(steered, batch):
        return decide_in_parts(steered, batch)[0] if in_parts else steered.decide(batch)

    low, high = controller(3.0, learning_rate=True), controller(0.01, learning_rate=True)
    first = 1 if in_parts else 0  # nothing is planned for the first batch
    for step in range(5):
        decision = decide(low, make_batch(step))
        assert decision.learning_rate_factor == pytest.approx(0.8 ** (step + 1 - first))
        assert decision.metrics["entropy/learning_rate_factor"] == decision.learning_rate_factor
        assert low.state.learning_rate_factor == decision.learning_rate_factor
        assert decide(high, make_batch(step)).learning_rate_factor == 1.0
    plain = decide(controller(3.0), make_batch())
    assert plain.learning_rate_factor == 1.0
    assert "entropy/learning_rate_factor" not in plain.metrics


@pytest.mark.parametrize("value", [1, 0.5, "true", None])
def test_the_option_is_true_or_false(value):
    with pytest.raises(ValueError, match="it has to be true or false"):
        controller(learning_rate=value)
