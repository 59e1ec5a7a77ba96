"""The controller: warnings, errors, and what they must leave alone."""

import json
import math
import re

import numpy as np
import pytest
import torch

from entrocraft import EntropyController, EntropyControlWarning
from entrocraft.selection.rules import Selection
from tests.batches import controller, make_batch, repeat

pytestmark = pytest.mark.filterwarnings("error::entrocraft.EntropyControlWarning")


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
        ({"renormalize": "mean"}, "'none', 'rollouts' or 'tokens', got 'mean'"),
        ({"feedback": "pid"}, "unknown feedback 'pid'; choose one of plan, pi"),
        ({"rule": "sign", "feedback": "pi"}, "rule 'sign' reads a band and takes no feedback"),
        (
            {"rule": "sign", "constant_reward_groups": True},
            "constant_reward_groups needs rule='tilt', got 'sign'",
        ),
        ({"refresh": 0}, "refresh must be a whole number of at least 1 decision, got 0"),
        ({"refresh": 1.5}, "refresh must be a whole number of at least 1 decision, got 1.5"),
        ({"rule": 42}, "unknown rule 42; choose one of tilt, sign, switch or None"),
        ({"feedback": 42}, "unknown feedback 42; choose one of plan, pi"),
        ({"rule": "sign", "feedback": 42}, "unknown feedback 42; choose one of plan, pi"),
        ({"schedule": True}, "schedule must be a callable or text, got True"),
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

    def select(self, ballot, pressure):
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
    ({}, {"optimizer_steps": 0}, "optimizer_steps must be above 0, got 0"),
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
    stats, steered = make_batch().stats(), controller()
    with pytest.raises(TypeError, match="step"):
        steered.decide(stats)
    with pytest.raises(ValueError, match="optimizer_steps must be above 0, got 0"):
        steered.decide(stats, step=0, optimizer_steps=0)


def test_a_warning_turned_into_an_error_is_a_decision_that_never_happened():
    steered, batch = controller(0.9, rule="sign"), make_batch(advantages=torch.ones(32))
    before = steered.state_dict()
    with pytest.raises(EntropyControlWarning):
        steered.decide(batch)
    assert steered.state_dict() == before


def test_own_rules_are_rules():
    class Half:
        name, effect, relay = "half", "sampled", False

        def select(self, ballot, pressure):
            return Selection(torch.full_like(ballot.effects, 0.5), ballot.advantages)

    decision = controller(rule=Half()).decide(make_batch(sensitivity=None))
    assert float(decision.weights.sum()) == 16
    assert controller(rule=Half()).effect == "sampled"


def test_a_schedule_that_fails_is_named_with_its_step():
    levels = [0.5, 0.4, 0.3]
    for schedule, cause in ((lambda step: levels[step], "IndexError"), (lambda step: None, "Type")):
        control = EntropyController(schedule)
        with pytest.raises(ValueError, match=rf"has no number for step \d \({cause}.*the last one"):
            control.prepare(steps=3)
    EntropyController(lambda step: [*levels, 0.2][step]).prepare(steps=3)


def test_a_number_of_another_type_is_a_constant_target():
    assert EntropyController(np.float32(0.5)).target(7) == 0.5
