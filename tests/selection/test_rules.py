"""Rejection rules against a constrained minimizer and brute force."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize

from entrocraft.selection import RULES, RuleInput, SelectionSettings, get_rule
from entrocraft.selection.rules import Sign, Switch, Tilt, tilt

INF = math.inf


def effects_of(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64)


def distortion(a):
    a = np.maximum(a, 1e-300)
    return float((a * np.log(a) - a + 1).sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rate", [-5.0, -1.0, -0.2, 0.2, 1.0, 5.0])
def test_tilt_is_the_least_distortion_that_gives_its_change(seed, rate):
    effects = effects_of(seed=seed)
    e, ours = effects.numpy(), tilt(effects, rate).numpy()
    wanted = ours @ e
    assert (wanted - e.sum()) * rate > 0
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
    assert tilt(effects, INF).dtype == torch.float64


def test_the_kept_change_grows_with_the_rate():
    effects = effects_of(50)
    kept = [float((tilt(effects, rate) * effects).sum()) for rate in np.linspace(-5, 5, 101)]
    assert np.all(np.diff(kept) > 0)


def given(**changes):
    advantages = torch.tensor([1.0, -1.0, 0.0, 0.5, -0.5], dtype=torch.float64)
    effects = torch.tensor([-0.2, 0.3, 0.0, 0.1, -0.4], dtype=torch.float64)
    return RuleInput(**({"advantages": advantages, "effects": effects, "scale": 0.2} | changes))


def test_the_tilt_rule_measures_pressure_in_units_of_the_scale():
    rule = Tilt(floor=0.0)
    for pressure in (-8.0, -0.3, 0.0, 0.3, 8.0):
        selection = rule.select(given(), pressure)
        expected = tilt(given().effects, pressure / 0.2) if pressure else torch.ones(5)
        np.testing.assert_allclose(selection.probabilities, expected, rtol=1e-12)
        assert torch.equal(selection.advantages, given().advantages)


@pytest.mark.parametrize("unit", [1e-300, 1e-30, 1e30, 1e300])
def test_the_tilt_rule_knows_no_unit(unit):
    plain = Tilt().select(given(), 1.5).probabilities
    scaled = Tilt().select(given(effects=given().effects * unit, scale=0.2 * unit), 1.5)
    np.testing.assert_allclose(scaled.probabilities, plain, rtol=1e-9)


def test_the_tilt_rule_survives_the_smallest_effects():
    tiny = torch.tensor([1e-310, -1e-310], dtype=torch.float64)
    selection = Tilt().select(RuleInput(tiny, tiny, 1e-310), 1.0)
    np.testing.assert_allclose(selection.probabilities, [1, math.exp(-1)], rtol=1e-6)


def test_the_tilt_rule_keeps_all_while_no_effect_was_seen():
    selection = Tilt().select(given(effects=torch.zeros(5), scale=0.0), 5.0)
    assert selection.probabilities.tolist() == [1] * 5


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
    seen = RuleInput(advantages, advantages, 1.0, rewards)
    above, inside, below = (Switch().select(seen, pressure) for pressure in (-1.0, 0.0, 1.0))
    assert (above.probabilities * above.advantages).tolist() == [1, 1, 1, 0]
    assert (below.probabilities * below.advantages).tolist() == [0, 0, 0, -1]
    assert inside.probabilities.tolist() == [1, 1, 1, 1]
    assert torch.equal(inside.advantages, advantages)


def test_switch_gives_unscorable_rollouts_no_weight():
    rewards = torch.tensor([math.nan, 1.0, 0.0], dtype=torch.float64)
    seen = RuleInput(torch.zeros(3), torch.zeros(3), 1.0, rewards)
    for pressure, expected in ((-1.0, [0, 1, 0]), (1.0, [0, 0, -1])):
        selection = Switch().select(seen, pressure)
        assert (selection.probabilities * selection.advantages).tolist() == expected
        assert selection.probabilities[0] == 1, "as the rule sign keeps advantages of 0"


def test_switch_reads_graded_rewards_by_its_threshold():
    seen = RuleInput(torch.zeros(3), torch.zeros(3), 1.0, torch.tensor([0.2, 0.5, 0.9]))
    assert Switch().select(seen, -1.0).probabilities.tolist() == [0, 1, 1]


def test_switch_needs_rewards_also_inside_its_band():
    for pressure in (-1.0, 0.0, 1.0):
        with pytest.raises(ValueError, match=r"RolloutBatch\.rewards \(B,\).*rule='tilt'"):
            Switch().select(given(), pressure)


def test_rules_by_name():
    assert {name: get_rule(name).name for name in RULES} == {name: name for name in RULES}
    assert get_rule("tilt", SelectionSettings(floor=0.3)) == Tilt(floor=0.3)
    assert get_rule("tilt") == Tilt(floor=SelectionSettings().floor)
    assert get_rule("tilt", SelectionSettings(floor=0.0, constant_reward_groups=True)).floor == 0
    with pytest.raises(ValueError, match="unknown rule 'tild'; choose one of tilt, sign, switch"):
        get_rule("tild")
    for name in ("sign", "switch"):
        with pytest.raises(ValueError, match=f"constant_reward_groups needs .* got '{name}'"):
            get_rule(name, SelectionSettings(constant_reward_groups=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"floor": 1}, "floor must be a probability in [0, 1), got 1"),
        ({"floor": -0.1}, "floor must be a probability in [0, 1), got -0.1"),
        ({"floor": math.nan}, "selection.floor is nan; it has to be a finite"),
        ({"constant_reward_groups": 1}, "constant_reward_groups is 1; it has to be true"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SelectionSettings(**changes)


@pytest.mark.parametrize(
    ("rule", "effect", "deadband"),
    [("tilt", "sampled", False), ("sign", "sign", True), ("switch", "sign", True)],
)
def test_what_a_rule_is_made_for(rule, effect, deadband):
    assert (get_rule(rule).effect, get_rule(rule).deadband) == (effect, deadband)


def test_no_active_rollout_is_ever_locked_out():
    seen = given(effects=torch.tensor([-50.0, 0.1, 0.0, 0.1, -0.1]))
    selection = Tilt(floor=0.05).select(seen, 8.0)
    assert selection.probabilities[0] == 0.05
    assert bool((selection.probabilities[1:4] == 1).all())
    assert float(Tilt(floor=0.0).select(seen, 8.0).probabilities[0]) == 0


def test_constant_reward_groups_join_only_to_push_the_wanted_way():
    joining = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    effects = torch.tensor([-0.2, 0.3, 0.1, 0.1, -0.4], dtype=torch.float64)
    wider = given(joining=joining, effects=effects)
    without = given(effects=effects)
    admitted = {pressure: 1 - math.exp(-pressure * 0.1 / 0.2) for pressure in (1.0, 2.0)}
    for pressure, expected in ({0.0: 0.0, -2.0: 0.0} | admitted).items():
        selection = Tilt().select(wider, pressure)
        assert float(selection.probabilities[2]) == pytest.approx(expected)
        assert selection.advantages.tolist() == [1.0, -1.0, 1.0, 0.5, -0.5]
        others = [0, 1, 3, 4]
        usual = Tilt().select(without, pressure)
        assert torch.equal(selection.probabilities[others], usual.probabilities[others])


@pytest.mark.parametrize("pressure", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("rule", RULES)
def test_what_happens_to_a_rollout_depends_on_that_rollout_and_the_pressure_alone(rule, pressure):
    rewards = torch.tensor([1.0, 0.0, math.nan, 1.0, 0.0], dtype=torch.float64)
    seen = given(rewards=rewards)
    whole = get_rule(rule).select(seen, pressure)
    for rows in ([0], [4, 1], [2, 3]):
        part = RuleInput(seen.advantages[rows], seen.effects[rows], seen.scale, rewards[rows])
        selection = get_rule(rule).select(part, pressure)
        assert torch.equal(selection.probabilities, whole.probabilities[rows])
        assert torch.equal(selection.advantages, whole.advantages[rows])
