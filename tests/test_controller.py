"""The controller: what a decision does, whatever the batch."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from entrocraft import EntropyController, EntropyControlWarning, RolloutBatch
from entrocraft.feedback import ProportionalIntegral
from entrocraft.selection.rules import Selection
from tests.batches import RULES, controller, effects_of, make_batch, repeat

pytestmark = pytest.mark.filterwarnings("error::entrocraft.EntropyControlWarning")


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
        loop = ProportionalIntegral(proportional_gain=15.0, integral_gain=0.0)
        steered = controller(0.53, seed=seed, feedback=loop)
        effects, decision = effects_of(batch), steered.decide(batch)
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
        votes = base != 0
        kept = float((decision.weights[votes] > 0).double().mean())
        assert decision.metrics["entropy/kept_fraction"] == pytest.approx(kept)


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("rule", ["tilt", "sign"])
@pytest.mark.parametrize("effect", ["sign", "sampled", "logit"])
def test_rollouts_without_an_advantage_are_kept_and_carry_no_vote(rule, effect, target):
    batch = make_batch()
    silent = batch.advantages.clone()
    silent[::3] = 0
    without = replace(batch, advantages=silent)
    decision = controller(target, rule=rule, effect=effect).decide(without)
    assert bool((decision.weights[silent == 0] == 1).all())
    assert bool((decision.probabilities[silent == 0] == 1).all())
    # neither their number nor their tokens' sensitivity changes what happens to the others
    shaken = torch.where(silent[:, None] == 0, 1e6, batch.sensitivity)
    other = controller(target, rule=rule, effect=effect).decide(
        replace(without, sensitivity=shaken)
    )
    assert torch.equal(decision.weights, other.weights)


def test_scale_ignores_rollouts_without_a_vote():
    advantages = make_batch().advantages
    advantages[:20] = 0
    batch, steered = make_batch(advantages=advantages), controller()
    steered.decide(batch)
    expected = float(effects_of(batch)[20:].abs().mean())
    assert steered.state_dict()["scale"] == pytest.approx(expected)


def test_rule_none_keeps_everything_and_still_observes():
    watcher, batch = controller(0.9, rule=None), make_batch(sensitivity=None, rewards=None)
    decision = watcher.decide(batch)
    assert watcher.effect is None
    assert torch.equal(decision.advantages, batch.advantages)
    assert bool((decision.weights == 1).all())
    assert bool((decision.probabilities == 1).all())
    assert decision.metrics["entropy/target"] == 0.9
    assert decision.metrics["entropy/measured"] == pytest.approx(
        batch.entropies[batch.mask].mean().item()
    )
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
        assert sign.metrics["entropy/low"] == pytest.approx(target - 0.1)
        assert sign.metrics["entropy/high"] == pytest.approx(target + 0.1)


@pytest.mark.parametrize("renormalize", ["rollouts", "tokens"])
def test_renormalization_restores_the_size_of_the_batch(renormalize):
    batch = make_batch()
    plain = controller(0.53).decide(batch)
    scaled = controller(0.53, renormalize=renormalize).decide(batch)
    size = torch.ones(32) if renormalize == "rollouts" else batch.mask.sum(1).double()
    assert torch.equal(plain.weights > 0, scaled.weights > 0)
    assert float((scaled.weights * size).sum()) == pytest.approx(float(size.sum()))
    assert 1 < float(scaled.weights.max()) < 10


def test_renormalization_counts_rejected_votes_only():
    class NoDeadWeight:
        name, effect, relay = "no-dead-weight", "sign", False

        def select(self, ballot, pressure):
            return Selection((ballot.advantages > 0).double(), ballot.advantages)

    advantages = torch.tensor([1.0, -1.0, 0.0, 0.0] * 8)
    steered = controller(rule=NoDeadWeight(), renormalize="rollouts")
    decision = steered.decide(make_batch(advantages=advantages))
    # 24 of 32 rollouts are kept or had nothing to say
    np.testing.assert_allclose(decision.weights, [32 / 24, 0, 0, 0] * 8)


def test_renormalization_is_bounded():
    advantages = torch.full((32,), 1.0, dtype=torch.float64)
    advantages[0] = -1
    batch = make_batch(advantages=advantages)
    with pytest.warns(EntropyControlWarning, match="saturated"):
        _, decision = repeat(controller(0.9, rule="sign", renormalize="rollouts"), batch, 20)
    assert decision.weights.max() == 10


def test_metrics_are_finite_floats_and_complete():
    keys = {"measured", "measured_stderr", "target", "estimate", "pressure", "kept_fraction",
            "saturated", "shortfall", "empty", "gain_positive", "gain_negative", "drift",
            "chosen_change", "predicted_change", "reachable_up", "reachable_down"}  # fmt: skip
    steered = controller("linear(initial, 0.2, 100)")
    for step in range(30):
        batch = make_batch(step, level=1.0 - 0.01 * step, drift=-0.005)
        metrics = steered.decide(batch).metrics
        assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
        assert set(metrics) == {f"entropy/{key}" for key in keys}


def test_authority_is_what_the_strongest_pressure_would_add():
    for batch in (make_batch(seed=1), make_batch(seed=2, optimizer_steps=4)):
        steered = controller()
        metrics = steered.decide(batch).metrics
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
    steered, batch = controller(), make_batch(drift=-0.01, momentum=0.8)
    decision = steered.decide(batch)
    metrics = decision.metrics
    kept = float((decision.weights * effects_of(batch)).sum())
    expected = 0.2 * (metrics["entropy/gain_positive"] * kept - 0.01)
    assert metrics["entropy/predicted_change"] == pytest.approx(expected)
    chosen = metrics["entropy/gain_positive"] * kept
    assert metrics["entropy/chosen_change"] == pytest.approx(chosen)
    assert metrics["entropy/reachable_down"] <= chosen <= metrics["entropy/reachable_up"]


def test_effects_at_the_gradient_level_are_in_nats_from_the_start():
    steered = controller(effect="gradient")
    metrics = steered.decide(make_batch()).metrics
    assert metrics["entropy/gain_positive"] == metrics["entropy/gain_negative"] == 1.0


def test_nothing_winds_up_while_nothing_votes():
    loop = ProportionalIntegral(integral_gain=5.0)
    steered = controller(0.9, feedback=loop)
    silent = make_batch(advantages=torch.zeros(32))
    with pytest.warns(EntropyControlWarning, match="non-zero advantage"):
        _, last = repeat(steered, silent, 30)
    assert last.metrics["entropy/pressure"] == last.metrics["entropy/saturated"] == 0
    assert loop.state_dict()["integral"] == 0


def test_constant_reward_groups_join_with_raw_rewards_to_push_the_wanted_way():
    batch = make_batch(seed=3)
    rewards = batch.rewards.clone()
    rewards[:4], rewards[4:8], rewards[9] = 1.0, 0.0, math.nan
    advantages = rewards.nan_to_num() - 0.5
    advantages[:8] = 0
    batch = replace(batch, rewards=rewards, advantages=advantages)
    raw = torch.cat([torch.ones(4), -torch.ones(4)]).double()
    unit = torch.where(batch.mask, batch.sensitivity, 0.0).sum(1)[:8] / batch.mask.sum()
    for target, sign in ((0.9, 1), (0.1, -1)):
        plain = controller(target).decide(batch)
        joined = controller(target, constant_reward_groups=True).decide(batch)
        assert torch.equal(plain.advantages[:8], torch.zeros(8, dtype=torch.float64))
        used = joined.advantages[:8] != 0
        assert bool(used.any())
        assert joined.metrics["entropy/constant_reward_used"] == int(used.sum())
        assert torch.equal(joined.advantages[:8][used], raw[used])
        assert bool((sign * raw * unit > 0)[used].all())
        wider = joined.metrics[f"entropy/authority_{'up' if sign > 0 else 'down'}"]
        assert sign * wider != 0
        kept = joined.weights[8:] > 0
        votes = batch.advantages[8:] != 0
        assert joined.metrics["entropy/kept_fraction"] == pytest.approx(
            float(kept[votes].double().mean())
        )
    at_rest = controller(0.5, constant_reward_groups=True, feedback=ProportionalIntegral(0.0, 0.0))
    assert float(at_rest.decide(batch).advantages[:8].abs().max()) == 0


def test_constant_reward_groups_need_rewards_and_groups():
    for missing in ("rewards", "group"):
        with pytest.raises(ValueError, match="constant_reward_groups trains on raw rewards"):
            controller(constant_reward_groups=True).decide(make_batch(**{missing: None}))


def test_options_of_the_draw_reach_the_weights():
    batch = make_batch(rows=128, seed=5)
    votes = batch.advantages != 0
    soft = controller(0.53, draw=False).decide(batch)
    assert torch.equal(soft.weights, soft.probabilities)
    assert 0 < float(soft.weights.min()) < 1
    small = controller(0.53, effective_batch=20).decide(batch)
    assert abs(int((small.weights[votes] > 0).sum()) - 20) <= 1
    corrected = controller(0.53, correction=0.5).decide(batch)
    kept = corrected.weights > 0
    np.testing.assert_allclose(corrected.weights[kept], corrected.probabilities[kept] ** -0.5)


def test_full_correction_has_no_authority():
    metrics = controller(0.53, correction=1.0).decide(make_batch()).metrics
    spread = metrics["entropy/reachable_up"] - metrics["entropy/reachable_down"]
    free = controller(0.53).decide(make_batch()).metrics
    # only the bound on the weights, at a tenth of the probability, leaves any
    assert spread < 0.9 * (free["entropy/reachable_up"] - free["entropy/reachable_down"])


def test_one_rollout_has_no_standard_error_and_no_strange_metric():
    batch = make_batch(rows=4, advantages=torch.ones(4))
    single = {name: value[:1] for name, value in vars(batch).items() if torch.is_tensor(value)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)  # it may be rejected
        metrics = controller().decide(replace(batch, **single)).metrics
    assert "entropy/measured_stderr" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())


# ---------------------------------------------------------------- anything goes

NUMBERS = st.sampled_from([0.0, -0.0, 1e-30, 1e30, 1.0, 0.3, 1e-8])


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from(RULES), st.data())
def test_any_finite_batch_gets_a_sane_decision(rows, width, rule, data):
    def draw(*shape, signed=True):
        sizes = data.draw(hnp.arrays(np.float64, shape, elements=NUMBERS))
        if signed:
            sizes = sizes * data.draw(
                hnp.arrays(np.int64, shape, elements=st.sampled_from([-1, 1]))
            )
        return torch.tensor(sizes)

    mask = torch.tensor(data.draw(hnp.arrays(np.bool_, (rows, width))))
    mask[data.draw(st.integers(0, rows - 1)), 0] = True
    junk = data.draw(st.sampled_from([math.nan, math.inf, -math.inf, -1e30]))
    steered = controller(data.draw(st.sampled_from([0.0, 0.5, 1e30])), rule=rule)
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
                drift=data.draw(st.sampled_from([None, 0.0, -1e30])),
            )
            for _ in range(5):  # the memory fills: a gain needs more than ten decisions
                decision = steered.decide(batch)
            assert bool(((decision.weights == 0) | (decision.weights == 1)).all())
            assert bool(((decision.probabilities >= 0) & (decision.probabilities <= 1)).all())
            assert all(math.isfinite(value) for value in decision.metrics.values())
            if rule != "switch":
                assert bool((decision.weights[batch.advantages == 0] == 1).all())
    json.dumps(steered.state_dict(), allow_nan=False)


def test_rollouts_without_tokens_carry_no_vote():
    """A truncated rollout that the trainer masks has an advantage but nothing to train on."""
    mask = torch.ones(8, 5)
    mask[4:] = 0
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    logprobs = -torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
    sensitivity = torch.linspace(-1, 1, 40).view(8, 5)

    def decide(rows):
        controller = EntropyController("linear(0.9, 0.1, 10)", seed=3)
        batch = RolloutBatch(
            step=0,
            advantages=advantages[:rows],
            mask=mask[:rows],
            logprobs=logprobs[:rows],
            sensitivity=sensitivity[:rows],
        )
        return controller.decide(batch)

    with_empty, without = decide(8), decide(4)
    assert with_empty.metrics == pytest.approx(without.metrics)
    assert with_empty.useful == without.useful
    assert torch.equal(with_empty.weights[:4], without.weights)
    assert bool((with_empty.weights[4:] == 1).all())
