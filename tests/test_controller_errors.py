"""The controller: warnings, errors, and what they must leave alone."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from entrocraft import EntropyController, EntropyControlWarning
from entrocraft.rollouts import StepInfo
from tests.batches import RULES, controller, make_batch, repeat

pytestmark = [
    pytest.mark.filterwarnings("error::entrocraft.EntropyControlWarning"),
    pytest.mark.filterwarnings("ignore:the schedule asks for:entrocraft.EntropyControlWarning"),
]

TILT = "use rule='tilt'"
JOIN = (
    "let all-correct and all-wrong groups join "
    "(selection=SelectionSettings(constant_reward_groups=True))"
)
AUTOMATIC = (
    "in TRL let the controller do so while it is needed "
    "(feedback=FeedbackSettings(learning_rate=True))"
)


# ---------------------------------------------------------------- warnings


def test_an_emptied_batch_is_flagged_and_warned_about_once():
    steered = controller(0.9, rule="sign")
    batch = make_batch(advantages=torch.ones(32))
    with pytest.warns(EntropyControlWarning, match="no rollout with a non-zero advantage") as seen:
        decisions = [steered.decide(batch) for _ in range(9)]
    assert ["asks for" in str(warning.message) for warning in seen] == [True, False]
    assert [d.metrics["entropy/empty"] for d in decisions] == [1.0] * 9
    assert [len(d.warnings) for d in decisions] == [2] + [0] * 8
    assert decisions[0].useful == 0
    assert decisions[0].metrics["entropy/kept_fraction"] == 0


def test_warnings_point_at_the_line_that_called():
    steered, batch = controller(0.9), make_batch(advantages=torch.zeros(32))
    with pytest.warns(EntropyControlWarning) as decided:
        steered.decide(batch)
    with pytest.warns(EntropyControlWarning) as loaded:
        controller(0.8).load_state_dict(steered.state_dict())
    assert [warning.filename for warning in (*decided, *loaded)] == [__file__] * 3


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_without_any_active_rollout_is_empty_but_kept(rule):
    steered = controller(0.9, rule)
    with pytest.warns(EntropyControlWarning, match="non-zero advantage"):
        first, last = repeat(steered, make_batch(advantages=torch.zeros(32)), 30)
    for decision in (first, last):
        assert bool((decision.weights == 1).all())
        assert decision.metrics["entropy/empty"] == 1
        assert decision.metrics["entropy/kept_fraction"] == 0
        assert decision.metrics["entropy/pressure"] == decision.metrics["entropy/saturated"] == 0


def test_nothing_winds_up_while_nothing_is_active():
    last = make_batch(30)
    level = last.stats().mean_entropy()
    steered = controller(lambda step: 0.9 if step < 30 else level)
    with pytest.warns(EntropyControlWarning, match="non-zero advantage"):
        repeat(steered, make_batch(advantages=torch.zeros(32)), 25)
    assert abs(steered.decide(last).metrics["entropy/pressure"]) < 4


@pytest.mark.parametrize("rule", ["tilt", "sign"])
def test_saturation_warns_once_and_not_at_the_first_step(rule):
    steered = controller(3.0, rule=rule)
    for step in range(9):
        assert steered.decide(make_batch(step)).metrics["entropy/saturated"] == 1
    with pytest.warns(EntropyControlWarning, match="entropy has been below|is being") as seen:
        repeat(steered, make_batch(), 70)
    assert len(seen) == 2
    text = str(seen[0].message)
    # the learning rate's feedback is for the rule tilt
    first, last = (f", {AUTOMATIC}", JOIN) if rule == "tilt" else ("", TILT)
    assert text.endswith(f"lower the learning rate{first}, ask for less entropy or {last}")
    resumed = controller(3.0, rule=rule)
    resumed.load_state_dict(steered.state_dict())
    for step in range(80, 120):
        resumed.decide(make_batch(step))


@pytest.mark.parametrize(
    ("target", "settings", "remedies"),
    [
        (3.0, {}, f"lower the learning rate, {AUTOMATIC}, ask for less entropy or {JOIN}"),
        (
            3.0,
            {"constant_reward_groups": True},
            f"lower the learning rate, {AUTOMATIC} or ask for less entropy",
        ),
        (
            3.0,
            {"constant_reward_groups": True, "learning_rate": True},
            "lower the learning rate or ask for less entropy",
        ),
        (0.01, {}, f"raise the learning rate, give the schedule more steps or {JOIN}"),
        (
            0.01,
            {"rule": "sign"},
            f"raise the learning rate, give the schedule more steps or {TILT}",
        ),
    ],
)
@pytest.mark.parametrize("rate", [None, 3e-5])
def test_remedies_fit_the_sign_and_what_is_in_use(target, settings, remedies, rate):
    steered, batch = controller(target, **settings), make_batch()
    place = replace(batch.step_info(), learning_rate=rate)
    texts = []
    for _ in range(10):
        decision, steered.state = steered.update(steered.state, batch.stats(), place)
        texts += decision.warnings
    if rate is not None:
        remedies = remedies.replace(" the learning rate", " the learning rate (now 3e-05)", 1)
    assert texts[-1].endswith(f"Rejection alone cannot do more: {remedies}")


def test_batches_at_the_limit_count_by_their_optimizer_steps():
    steered = controller(3.0, learning_rate=True)
    for number, factor in ((1, 0.8**3), (2, 0.8**6)):
        decision = steered.decide(make_batch(optimizer_steps=3))
        assert steered.state.monitor.saturated_in_a_row == 3 * number
        assert decision.learning_rate_factor == pytest.approx(factor)
    within = controller("initial", learning_rate=True)
    within.state = replace(within.state, learning_rate_factor=0.5)
    batch = make_batch(optimizer_steps=3)
    assert within.decide(batch).learning_rate_factor == pytest.approx(0.5 * 1.05**3)


def test_saturation_that_comes_and_goes_is_no_warning():
    steered = controller(0.5, rule="sign")
    for step in range(60):
        steered.decide(make_batch(step, level=0.5 if step % 10 == 0 else 0.7))


def test_an_update_returns_its_warnings_and_gives_none():
    steered, batch = controller(0.9, "sign"), make_batch(advantages=torch.ones(32))
    decision, after = steered.update(steered.state, batch.stats(), batch.step_info())
    assert [text.split()[0] for text in decision.warnings] == ["the", "no"]
    assert after.monitor.warned == ("empty",)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": -0.1}, "-0.1 nats per token cannot be reached"),
        ({"schedule": "linear(0.6)"}, "not a schedule: 'linear(0.6)'"),
        ({"schedule": [0.5]}, "schedule [0.5] is no callable, text or number"),
        ({"schedule": True}, "schedule True is no callable, text or number"),
        ({"schedule": None}, "a rule needs a schedule, e.g. schedule='linear(initial, 0.3, 300)'"),
        ({"rule": "tild"}, "unknown rule 'tild'; choose one of tilt, sign, switch or None"),
        ({"rule": 42}, "rule is 42; it has to be text"),
        ({"effect": "guess"}, "unknown effect level 'guess'; choose one of sign, sampled, logit"),
        ({"effect": "gradient"}, "unknown effect level 'gradient'; choose one of sign, sampled"),
        (
            {"rule": "sign", "constant_reward_groups": True},
            "constant_reward_groups needs rule='tilt', got 'sign'",
        ),
        ({"rule": "sign", "band": (0.1, -0.1)}, "lower bound 0.1 is above its upper bound -0.1"),
        ({"rule": "tilt", "band": (0.1, -0.1)}, "lower bound 0.1 is above its upper bound -0.1"),
        ({"rule": "sign", "band": -1}, "half-width of at least 0 nats, got -1"),
        ({"remeasure": 1.5}, "remeasure is a share of the prompts, 0 to 1, got 1.5"),
        ({"remeasure": -0.1}, "remeasure is a share of the prompts, 0 to 1, got -0.1"),
        ({"remeasure": math.nan}, "remeasure is nan; it has to be a finite number"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        controller(**settings)


def test_targets_are_checked_before_any_update():
    for schedule, message in (
        ("linear(0.6, 8, 100)", "at step 86, above log(vocabulary) = 6.908"),
        (lambda step: 0.5 - 0.01 * step, "nats per token at step 51; a target must be finite and"),
        (lambda step: math.nan if step == 99 else 0.5, "asks for nan nats per token at step 99"),
        ("exponential(9, 0.1, 10)", "asks for 9 nats per token at step 0, above log(vocabulary)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            controller(schedule).prepare(vocabulary=1000, steps=100)
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
    assert sinking.initial is None


def test_the_planner_asks_for_no_target_after_the_end():
    levels = [0.5, 0.5, 0.5, 0.5]
    steered = controller(lambda step: levels[step])
    steered.prepare(steps=3)
    for step in range(3):
        steered.decide(make_batch(step))


def spoilt(name, value):
    values = getattr(make_batch(), name).clone()
    values.view(32, -1)[5, 0] = value
    return {name: values}


LOGIT = {"effect": "logit"}
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
    (LOGIT, {"sensitivity": None}, "effect level 'logit' needs RolloutBatch.sensitivity"),
    ({"rule": "switch"}, {"rewards": None}, "put RolloutBatch.rewards (B,) into the batch"),
    ({"constant_reward_groups": True}, {"rewards": None}, "constant_reward_groups trains on raw"),
    ({"constant_reward_groups": True}, {"group": None}, "constant_reward_groups trains on raw"),
    ({}, {"optimizer_steps": 0}, "optimizer_steps must be above 0 and at most 100000, got 0"),
    ({}, {"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
    ({}, {"step": math.nan, "seed": 0}, "step is nan; it has to be a whole number"),
    ({"schedule": lambda step: -1.0}, {}, "asks for -1.0 nats per token"),
    ({"schedule": lambda step: 0.5 if step < 4 else math.nan}, {}, "asks for nan nats per token"),
]


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize(
    ("options", "changes", "message"), BAD_BATCHES, ids=[case[2][:40] for case in BAD_BATCHES]
)
def test_a_decision_that_raises_changes_nothing(options, changes, message, used):
    steered = controller(**({"schedule": "constant(initial)"} | options))
    if used and "schedule" not in options:
        repeat(steered, make_batch(), 12)
    before, state = json.dumps(steered.state_dict()), steered.state
    with pytest.raises(ValueError, match=re.escape(message)):
        steered.decide(make_batch(**({"step": 3} | changes)))
    assert steered.state is state
    assert json.dumps(steered.state_dict()) == before


def test_an_update_whose_target_is_above_the_vocabulary_changes_nothing():
    steered = controller(lambda step: 0.5 if step < 5 else 9.0)
    steered.prepare(vocabulary=1000)
    steered.decide(make_batch())
    before = json.dumps(steered.state_dict())
    for step in (1, 5):  # the plan of step 1 looks at the target of step 5
        batch = make_batch(step)
        with pytest.raises(ValueError, match=re.escape("above log(vocabulary) = 6.908")):
            steered.update(steered.state, batch.stats(), batch.step_info())
    assert json.dumps(steered.state_dict()) == before


def test_stats_need_their_place_in_the_run():
    stats, steered = make_batch().stats(), controller()
    with pytest.raises(ValueError, match=re.escape("give step=StepInfo(...)")):
        steered.decide(stats)
    with pytest.raises(
        ValueError, match="optimizer_steps must be above 0 and at most 100000, got 0"
    ):
        steered.decide(stats, StepInfo(0, 0))
    assert steered.state_dict() == controller().state_dict()


def test_stats_decide_as_their_batch():
    batch = make_batch(7, optimizer_steps=3, momentum=0.5)
    one, two = controller(0.53), controller(0.53)
    a, b = one.decide(batch), two.decide(batch.stats(), StepInfo(7, 3, 0.5))
    assert torch.equal(a.weights, b.weights)
    assert a.metrics == b.metrics
    assert one.state_dict() == two.state_dict()


def test_the_schedule_is_indexed_by_the_optimizer_step():
    steered = controller("linear(0.6, 0.3, 300)")
    for step in (0, 150, 300, 20):
        metrics = steered.decide(make_batch(step, optimizer_steps=4)).metrics
        assert metrics["entropy/target"] == pytest.approx(0.6 - 0.001 * step)


def test_a_warning_turned_into_an_error_is_a_decision_that_never_happened():
    steered, batch = controller(0.9, rule="sign"), make_batch(advantages=torch.ones(32))
    before = steered.state_dict()
    with pytest.raises(EntropyControlWarning):
        steered.decide(batch)
    assert steered.state_dict() == before


def test_a_number_of_another_type_is_a_constant_target():
    assert EntropyController(np.float32(0.5)).target(7) == 0.5
