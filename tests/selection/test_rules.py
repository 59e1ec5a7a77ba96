"""Acceptance rules against a constrained minimizer, brute force and exact inclusion frequencies."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize

from entrocraft.selection.rules import (
    RULES,
    RuleInput,
    Sign,
    Switch,
    Tilt,
    get_rule,
    solve_tilt,
    tilt,
)

INF = math.inf


def effects_of(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64)


def distortion(a):
    a = np.maximum(a, 1e-300)
    return float((a * np.log(a) - a + 1).sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("share", [-0.9, -0.5, -0.1, 0.1, 0.5, 0.9])
def test_tilt_is_the_least_distortion_that_meets_the_change(seed, share):
    effects = effects_of(seed=seed)
    e, plain = effects.numpy(), float(effects.sum())
    reachable = e[e > 0].sum() if share > 0 else e[e < 0].sum()
    wanted = plain + abs(share) * (reachable - plain)
    rate, shortfall = solve_tilt(effects, wanted)
    ours = tilt(effects, rate).numpy()
    assert shortfall == 0
    assert math.copysign(1, rate) == math.copysign(1, share)
    assert ours @ e == pytest.approx(wanted, abs=1e-9)
    reference = minimize(
        distortion,
        np.full(len(e), 0.5),
        jac=lambda a: np.log(np.maximum(a, 1e-300)),
        bounds=[(1e-9, 1)] * len(e),
        constraints=LinearConstraint(e, wanted, wanted),
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert reference.success
    np.testing.assert_allclose(ours, reference.x, atol=2e-5)
    assert distortion(ours) <= reference.fun + 1e-8


def test_tilt_by_hand():
    effects = torch.tensor([2.0, 0.0, -3.0, 0.5], dtype=torch.float64)
    up, down = tilt(effects, 0.4), tilt(effects, -0.4)
    np.testing.assert_allclose(up, [1, 1, math.exp(-1.2), 1])
    np.testing.assert_allclose(down, [math.exp(-0.8), 1, 1, math.exp(-0.2)])
    assert tilt(effects, 0.0).tolist() == [1, 1, 1, 1]
    assert tilt(effects, INF).tolist() == [1, 1, 0, 1]
    assert tilt(effects, -INF).tolist() == [0, 1, 1, 0]


def test_the_kept_change_grows_with_the_rate():
    effects = effects_of(50)
    kept = [float((tilt(effects, rate) * effects).sum()) for rate in np.linspace(-5, 5, 101)]
    assert np.all(np.diff(kept) > 0)


def test_solve_tilt_is_monotone_and_saturates_with_a_shortfall():
    effects = effects_of(30)
    up, down = float(effects.clamp(min=0).sum()), float(effects.clamp(max=0).sum())
    wanted = np.linspace(down - 1, up + 1, 200)
    rates, shortfalls = map(np.array, zip(*(solve_tilt(effects, w) for w in wanted), strict=True))
    assert np.all(rates[1:] >= rates[:-1])
    np.testing.assert_array_equal(rates[wanted >= up], INF)
    np.testing.assert_array_equal(rates[wanted <= down], -INF)
    inside = (wanted > down) & (wanted < up)
    assert np.all(np.isfinite(rates[inside]))
    expected = np.where(wanted > up, wanted - up, np.where(wanted < down, wanted - down, 0))
    np.testing.assert_allclose(shortfalls, expected, atol=1e-12)


def test_solve_tilt_without_anything_to_choose_from():
    for effects in (torch.zeros(0), torch.zeros(5)):
        assert solve_tilt(effects, 0.0) == (0.0, 0.0)
        assert solve_tilt(effects, 0.3) == (INF, 0.3)
        assert solve_tilt(effects, -0.3) == (-INF, -0.3)
    one_sided = torch.tensor([1.0, 2.0])
    assert solve_tilt(one_sided, 3.0) == (0.0, 0.0)
    assert solve_tilt(one_sided, 4.0) == (INF, 1.0)
    assert solve_tilt(one_sided, -1.0) == (-INF, -1.0)


@pytest.mark.parametrize("unit", [1e-200, 1e-9, 1e9, 1e200])
def test_solve_tilt_does_not_depend_on_the_unit(unit):
    effects = effects_of(20)
    wanted = 0.5 * float(effects.clamp(min=0).sum())
    rate, _ = solve_tilt(effects, wanted)
    scaled, shortfall = solve_tilt(effects * unit, wanted * unit)
    assert scaled * unit == pytest.approx(rate, rel=1e-9)
    assert shortfall == 0


def ballot(**changes):
    advantages = torch.tensor([1.0, -1.0, 0.0, 0.5, -0.5], dtype=torch.float64)
    effects = torch.tensor([-0.2, 0.3, 0.0, 0.1, -0.4], dtype=torch.float64)
    return RuleInput(**({"advantages": advantages, "effects": effects, "scale": 0.2} | changes))


def test_the_tilt_rule_measures_pressure_in_units_of_the_scale():
    rule = Tilt(floor=0.0)
    for pressure in (-8.0, -0.3, 0.0, 0.3, 8.0):
        verdict = rule.select(ballot(), pressure)
        expected = tilt(ballot().effects, pressure / 0.2) if pressure else torch.ones(5)
        np.testing.assert_allclose(verdict.probabilities, expected, rtol=1e-12)
        assert torch.equal(verdict.advantages, ballot().advantages)


@pytest.mark.parametrize("unit", [1e-300, 1e-30, 1e30, 1e300])
def test_the_tilt_rule_knows_no_unit(unit):
    plain = Tilt().select(ballot(), 1.5).probabilities
    scaled = Tilt().select(ballot(effects=ballot().effects * unit, scale=0.2 * unit), 1.5)
    np.testing.assert_allclose(scaled.probabilities, plain, rtol=1e-9)


def test_the_tilt_rule_survives_the_smallest_effects():
    tiny = torch.tensor([1e-310, -1e-310], dtype=torch.float64)
    verdict = Tilt().select(RuleInput(tiny, tiny, 1e-310), 1.0)
    np.testing.assert_allclose(verdict.probabilities, [1, math.exp(-1)], rtol=1e-6)


def test_the_tilt_rule_keeps_all_while_no_effect_was_seen():
    verdict = Tilt().select(ballot(effects=torch.zeros(5), scale=0.0), 5.0)
    assert verdict.probabilities.tolist() == [1] * 5


def test_sign_is_algorithm_1():
    for size in (1, 2, 3):
        for signs in itertools.product([-1.5, 0.0, 2.0], repeat=size):
            for pressure in (-1.0, 0.0, 1.0):
                m = -pressure  # +1 above the band, -1 below it
                advantages = torch.tensor(signs, dtype=torch.float64)
                got = Sign().select(RuleInput(advantages, advantages, 1.0), pressure)
                assert got.probabilities.tolist() == [float(m * a >= 0) for a in signs]
                assert torch.equal(got.advantages, advantages)


@pytest.mark.parametrize("failure", [0.0, -1.0])
def test_switch_trains_on_raw_rewards_of_one_sign(failure):
    # the first two rollouts are a group that all succeeded: its advantages are 0
    advantages = torch.tensor([0.0, 0.0, 1.0, -1.0], dtype=torch.float64)
    rewards = torch.tensor([1.0, 1.0, 1.0, failure], dtype=torch.float64)
    votes = RuleInput(advantages, advantages, 1.0, rewards)
    above, inside, below = (Switch().select(votes, pressure) for pressure in (-1.0, 0.0, 1.0))
    assert (above.probabilities * above.advantages).tolist() == [1, 1, 1, 0]
    assert (below.probabilities * below.advantages).tolist() == [0, 0, 0, -1]
    assert inside.probabilities.tolist() == [1, 1, 1, 1]
    assert torch.equal(inside.advantages, advantages)


def test_switch_gives_unscorable_rollouts_no_vote():
    rewards = torch.tensor([math.nan, 1.0, 0.0], dtype=torch.float64)
    votes = RuleInput(torch.zeros(3), torch.zeros(3), 1.0, rewards)
    for pressure, expected in ((-1.0, [0, 1, 0]), (1.0, [0, 0, -1])):
        verdict = Switch().select(votes, pressure)
        assert (verdict.probabilities * verdict.advantages).tolist() == expected


def test_switch_reads_graded_rewards_by_its_threshold():
    votes = RuleInput(torch.zeros(3), torch.zeros(3), 1.0, torch.tensor([0.2, 0.5, 0.9]))
    assert Switch().select(votes, -1.0).probabilities.tolist() == [0, 1, 1]
    assert Switch(success=0.9).select(votes, -1.0).probabilities.tolist() == [0, 0, 1]


def test_switch_needs_rewards_also_inside_its_band():
    for pressure in (-1.0, 0.0, 1.0):
        with pytest.raises(ValueError, match=r"RolloutBatch\.rewards \(B,\).*rule='tilt'"):
            Switch().select(ballot(), pressure)


def test_rules_by_name():
    assert {name: get_rule(name).name for name in RULES} == {name: name for name in RULES}
    own = Switch(success=0.9)
    assert get_rule(own) is own
    with pytest.raises(ValueError, match="unknown rule 'tild'; choose one of tilt, sign, switch"):
        get_rule("tild")


def test_no_vote_is_ever_locked_out():
    rule, votes = Tilt(floor=0.05), ballot(effects=torch.tensor([-50.0, 0.1, 0.0, 0.1, -0.1]))
    verdict = rule.select(votes, 8.0)
    assert verdict.probabilities[0] == 0.05
    assert bool((verdict.probabilities[1:4] == 1).all())
    assert float(Tilt(floor=0.0).select(votes, 8.0).probabilities[0]) == 0
    with pytest.raises(ValueError, match=r"floor must be a probability in \[0, 1\), got 1"):
        Tilt(floor=1)


def test_spare_rollouts_join_only_to_push_the_wanted_way():
    spare = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    effects = torch.tensor([-0.2, 0.3, 0.1, 0.1, -0.4], dtype=torch.float64)
    offered = ballot(spare=spare, effects=effects)
    without = ballot(effects=effects)
    for pressure, expected in ((0.0, 0.0), (-2.0, 0.0), (2.0, 1 - math.exp(-2 * 0.1 / 0.2))):
        verdict = Tilt().select(offered, pressure)
        assert float(verdict.probabilities[2]) == pytest.approx(expected)
        assert verdict.advantages.tolist() == [1.0, -1.0, 1.0, 0.5, -0.5]
        voters = [0, 1, 3, 4]
        usual = Tilt().select(without, pressure)
        assert torch.equal(verdict.probabilities[voters], usual.probabilities[voters])
