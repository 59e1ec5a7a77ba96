"""The controller: decisions, memory, errors, and what it must never do."""

import json
import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from entrocraft import EntropyController, EntropyControlWarning, RolloutBatch, schedules
from entrocraft.acceptance import Verdict
from entrocraft.feedback import ProportionalIntegral

RULES = ("tilt", "sign", "switch")


def make_batch(step=0, rows=32, width=6, level=0.5, seed=None, **changes) -> RolloutBatch:
    generator = torch.Generator().manual_seed(step if seed is None else seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    rewards = (normal(rows) > 0).double()
    advantages = rewards - rewards.view(-1, 4).mean(1).repeat_interleave(4)
    batch = RolloutBatch(
        step=step,
        advantages=advantages,
        mask=torch.arange(width) < lengths[:, None],
        logprobs=-normal(rows, width).abs(),
        entropies=(level + 0.02 * normal(rows, width)).clamp(min=0),
        sensitivity=0.1 * normal(rows, width),
        rewards=rewards,
        group=torch.arange(rows) // 4,
    )
    return replace(batch, **changes)


def effects_of(batch: RolloutBatch) -> torch.Tensor:
    token_sums = torch.where(batch.mask, batch.sensitivity, 0.0).sum(1)
    return batch.advantages * token_sums / batch.mask.sum()


def controller(schedule=0.5, **settings) -> EntropyController:
    return EntropyController(schedule, **({"seed": 0} | settings))


@pytest.fixture(autouse=True)
def _no_warning_unless_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("error", EntropyControlWarning)
        yield


# ---------------------------------------------------------------- what a decision does


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


@pytest.mark.parametrize("renormalise", ["rollouts", "tokens"])
def test_renormalisation_restores_the_size_of_the_batch(renormalise):
    batch = make_batch()
    plain = controller(0.53).decide(batch)
    scaled = controller(0.53, renormalise=renormalise).decide(batch)
    size = torch.ones(32) if renormalise == "rollouts" else batch.mask.sum(1).double()
    assert torch.equal(plain.weights > 0, scaled.weights > 0)
    assert float((scaled.weights * size).sum()) == pytest.approx(float(size.sum()))
    assert 1 < float(scaled.weights.max()) < 10


def test_renormalisation_counts_rejected_votes_only():
    class NoDeadWeight:
        name, effect, relay = "no-dead-weight", "sign", False

        def judge(self, ballot, pressure):
            return Verdict((ballot.advantages > 0).double(), ballot.advantages)

    advantages = torch.tensor([1.0, -1.0, 0.0, 0.0] * 8)
    steered = controller(rule=NoDeadWeight(), renormalise="rollouts")
    decision = steered.decide(make_batch(advantages=advantages))
    # 24 of 32 rollouts are kept or had nothing to say
    np.testing.assert_allclose(decision.weights, [32 / 24, 0, 0, 0] * 8)


def test_renormalisation_is_bounded():
    advantages = torch.full((32,), 1.0, dtype=torch.float64)
    advantages[0] = -1
    batch = make_batch(advantages=advantages)
    with pytest.warns(EntropyControlWarning, match="saturated"):
        _, decision = repeat(controller(0.9, rule="sign", renormalise="rollouts"), batch, 20)
    assert decision.weights.max() == 10


def repeat(steered, batch, times):
    decisions = [steered.decide(replace(batch, step=step)) for step in range(times)]
    return decisions[0], decisions[-1]


def test_metrics_are_finite_floats_and_complete():
    keys = {"measured", "measured_stderr", "target", "estimate", "pressure", "kept_fraction",
            "saturated", "shortfall", "empty", "gain_positive", "gain_negative", "drift",
            "chosen_change", "predicted_change", "authority_up", "authority_down"}  # fmt: skip
    steered = controller("linear(initial, 0.2, 100)")
    for step in range(30):
        batch = make_batch(step, level=1.0 - 0.01 * step, drift=-0.005)
        metrics = steered.decide(batch).metrics
        assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
        assert set(metrics) == {f"entropy/{key}" for key in keys}


def test_authority_is_what_the_strongest_pressure_would_add():
    for batch in (make_batch(seed=1), make_batch(seed=2, optimiser_steps=4)):
        steered = controller()
        metrics = steered.decide(batch).metrics
        effects = batch.optimiser_steps * effects_of(batch)
        gain = metrics["entropy/gain_positive"]
        assert gain == metrics["entropy/gain_negative"], "nothing is learnt from one batch"
        # the first guess: all effects together move a twentieth of the entropy
        assert gain * float(effects.abs().sum()) == pytest.approx(
            0.05 * metrics["entropy/measured"]
        )
        up, down = float(effects.clamp(min=0).sum()), float(effects.clamp(max=0).sum())
        # a share of 0.02 of the opposing rollouts stays, more of those with hardly any effect
        assert gain * up > metrics["entropy/authority_up"] > gain * (up + 0.15 * down)
        assert gain * down < metrics["entropy/authority_down"] < gain * (down + 0.15 * up)


def test_the_prediction_is_what_the_kept_rollouts_are_expected_to_do():
    steered, batch = controller(), make_batch(drift=-0.01, momentum=0.8)
    decision = steered.decide(batch)
    metrics = decision.metrics
    kept = float((decision.weights * effects_of(batch)).sum())
    expected = 0.2 * (metrics["entropy/gain_positive"] * kept - 0.01)
    assert metrics["entropy/predicted_change"] == pytest.approx(expected)
    chosen = metrics["entropy/gain_positive"] * kept
    assert metrics["entropy/chosen_change"] == pytest.approx(chosen)
    assert metrics["entropy/authority_down"] <= chosen <= metrics["entropy/authority_up"]


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


def test_uniform_groups_join_with_raw_rewards_to_push_the_wanted_way():
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
        joined = controller(target, uniform_groups=True).decide(batch)
        assert torch.equal(plain.advantages[:8], torch.zeros(8, dtype=torch.float64))
        used = joined.advantages[:8] != 0
        assert bool(used.any())
        assert joined.metrics["entropy/spare_used"] == int(used.sum())
        assert torch.equal(joined.advantages[:8][used], raw[used])
        assert bool((sign * raw * unit > 0)[used].all())
        wider = joined.metrics[f"entropy/authority_{'up' if sign > 0 else 'down'}"]
        assert sign * wider != 0
        kept = joined.weights[8:] > 0
        votes = batch.advantages[8:] != 0
        assert joined.metrics["entropy/kept_fraction"] == pytest.approx(
            float(kept[votes].double().mean())
        )
    at_rest = controller(0.5, uniform_groups=True, feedback=ProportionalIntegral(0.0, 0.0))
    assert float(at_rest.decide(batch).advantages[:8].abs().max()) == 0


def test_uniform_groups_need_rewards_and_groups():
    for missing in ("rewards", "group"):
        with pytest.raises(ValueError, match="uniform_groups trains on raw rewards"):
            controller(uniform_groups=True).decide(make_batch(**{missing: None}))


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
    spread = metrics["entropy/authority_up"] - metrics["entropy/authority_down"]
    free = controller(0.53).decide(make_batch()).metrics
    # only the bound on the weights, at a tenth of the probability, leaves any
    assert spread < 0.9 * (free["entropy/authority_up"] - free["entropy/authority_down"])


def test_one_rollout_has_no_standard_error_and_no_strange_metric():
    batch = make_batch(rows=4, advantages=torch.ones(4))
    single = {name: value[:1] for name, value in vars(batch).items() if torch.is_tensor(value)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)  # it may be rejected
        metrics = controller().decide(replace(batch, **single)).metrics
    assert "entropy/measured_stderr" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())


# ---------------------------------------------------------------- randomness and memory


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
    measured = make_batch(level=0.5).sums().mean_entropy()
    assert two.decide(make_batch(1)).metrics["entropy/target"] == pytest.approx(measured)
    two.load_state_dict(controller("constant(initial)").state_dict())
    fresh = make_batch(1, level=0.7)
    assert two.decide(fresh).metrics["entropy/target"] == pytest.approx(fresh.sums().mean_entropy())


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
        pytest.raises(ValueError, match=r"does not fit .* feedback RecedingHorizon"),
    ):
        steered.load_state_dict(other.state_dict())
    assert steered.state_dict() == before


def test_the_schedule_is_indexed_by_the_optimiser_step():
    steered = controller("linear(0.6, 0.3, 300)")
    for step in (0, 150, 300, 20):
        metrics = steered.decide(make_batch(step, optimiser_steps=4)).metrics
        assert metrics["entropy/target"] == pytest.approx(0.6 - 0.001 * step)


def test_sums_decide_as_their_batch():
    batch = make_batch(7, optimiser_steps=3, drift=0.01)
    one, two = controller(0.53), controller(0.53)
    a = one.decide(batch)
    b = two.decide(batch.sums(), step=7, optimiser_steps=3, drift=0.01)
    assert torch.equal(a.weights, b.weights)
    assert a.metrics == pytest.approx(b.metrics)
    assert one.state_dict() == two.state_dict()


# ---------------------------------------------------------------- warnings


def test_an_emptied_batch_is_flagged_and_warned_about_once():
    steered = controller(0.9, rule="sign")
    batch = make_batch(advantages=torch.ones(32))
    with pytest.warns(EntropyControlWarning, match="no rollout with a non-zero advantage") as seen:
        decisions = [steered.decide(batch) for _ in range(10)]
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert [d.metrics["entropy/empty"] for d in decisions] == [1.0] * 10
    assert decisions[0].useful == 0
    assert decisions[0].metrics["entropy/kept_fraction"] == 0


def test_a_batch_without_any_vote_is_empty_but_kept():
    with pytest.warns(EntropyControlWarning, match="non-zero advantage"):
        decision = controller(0.9).decide(make_batch(advantages=torch.zeros(32)))
    assert bool((decision.weights == 1).all())
    assert decision.metrics["entropy/empty"] == 1
    assert decision.metrics["entropy/kept_fraction"] == 1


@pytest.mark.parametrize("rule", ["tilt", "sign"])
def test_saturation_warns_once_and_not_at_the_first_step(rule):
    steered = controller(3.0, rule=rule)
    for step in range(10):
        assert steered.decide(make_batch(step)).metrics["entropy/saturated"] == 1
    with pytest.warns(EntropyControlWarning, match="saturated") as seen:
        repeat(steered, make_batch(), 70)
    assert len(seen) == 1
    assert ("use rule='tilt'" in str(seen[0].message)) == (rule == "sign")
    resumed = controller(3.0, rule=rule)
    resumed.load_state_dict(steered.state_dict())
    for step in range(80, 120):
        resumed.decide(make_batch(step))


def test_saturation_that_comes_and_goes_is_no_warning():
    steered = controller(0.5, rule="sign")
    for step in range(60):
        steered.decide(make_batch(step, level=0.5 if step % 10 == 0 else 0.7))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": -0.1}, "-0.1 nats per token cannot be reached"),
        ({"schedule": "linear(0.6)"}, "not a schedule: 'linear(0.6)'"),
        ({"schedule": [0.5]}, "schedule must be a callable or text, got [0.5]"),
        ({"schedule": None}, "a rule needs a schedule, e.g. schedule='linear(initial, 0.3, 300)'"),
        ({"rule": "tild"}, "unknown rule 'tild'; choose one of tilt, sign, switch or None"),
        ({"effect": "guess"}, "unknown effect level 'guess'; choose one of sign, sampled, logit"),
        ({"renormalise": "mean"}, "'none', 'rollouts' or 'tokens', got 'mean'"),
        ({"feedback": "pid"}, "unknown feedback 'pid'; choose one of plan, pi"),
        ({"rule": "sign", "feedback": "pi"}, "rule 'sign' reads a band and takes no feedback"),
        ({"rule": "sign", "uniform_groups": True}, "uniform_groups needs rule='tilt', got 'sign'"),
        ({"refresh": 0}, "refresh must be at least 1 decision, got 0"),
        ({"correction": 2}, "correction must be in [0, 1], got 2"),
        ({"rule": "sign", "band": (0.1, -0.1)}, "lower bound 0.1 is above its upper bound -0.1"),
        ({"rule": "tilt", "band": (0.1, -0.1)}, "lower bound 0.1 is above its upper bound -0.1"),
        ({"rule": "sign", "band": -1}, "half-width of at least 0 nats, got -1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EntropyController(**({"schedule": 0.5} | settings))


def test_targets_are_checked_before_any_update():
    for schedule, message in (
        ("linear(0.6, 8, 100)", "at step 86, above log(vocabulary) = 6.908"),
        (lambda step: 0.5 - 0.01 * step, "nats per token at step 51; a target must be finite and"),
        (lambda step: math.nan if step == 99 else 0.5, "asks for nan nats per token at step 99"),
        ("exponential(9, 0.1, 10)", "asks for 9 nats per token at step 0, above log(vocabulary)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            controller(schedule).prepare(vocabulary=1000, steps=100)
    with pytest.raises(ValueError, match="at step 0, above"):
        controller(8.0).prepare(vocabulary=1000)
    with pytest.raises(ValueError, match="vocabulary must be at least 1 token, got 0"):
        controller().prepare(vocabulary=0)
    controller("linear(0.6, 6.9, 100)").prepare(vocabulary=1000, steps=100)


def test_relative_targets_are_checked_with_the_first_batch():
    steered = controller("linear(initial, 20*initial, 100)")
    steered.prepare(vocabulary=1000, steps=100)
    before = steered.state_dict()
    with pytest.raises(ValueError, match=re.escape("above log(vocabulary)")):
        steered.decide(make_batch(level=0.5))
    assert steered.state_dict() == before
    assert steered.decide(make_batch(level=0.3)).metrics["entropy/target"] == pytest.approx(
        0.3, abs=0.02
    )
    sinking = controller("linear(initial, initial - 1, 100)")
    sinking.prepare(steps=100)
    with pytest.raises(ValueError, match="a target must be finite and at least 0"):
        sinking.decide(make_batch(level=0.5))


def spoilt(name, value):
    values = getattr(make_batch(), name).clone()
    values.view(32, -1)[5, 0] = value
    return {name: values}


class Broken:
    name, effect, relay = "broken", "logit", False

    def judge(self, ballot, pressure):
        raise RuntimeError("broken rule")


BAD_BATCHES = [
    ({}, spoilt("advantages", math.nan), "advantages[5] is nan"),
    ({}, spoilt("advantages", -math.inf), "advantages[5] is -inf"),
    ({}, spoilt("logprobs", math.nan), "logprobs[5, 0] is nan inside the mask"),
    ({}, spoilt("entropies", math.inf), "entropies[5, 0] is inf inside the mask"),
    ({}, spoilt("sensitivity", math.nan), "sensitivity[5, 0] is nan inside the mask"),
    ({}, {"advantages": torch.zeros(31)}, "advantages has shape (31,), expected (32,)"),
    ({}, {"sensitivity": torch.zeros(32)}, "sensitivity has shape (32,), expected (32, 6)"),
    ({}, {"mask": torch.ones(32)}, "mask must be (B, T)"),
    ({}, {"mask": torch.zeros(32, 6)}, "no response token inside its mask"),
    ({}, {"sensitivity": None}, "effect level 'logit' needs RolloutBatch.sensitivity"),
    ({"rule": "switch"}, {"rewards": None}, "put RolloutBatch.rewards (B,) into the batch"),
    ({}, {"optimiser_steps": 0}, "optimiser_steps must be above 0, got 0"),
    ({}, {"drift": math.nan}, "drift must be finite nats, got nan"),
    ({}, {"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
    ({}, {"step": math.nan, "seed": 0}, "a schedule needs a finite step, got nan"),
    ({"schedule": lambda step: -1.0}, {}, "asks for -1.0 nats per token at step 3"),
    ({"schedule": lambda step: 0.5 if step < 4 else math.nan}, {}, "asks for nan nats per token"),
    ({"rule": Broken()}, {}, "broken rule"),
]


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize(
    ("options", "changes", "message"), BAD_BATCHES, ids=[case[2][:40] for case in BAD_BATCHES]
)
def test_a_decision_that_raises_changes_nothing(options, changes, message, used):
    steered = controller(**({"schedule": "constant(initial)"} | options))
    if used and "schedule" not in options and not isinstance(options.get("rule"), Broken):
        repeat(steered, make_batch(), 12)
    before = json.dumps(steered.state_dict())
    with pytest.raises((ValueError, RuntimeError), match=re.escape(message)):
        steered.decide(make_batch(**({"step": 3} | changes)))
    assert json.dumps(steered.state_dict()) == before


def test_sums_have_their_clock_checked_too():
    sums, steered = make_batch().sums(), controller()
    with pytest.raises(TypeError, match="step"):
        steered.decide(sums)
    with pytest.raises(ValueError, match="optimiser_steps must be above 0, got 0"):
        steered.decide(sums, step=0, optimiser_steps=0)


def test_a_warning_turned_into_an_error_is_a_decision_that_never_happened():
    steered, batch = controller(0.9, rule="sign"), make_batch(advantages=torch.ones(32))
    before = steered.state_dict()
    with pytest.raises(EntropyControlWarning):
        steered.decide(batch)
    assert steered.state_dict() == before


def test_own_rules_are_rules():
    class Half:
        name, effect, relay = "half", "sampled", False

        def judge(self, ballot, pressure):
            return Verdict(torch.full_like(ballot.effects, 0.5), ballot.advantages)

    decision = controller(rule=Half()).decide(make_batch(sensitivity=None))
    assert float(decision.weights.sum()) == 16
    assert controller(rule=Half()).effect == "sampled"


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
