"""The controller: what a decision does, whatever the batch."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from entrocraft import EntropyController, EntropyControlWarning, RolloutBatch, SelectionSettings
from entrocraft.controller import PressureAndScale
from entrocraft.feedback import Pressure
from tests.batches import RULES, controller, effects_of, make_batch, nearby

pytestmark = [
    pytest.mark.filterwarnings("error::entrocraft.EntropyControlWarning"),
    pytest.mark.filterwarnings("ignore:the schedule asks for:entrocraft.EntropyControlWarning"),
]


def test_pressure_moves_the_sum_of_kept_effects_the_wanted_way():
    for seed in range(5):
        batch = make_batch(seed=seed)
        effects = effects_of(batch)
        plain = float(effects.sum())
        up, down = (controller(target).decide(batch) for target in (0.6, 0.4))
        assert up.metrics["entropy/pressure"] > 0 > down.metrics["entropy/pressure"]
        assert float((up.weights * effects).sum()) > plain > float((down.weights * effects).sum())


def test_kept_effects_stay_close_to_their_expectation():
    ratios = []
    for seed in range(40):
        batch = make_batch(rows=128, seed=seed)
        effects, decision = effects_of(batch), nearby(0.008, batch, seed=seed).decide(batch)
        assert decision.metrics["entropy/saturated"] == 0
        p = decision.probabilities
        assert float(p.mean()) < 0.95, "something must be left to chance"
        independent = float((p * (1 - p) * effects**2).sum().sqrt())
        ratios.append(float(((decision.weights - p) * effects).sum()) / independent)
    # independent draws would give 1, systematic ones in any order 0.6, along the effects 0.3
    assert np.sqrt(np.mean(np.square(ratios))) < 0.45


def test_the_decision_hangs_together():
    batch = make_batch()
    for rule in RULES:
        decision = controller(0.7, rule=rule).decide(batch)
        assert decision.weights.shape == decision.probabilities.shape == (32,)
        assert set(decision.weights.tolist()) == {0.0, 1.0}
        assert bool(((decision.probabilities >= 0) & (decision.probabilities <= 1)).all())
        assert not bool((decision.weights[decision.probabilities == 0] > 0).any())
        base = batch.advantages if rule != "switch" else 2 * batch.rewards - 1
        assert torch.equal(decision.advantages, base * decision.weights)
        assert decision.useful == int((decision.advantages != 0).sum())
        active = base != 0
        kept = float((decision.weights[active] > 0).double().mean())
        assert decision.metrics["entropy/kept_fraction"] == pytest.approx(kept)
        assert decision.settings == {}
        assert decision.extra is None


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("rule", ["tilt", "sign"])
@pytest.mark.parametrize("effect", ["sign", "sampled", "logit"])
def test_rollouts_without_an_advantage_are_kept_and_count_for_nothing(rule, effect, target):
    batch = make_batch()
    silent = batch.advantages.clone()
    silent[::3] = 0
    without = replace(batch, advantages=silent)
    decision = controller(target, rule, effect).decide(without)
    assert bool((decision.weights[silent == 0] == 1).all())
    assert bool((decision.probabilities[silent == 0] == 1).all())
    # neither their number nor their tokens' sensitivity changes what happens to the others
    shaken = torch.where(silent[:, None] == 0, 1e6, batch.sensitivity)
    other = controller(target, rule, effect).decide(replace(without, sensitivity=shaken))
    assert torch.equal(decision.weights, other.weights)


def test_rollouts_without_tokens_count_for_nothing():
    """A truncated rollout that the trainer masks has an advantage but nothing to train on."""
    whole = make_batch(rows=16)
    mask = whole.mask.clone()
    mask[8:] = False
    whole = replace(whole, mask=mask)
    tensors = {name: value for name, value in vars(whole).items() if torch.is_tensor(value)}
    part = replace(whole, **{name: value[:8] for name, value in tensors.items()})
    with_empty, without = (controller(0.505, seed=3).decide(batch) for batch in (whole, part))
    assert with_empty.metrics == pytest.approx(without.metrics)
    assert with_empty.useful == without.useful
    assert torch.equal(with_empty.weights[:8], without.weights)
    assert bool((with_empty.weights[8:] == 1).all())


def test_the_scale_is_a_slow_mean_over_active_rollouts():
    advantages = make_batch().advantages
    advantages[:20] = 0
    first, second = make_batch(advantages=advantages), make_batch(1)
    steered = controller()
    steered.decide(first)
    expected = float(effects_of(first)[20:].abs().mean())
    assert steered.state.scale == pytest.approx(expected)
    steered.decide(second)
    expected = 0.9 * expected + 0.1 * float(effects_of(second)[second.advantages != 0].abs().mean())
    assert steered.state.scale == pytest.approx(expected)
    with pytest.warns(EntropyControlWarning, match="no rollout with a non-zero advantage"):
        steered.decide(make_batch(2, advantages=torch.zeros(32)))
    assert steered.state.scale == pytest.approx(expected), "a batch without effects teaches none"


def test_joining_rollouts_set_the_scale_only_where_no_other_is_active():
    batch = make_batch(seed=3)
    rewards, advantages = batch.rewards.clone(), batch.advantages.clone()
    rewards[:4], rewards[4:8], advantages[:8] = 1.0, 0.0, 0.0
    raw = torch.cat([torch.ones(4), -torch.ones(4)]).double()
    mixed = replace(batch, rewards=rewards, advantages=advantages)
    steered = controller(constant_reward_groups=True)
    steered.decide(mixed)
    active = effects_of(mixed)[advantages != 0]
    assert steered.state.scale == pytest.approx(float(active.abs().mean()))
    steered = controller(constant_reward_groups=True)
    only = replace(mixed, advantages=torch.zeros(32), rewards=rewards.clone())
    only.rewards[8:] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)  # nothing needs to join
        steered.decide(only)
    joining = effects_of(only, torch.cat([raw, torch.zeros(24)]))[:8]
    assert steered.state.scale == pytest.approx(float(joining.abs().mean()))


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_effects_shrink_with_the_learning_rate(share):
    batch, steered = make_batch(optimizer_steps=2), controller(0.6)
    place = replace(batch.step_info(), learning_rate=1e-5, relative_learning_rate=share)
    first, _ = steered.update(steered.state, batch.stats(), place)
    effects = 2 * share * effects_of(batch)
    gain = first.metrics["entropy/gain_positive"]
    assert gain * float(effects.abs().sum()) == pytest.approx(
        0.05 * first.metrics["entropy/measured"]
    )


def test_rule_none_keeps_everything_and_still_observes():
    watcher, batch = controller(0.9, rule=None), make_batch(sensitivity=None, rewards=None)
    decision = watcher.decide(batch)
    assert watcher.effect is None
    assert watcher.remeasure == 0
    assert torch.equal(decision.advantages, batch.advantages)
    assert bool((decision.weights == 1).all())
    assert bool((decision.probabilities == 1).all())
    assert decision.weights.dtype == decision.probabilities.dtype == torch.float64
    assert decision.useful == int((batch.advantages != 0).sum())
    assert decision.metrics["entropy/target"] == 0.9
    assert decision.metrics["entropy/measured"] == pytest.approx(
        batch.entropies[batch.mask].mean().item()
    )
    assert decision.metrics["entropy/pressure"] == decision.metrics["entropy/saturated"] == 0
    bare = EntropyController(None, rule=None).decide(batch)
    assert "entropy/target" not in bare.metrics
    assert torch.equal(bare.advantages, batch.advantages)


def test_sign_and_switch_outside_and_inside_their_band():
    batch = make_batch(level=0.5)
    raw = 2 * batch.rewards - 1
    for target, m in ((0.3, 1), (0.5, 0), (0.7, -1)):
        sign = controller(target, rule="sign", band=0.1).decide(batch)
        assert torch.equal(sign.weights, (m * batch.advantages >= 0).double())
        switch = controller(target, rule="switch", band=0.1).decide(batch)
        expected = torch.where(m * raw > 0, raw, 0.0) if m else batch.advantages
        assert torch.equal(switch.advantages, expected)
        assert sign.metrics["entropy/pressure"] == switch.metrics["entropy/pressure"] == -m
        assert sign.metrics["entropy/saturated"] == abs(m)
        assert sign.metrics["entropy/low"] == pytest.approx(target - 0.1)
        assert sign.metrics["entropy/high"] == pytest.approx(target + 0.1)


def test_what_a_rule_asks_an_adapter_for():
    assert [controller(rule=rule).effect for rule in RULES] == ["sampled", "sign", "sign"]
    assert controller(effect="logit").effect == "logit"
    assert [controller(rule=rule).remeasure > 0 for rule in RULES] == [True, False, False]
    assert controller(remeasure=0.25).remeasure == 0.25
    assert controller(rule="sign", remeasure=1).remeasure == 1
    assert [controller(learning_rate=on).sets_learning_rate for on in (True, False)] == [
        True,
        False,
    ]
    assert [controller(extra_pass=on).extra_pass for on in (True, False)] == [True, False]


def test_metrics_are_finite_floats_and_complete():
    keys = {"measured", "measured_stderr", "target", "estimate", "pressure", "kept_fraction",
            "saturated", "shortfall", "empty", "gain_positive", "gain_negative", "drift",
            "chosen_change", "predicted_change", "reachable_up", "reachable_down"}  # fmt: skip
    steered = controller("linear(initial, 0.2, 100)")
    for step in range(30):
        batch = make_batch(step, level=1.0 - 0.008 * step)
        metrics = steered.decide(batch).metrics
        assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
        assert set(metrics) == {f"entropy/{key}" for key in keys}
        steered.post_update(-0.008, 0.001)


def test_reachable_is_what_the_strongest_pressure_would_add():
    for batch in (make_batch(seed=1), make_batch(seed=2, optimizer_steps=4)):
        metrics = controller().decide(batch).metrics
        effects = batch.optimizer_steps * effects_of(batch)
        gain = metrics["entropy/gain_positive"]
        assert gain == metrics["entropy/gain_negative"], "nothing is learnt from one batch"
        # the first guess: all effects together move a twentieth of the entropy
        assert gain * float(effects.abs().sum()) == pytest.approx(
            0.05 * metrics["entropy/measured"]
        )
        up, down = float(effects.clamp(min=0).sum()), float(effects.clamp(max=0).sum())
        # a share of 0.02 of the opposing rollouts stays, more of those with hardly any effect
        assert gain * up > metrics["entropy/reachable_up"] > gain * (up + 0.15 * down)
        assert gain * down < metrics["entropy/reachable_down"] < gain * (down + 0.15 * up)


def test_the_prediction_is_what_the_kept_rollouts_are_expected_to_do():
    steered, batch = controller(), make_batch(momentum=0.8)
    decision = steered.decide(batch)
    metrics = decision.metrics
    kept = float((decision.weights * effects_of(batch)).sum())
    chosen = metrics["entropy/gain_positive"] * kept
    assert metrics["entropy/chosen_change"] == pytest.approx(chosen)
    assert metrics["entropy/predicted_change"] == pytest.approx(0.2 * chosen)
    assert metrics["entropy/reachable_down"] <= chosen <= metrics["entropy/reachable_up"]


def test_constant_reward_groups_join_with_raw_rewards_to_push_the_wanted_way():
    batch = make_batch(seed=3)
    rewards = batch.rewards.clone()
    rewards[:4], rewards[4:8], rewards[9] = 1.0, 0.0, math.nan
    advantages = rewards.nan_to_num() - 0.5
    advantages[:8] = 0
    batch = replace(batch, rewards=rewards, advantages=advantages)
    raw = torch.cat([torch.ones(4), -torch.ones(4)]).double()
    unit = effects_of(batch, torch.ones(32))[:8]
    for target, sign in ((0.9, 1), (0.1, -1)):
        plain = controller(target).decide(batch)
        joined = controller(target, constant_reward_groups=True).decide(batch)
        assert torch.equal(plain.advantages[:8], torch.zeros(8, dtype=torch.float64))
        used = joined.advantages[:8] != 0
        assert bool(used.any())
        assert joined.metrics["entropy/constant_reward_used"] == int(used.sum())
        assert torch.equal(joined.advantages[:8][used], raw[used])
        assert bool((sign * raw * unit > 0)[used].all())
        reachable = f"entropy/reachable_{'up' if sign > 0 else 'down'}"
        gains = [one.metrics["entropy/gain_positive"] for one in (joined, plain)]
        wider, narrower = (
            sign * one.metrics[reachable] / gain
            for one, gain in zip((joined, plain), gains, strict=True)
        )
        assert wider > narrower > 0
        kept = joined.weights[8:] > 0
        active = batch.advantages[8:] != 0
        assert joined.metrics["entropy/kept_fraction"] == pytest.approx(
            float(kept[active].double().mean())
        )
    at_rest = controller(constant_reward_groups=True)
    selection = at_rest.select(batch.stats(), PressureAndScale(Pressure(0.0), 1.0))
    assert float(selection.probabilities[:8].abs().max()) == 0


def test_the_floor_reaches_the_probabilities():
    high = controller(0.9, floor=0.4).decide(make_batch(rows=128, seed=5))
    assert float(high.probabilities.min()) == 0.4


def test_one_rollout_has_no_standard_error_and_no_strange_metric():
    batch = make_batch(rows=4, advantages=torch.ones(4))
    single = {name: value[:1] for name, value in vars(batch).items() if torch.is_tensor(value)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)  # it may be rejected
        metrics = controller().decide(replace(batch, **single)).metrics
    assert "entropy/measured_stderr" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())


# ---------------------------------------------------------------- two calls


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("effect", ["sign", "sampled", "logit"])
def test_one_choice_and_parts_of_a_batch_are_the_whole(rule, effect, weighed):
    steered = controller("linear(initial, 0.9*initial, 20)", rule, effect)
    for step in range(6):
        batch = make_batch(step, level=0.5 + 0.02 * step, optimizer_steps=2)
        if weighed:
            batch = replace(batch, token_weight=1 / batch.mask.sum(1))
        stats, place = batch.stats(), batch.step_info()
        chosen, half = steered.choose_pressure(steered.state, stats, place)
        decision, after = steered.update(steered.state, stats, place)
        assert chosen.pressure.value == decision.metrics["entropy/pressure"]
        assert (half.initial, half.scale) == (after.initial, after.scale)
        if rule == "tilt":
            assert half.feedback.entropy == decision.metrics["entropy/estimate"]
        else:
            assert half.feedback is None
        for rows in (slice(0, 4), slice(4, 24), slice(24, 32)):
            tensors = {name: part for name, part in vars(stats).items() if torch.is_tensor(part)}
            part = replace(stats, **{name: value[rows] for name, value in tensors.items()})
            selection = steered.select(part, chosen)
            np.testing.assert_allclose(
                selection.probabilities, decision.probabilities[rows], rtol=1e-12
            )
            whole = selection.advantages * decision.weights[rows]
            np.testing.assert_allclose(whole, decision.advantages[rows])
        steered.state = after


def test_an_earlier_choice_serves_later_rollouts():
    """An engine that samples asynchronously needs the last pressure and scale alone."""
    steered, old, new = controller(0.9), make_batch(0), make_batch(1)
    chosen, _ = steered.choose_pressure(steered.state, old.stats(), old.step_info())
    bare = PressureAndScale(chosen.pressure, chosen.scale)
    selection = steered.select(new.stats(), bare)
    effects = effects_of(new) / chosen.scale
    expected = torch.exp(-chosen.pressure.value * (-effects).clamp(min=0))
    np.testing.assert_allclose(selection.probabilities, expected, rtol=1e-9)


def test_who_only_observes_has_nothing_to_choose_or_to_select():
    watcher, batch = controller(rule=None), make_batch()
    with pytest.raises(ValueError, match="rule=None only observes: there is no pressure"):
        watcher.choose_pressure(watcher.state, batch.stats(), batch.step_info())
    with pytest.raises(ValueError, match="rule=None only observes: there is nothing to select"):
        watcher.select(batch.stats(), PressureAndScale(Pressure(0.0), 1.0))


# ---------------------------------------------------------------- anything goes

NUMBERS = st.sampled_from([0.0, -0.0, 1e-30, 1e30, 1.0, 0.3, 1e-8])


@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from(RULES), st.data())
def test_any_finite_batch_gets_a_sane_decision(rows, width, rule, data):
    def draw(*shape, signed=True):
        sizes = data.draw(hnp.arrays(np.float64, shape, elements=NUMBERS))
        if signed:
            signs = hnp.arrays(np.int64, shape, elements=st.sampled_from([-1, 1]))
            sizes = sizes * data.draw(signs)
        return torch.tensor(sizes)

    mask = torch.tensor(data.draw(hnp.arrays(np.bool_, (rows, width))))
    mask[data.draw(st.integers(0, rows - 1)), 0] = True
    junk = data.draw(st.sampled_from([math.nan, math.inf, -math.inf, -1e30]))
    target = data.draw(st.sampled_from([0.0, 0.5, 1e30]))
    effect = data.draw(st.sampled_from(["sign", "sampled", "logit"]))
    steered = EntropyController(target, rule, effect, selection=SelectionSettings())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        for step in (0, 5, 10):
            batch = RolloutBatch(
                step=step,
                advantages=draw(rows),
                mask=mask,
                logprobs=torch.where(mask, -draw(rows, width, signed=False), junk),
                entropies=torch.where(mask, draw(rows, width, signed=False), junk),
                sensitivity=torch.where(mask, draw(rows, width), junk),
                rewards=draw(rows),
                group=data.draw(st.sampled_from([None, torch.arange(rows) // 2])),
                optimizer_steps=data.draw(st.sampled_from([1, 0.25, 7])),
                momentum=data.draw(st.sampled_from([None, 0.0, 0.99])),
            )
            for _ in range(5):  # the memory fills
                decision = steered.decide(batch)
                change = data.draw(st.sampled_from([0.0, 1e30, -1e-30, math.nan]))
                steered.post_update(change, data.draw(st.sampled_from([0.0, 0.1, math.inf])))
            assert bool(((decision.weights == 0) | (decision.weights == 1)).all())
            assert bool(((decision.probabilities >= 0) & (decision.probabilities <= 1)).all())
            assert all(math.isfinite(value) for value in decision.metrics.values())
            if rule != "switch":
                assert bool((decision.weights[batch.advantages == 0] == 1).all())
    json.dumps(steered.state_dict(), allow_nan=False)
