"""The response of a batch: pressure -> expected change, against brute force on fine pressures."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrocraft.effects import BatchMeans, rollout_effects
from entrocraft.selection import Response, ResponseCurve, SelectionSettings, get_rule, rule_input
from tests.batches import make_batch

LIMIT = 8.0
PRESSURES = np.linspace(-LIMIT, LIMIT, 101)


def respond(batch, rule="tilt", level="sampled", limit=LIMIT, **selection):
    """Response of a batch whose scale is the mean size of its active rollouts' effects."""
    stats, chosen = batch.stats(), SelectionSettings(**selection)
    given = rule_input(stats, level, 1.0, chosen)
    active = given.effects[stats.active] if bool(stats.active.any()) else given.effects
    given = replace(given, scale=float(active.abs().mean()))
    ones = replace(stats, advantages=torch.ones_like(stats.advantages))
    unit = batch.optimizer_steps * rollout_effects(ones, level, BatchMeans.of(stats))
    return Response(get_rule(rule, chosen), given, unit, stats.tokens, limit)


def exact(response, pressure):
    """Sums of the kept effects at one pressure: of positive and of negative advantages."""
    selection, _ = response.select(pressure)
    trained = (selection.advantages * selection.probabilities).numpy()
    unit = response.unit.numpy()
    return np.array([(unit * trained)[trained > 0].sum(), (unit * trained)[trained < 0].sum()])


CASES = [
    {},
    {"floor": 0.1},
    {"constant_reward_groups": True},
    {"level": "logit"},
    {"level": "sign"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_at_is_the_expected_sum_of_the_kept_effects(case, seed):
    response = respond(make_batch(seed=seed, optimizer_steps=2.0), **case)
    for pressure in PRESSURES:
        np.testing.assert_allclose(response.at(pressure), exact(response, pressure), rtol=1e-12)


@pytest.mark.parametrize("gains", [(1.0, 1.0), (0.3, 3.0), (3.0, 0.3)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_solve_finds_the_pressure_of_a_fine_bisection(case, gains):
    response = respond(make_batch(seed=1), **case)

    def nats(pressure):
        return float(exact(response, pressure) @ np.array(gains))

    plain = nats(0.0)
    unit = max(gains) * response.size
    for end in (-LIMIT, LIMIT):
        for share in (0.02, 0.1, 0.3, 0.6, 0.9, 0.99):
            wanted = plain + share * (nats(end) - plain)
            pressure, reached = response.curve.solve(gains, wanted)
            assert reached == wanted
            assert 0 < pressure / end <= 1
            assert nats(pressure) == pytest.approx(wanted, abs=0.01 * unit)
            low, high = 0.0, end
            for _ in range(60):
                middle = 0.5 * (low + high)
                short = abs(nats(middle) - plain) < abs(wanted - plain)
                low, high = (middle, high) if short else (low, middle)
            # where the curve is flat another pressure does as well
            slope = abs(nats(low * 1.01) - nats(low)) / abs(0.01 * low)
            assert abs(pressure - low) < max(0.01 * unit / slope, 0.01 * LIMIT) * 1.5


@pytest.mark.parametrize("limit", [8.0, 0.7])
def test_the_curve_is_the_response_at_pressures_that_are_closer_together_near_0(limit):
    response = respond(make_batch(seed=4), limit=limit)
    pressures = [math.copysign(limit * (k / 16) ** 2, k) for k in range(-16, 17)]
    expected = [response.at(pressure) for pressure in pressures]
    np.testing.assert_allclose(response.curve.sums, expected, rtol=1e-14)
    assert (response.curve.size, response.curve.limit) == (response.size, limit)
    for pressure, sums in zip(pressures, expected, strict=True):
        found, _ = response.curve.solve((1.0, 1.0), sum(sums))
        assert found == pytest.approx(pressure, rel=1e-12)


def test_where_the_response_is_flat_the_smallest_pressure_is_taken():
    """Effects of 1 from the second pressure above 0 on, and of -1 from the second below it."""
    sums = torch.zeros(33, 2, dtype=torch.float64)
    sums[18:, 0], sums[:15, 1] = 1.0, -1.0
    curve = ResponseCurve(sums, 1.0, LIMIT)
    second = LIMIT * (2 / 16) ** 2
    for sign in (1.0, -1.0):
        assert curve.solve((1.0, 1.0), sign) == (sign * second, sign)
        pressure, _ = curve.solve((1.0, 1.0), 1e-9 * sign)
        assert LIMIT / 16**2 < sign * pressure < second


def test_out_of_reach_is_the_limit_and_what_it_gives():
    response = respond(make_batch())
    for end in (-LIMIT, LIMIT):
        most = sum(response.at(end))
        for wanted in (1.001 * most, 1000 * most, math.copysign(math.inf, end)):
            pressure, reached = response.curve.solve((1.0, 1.0), wanted)
            assert pressure == end
            assert reached == pytest.approx(most)
        assert response.curve.solve((1.0, 1.0), most) == (end, most)


def test_what_plain_rl_gives_needs_no_pressure():
    response = respond(make_batch())
    plain = 2.0 * response.at(0.0)[0] + 0.5 * response.at(0.0)[1]
    assert response.curve.solve((2.0, 0.5), plain) == (0.0, pytest.approx(plain))
    assert abs(response.curve.solve((2.0, 0.5), plain + 1e-12)[0]) < 1e-6


def test_the_pressure_grows_with_what_is_wanted():
    response = respond(make_batch(seed=2))
    low, high = sum(response.at(-LIMIT)), sum(response.at(LIMIT))
    wanted = np.linspace(low - 0.01, high + 0.01, 300)
    pressures = [response.curve.solve((1.0, 1.0), value)[0] for value in wanted]
    assert np.all(np.diff(pressures) >= 0)
    assert (pressures[0], pressures[-1]) == (-LIMIT, LIMIT)


@given(
    st.integers(0, 1000),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e3),
    st.floats(-3, 3),
    st.sampled_from(["tilt", "sign", "switch"]),
)
def test_solve_is_sane_whatever_is_wanted(seed, positive, negative, share, rule):
    limit = LIMIT if rule == "tilt" else 1.0
    response = respond(make_batch(seed=seed, rows=8), rule, limit=limit)
    wanted = share * max(positive, negative) * response.size
    pressure, reached = response.curve.solve((positive, negative), wanted)
    assert abs(pressure) <= limit
    assert reached == wanted or abs(pressure) == limit
    if reached != wanted:
        most = np.array(response.at(pressure)) @ np.array([positive, negative])
        assert reached == pytest.approx(float(most), rel=1e-9, abs=1e-12)


def test_the_size_is_that_of_the_active_rollouts_over_all_steps():
    batch = make_batch()
    mask = batch.mask.clone()
    mask[3] = False
    response = respond(replace(batch, mask=mask, optimizer_steps=3.0))
    effects = response.given.effects
    assert response.size == pytest.approx(3.0 * float(effects.abs().sum()))
    silent = respond(replace(batch, advantages=torch.zeros(32)))
    assert silent.size == 0
    assert silent.at(5.0) == (0.0, 0.0)


def test_rollouts_of_constant_reward_groups_join_with_raw_rewards():
    rewards = torch.tensor([1.0] * 4 + [0.0] * 4 + [math.nan, 0.0, 1.0, 1.0])
    advantages = torch.tensor([0.0] * 8 + [0.0, -1.0, 0.5, 0.5])
    mask = torch.ones(12, 6)
    mask[1] = 0
    batch = make_batch(rows=12, rewards=rewards, advantages=advantages, mask=mask)
    response = respond(batch, constant_reward_groups=True)
    assert response.given.joining.tolist() == [1, 0, 1, 1, -1, -1, -1, -1, 0, 0, 0, 0]
    assert response.joining.tolist() == [True, False] + [True] * 6 + [False] * 4
    graded = replace(batch, rewards=torch.where(rewards == 1, 0.5, rewards))
    joining = respond(graded, constant_reward_groups=True).given.joining
    assert torch.equal(joining, response.given.joining), "a half is a success"
    assert respond(batch).joining is None
    for missing in ("rewards", "group"):
        with pytest.raises(ValueError, match=re.escape(f"RolloutBatch.{missing} (B,)")):
            respond(replace(batch, **{missing: None}), constant_reward_groups=True)
