"""The controller: states that it refuses, and states of the first version."""

import json
import math
import warnings
from copy import deepcopy

import pytest
import torch

from entrocraft import EntropyControlWarning
from tests.batches import RULES, controller, make_batch, repeat

pytestmark = [
    pytest.mark.filterwarnings("error::entrocraft.EntropyControlWarning"),
    pytest.mark.filterwarnings("ignore:the schedule asks for:entrocraft.EntropyControlWarning"),
]


@pytest.mark.parametrize("state", [{}, None, [], {"version": 1}, {"version": [3]}, "state"])
def test_what_is_no_state(state):
    steered = controller()
    with pytest.raises(ValueError, match="not a controller state of version 3"):
        steered.load_state_dict(state)


HUGE = 10**400
UNCHECKED = [
    *(("feedback.first_gain", value) for value in (0.0, -5.0)),
    ("monitor.warned", "saturated"),
    ("scale", -5.0),
    ("decisions", -1),
]
BROKEN = [
    *(("decisions", value) for value in (None, "many", math.nan, math.inf, [])),
    *(("initial", value) for value in ("half", math.nan, math.inf, HUGE, [0.5])),
    *(("scale", value) for value in (None, "large", math.nan, -math.inf, HUGE, {})),
    *(("feedback", value) for value in (None, {}, [], "state", 7)),
    *(("feedback.first", value) for value in ("half", math.nan, HUGE, [])),
    *(("feedback.first_gain", value) for value in ("half", math.inf, HUGE)),
    *(("feedback.steps", value) for value in ("one", math.nan, HUGE)),
    *(("feedback.mean", value) for value in (None, [], [0.0] * 7, ["x"] * 8, [math.nan] * 8)),
    ("feedback.mean", [HUGE] * 8),
    *(("feedback.covariance", value) for value in (None, [], [[0.0] * 8] * 7, [0.0] * 8)),
    ("feedback.covariance", [[math.inf] * 8] * 8),
    *(("monitor", value) for value in (None, {}, [], "state")),
    *(("monitor.saturated_in_a_row", value) for value in (None, "x", math.nan, math.inf)),
    *(("monitor.warned", value) for value in (None, 7)),
    *(("monitor.gap", value) for value in (None, "wide", math.nan, HUGE)),
    *(("beyond", value) for value in (None, "many", math.inf, -1)),
    *UNCHECKED,
]
FACTORS = [None, "0.5", math.nan, math.inf, HUGE, 0.0, -0.5, 1.5, [1.0], {}]
BROKEN_PARTS = [
    *(("learning_rate_factor", value) for value in FACTORS),
    *(("last", value) for value in (False, 0, 7.5, "state", [], {})),
    *(("last.measured", value) for value in (None, "half", math.nan, -math.inf, HUGE, [0.5])),
    *(("last.size", value) for value in (None, "large", math.nan, math.inf, HUGE, -1.0, [])),
    *(("last.sums", value) for value in (None, 1.0, "x", [], [[0.0, 0.0]] * 32, [[0.0] * 3] * 33)),
    *(("last.sums", [[value, 0.0]] * 33) for value in (None, "x", math.nan, math.inf, HUGE)),
    *(("last.means", value) for value in (None, 7, [], "means", {}, {"tokens": 3.0})),
    *(("last.means.tokens", value) for value in (None, "x", math.nan, HUGE, 0.0, -3.0)),
    *(("last.means.weight", value) for value in (None, "x", math.inf, 0.0)),
    *(("last.means.logprob", value) for value in (None, "x", math.nan, HUGE, [0.0])),
    ("last.means.other", 1.0),
    *(("last.limit", value) for value in (None, "x", math.nan)),
]


def put(state, path, change):
    """Copy of a state with one change at a dotted path."""
    state = deepcopy(state)
    *above, last = path.split(".")
    inner = state
    for name in above:
        inner = inner[name]
    change(inner, last)
    return state


def in_parts():
    """Controller that has decided on batches in their loss."""
    steered = controller(0.45, learning_rate=True)
    for step in range(3):
        stats, place = make_batch(step).stats(), make_batch(step).step_info()
        chosen = steered.begin(place)
        weights, _ = steered.decide_part(stats, chosen, 0)
        steered.finish(stats, place, chosen, weights)
    return steered


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(path, value, id=f"{path}={str(value)[:12]}")
        for path, value in [*BROKEN, *BROKEN_PARTS]
    ],
)
def test_a_broken_state_is_refused_and_changes_nothing(path, value):
    steered = in_parts()
    before, state = json.dumps(steered.state_dict()), steered.state
    broken = put(steered.state_dict(), path, lambda inner, name: inner.update({name: value}))
    with pytest.raises(ValueError, match="state does not fit EntropyController"):
        steered.load_state_dict(broken)
    assert steered.state is state
    assert json.dumps(steered.state_dict()) == before


@pytest.mark.parametrize("version", [2, 3])
def test_a_state_with_a_part_missing_is_refused_and_changes_nothing(version):
    steered = controller()
    repeat(steered, make_batch(), 3)
    whole, before = steered.state_dict(), json.dumps(steered.state_dict())
    paths = ["decisions", "scale", *(f"feedback.{name}" for name in whole["feedback"])]
    paths += ["initial", "feedback", "monitor", *(f"monitor.{name}" for name in whole["monitor"])]
    if version == 2:
        whole |= {"version": 2, "goal": {"initial": whole["initial"]}, **whole["monitor"]}
        whole |= {"observer": whole["feedback"], "feedback": {"saturated": False}}
        del whole["initial"], whole["monitor"]
        paths = ["decisions", "scale", "goal", "goal.initial", "observer", "observer.mean"]
        paths += ["saturated_in_a_row", "warned"]
    for path in paths:
        with pytest.raises(ValueError, match="state does not fit EntropyController"):
            steered.load_state_dict(put(whole, path, lambda inner, name: inner.pop(name)))
        assert json.dumps(steered.state_dict()) == before, path


def test_a_last_batch_with_a_part_missing_is_refused():
    steered = in_parts()
    whole, before = steered.state_dict(), json.dumps(steered.state_dict())
    names = [*whole["last"], *(f"means.{name}" for name in whole["last"]["means"])]
    for name in names:
        with pytest.raises(ValueError, match="state does not fit EntropyController"):
            steered.load_state_dict(put(whole, f"last.{name}", lambda inner, key: inner.pop(key)))
        assert json.dumps(steered.state_dict()) == before, name


def test_a_last_batch_of_another_largest_pressure_is_forgotten():
    """Its response is for pressures up to that one."""
    steered, other = in_parts(), controller(0.45, learning_rate=True, limit=4.0)
    with pytest.warns(EntropyControlWarning, match=r"limit=8\.0.* this one is .*limit=4\.0"):
        other.load_state_dict(steered.state_dict())
    assert other.state.last is None
    assert other.state.feedback.entropy == steered.state.feedback.entropy


def test_a_state_without_the_new_keys_is_one_that_decided_before_the_loss():
    steered = in_parts()
    state = steered.state_dict()
    del state["last"], state["learning_rate_factor"]
    steered.load_state_dict(state)
    assert steered.state.last is None
    assert steered.state.learning_rate_factor == 1.0


def test_a_state_of_another_rule_is_refused_and_changes_nothing():
    steered, other = controller(), controller(rule="sign", band=1)
    steered.decide(make_batch())
    other.decide(make_batch())
    before = steered.state_dict()
    with pytest.raises(ValueError, match=r"does not fit .*resume with the rule that wrote it"):
        steered.load_state_dict(other.state_dict())
    assert steered.state_dict() == before


def test_a_start_that_makes_the_schedule_impossible_is_told_as_that():
    first = controller("constant(initial)")
    first.decide(make_batch(level=0.3))
    second = controller("initial - 0.5")
    with pytest.raises(ValueError, match="a target must be finite and at least 0"):
        second.load_state_dict(first.state_dict())
    assert second.target(0) is None


def test_a_warning_turned_into_an_error_loads_nothing():
    first, second = controller(0.5), controller(0.6)
    first.decide(make_batch())
    with pytest.raises(EntropyControlWarning):
        second.load_state_dict(first.state_dict())
    assert second.state_dict() == controller(0.6).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        second.load_state_dict(first.state_dict())
    assert second.state.decisions == 1


# ---------------------------------------------------------------- entrocraft 0.1.0


def version_2(state):
    """Write a state as entrocraft 0.1.0 did."""
    return {
        "version": 2,
        "settings": "EntropyController(...) with RecedingHorizon(4, limit=8)",
        "decisions": state["decisions"],
        "goal": {"initial": state["initial"]},
        "scale": state["scale"],
        "feedback": {"saturated": True, "shortfall": -0.18},
        "observer": state["feedback"] or controller().state_dict()["feedback"],
        **state["monitor"],
    }


@pytest.mark.parametrize("rule", [*RULES, None])
@pytest.mark.parametrize("cut", [0, 13])
def test_a_state_of_the_first_version_is_read_with_one_warning(rule, cut):
    first, second = (controller("linear(initial, 0.8*initial, 30)", rule, seed=4) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        for step in range(cut):
            first.decide(make_batch(step))
    old = json.loads(json.dumps(version_2(first.state_dict())))
    with pytest.warns(EntropyControlWarning, match=r"entrocraft 0\.1\.0") as seen:
        second.load_state_dict(old)
    assert len(seen) == 1
    expected = first.state_dict()
    expected["monitor"]["gap"] = 0.0  # which the first version did not know
    assert second.state_dict() == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        one, two = (steered.decide(make_batch(cut)) for steered in (first, second))
    assert torch.equal(one.weights, two.weights)
    assert one.metrics == two.metrics


def test_a_state_of_the_first_version_as_it_was_written():
    """Numbers of a real run, rounded: two decisions at the level `sampled`, seed 3."""
    rows = [[0.0] * 8 for _ in range(8)]
    for index, value in enumerate([1e-6, 1e-5, 7.29e-6, 210.0, 190.0, 3e-6, 5e-7, 8e-7]):
        rows[index][index] = value
    state = {
        "version": 2,
        "settings": "EntropyController(schedule=linear(initial, 0.8*initial, 30), rule='tilt', "
        "effect='sampled', seed=3) with RecedingHorizon(4, limit=8)",
        "decisions": 2,
        "goal": {"initial": 0.9},
        "scale": 0.0034,
        "feedback": {"saturated": True, "shortfall": -0.0246},
        "observer": {
            "first": 0.9,
            "first_gain": 12.5,
            "mean": [0.8975, -0.0031, -0.0004, 12.6, 12.4, 0.0, 0.0, 0.899],
            "covariance": rows,
            "steps": 1.0,
        },
        "saturated_in_a_row": 2,
        "warned": [],
    }
    steered = controller("linear(initial, 0.8*initial, 30)", seed=3)
    with pytest.warns(EntropyControlWarning, match="its state is read for one release$"):
        steered.load_state_dict(json.loads(json.dumps(state)))
    assert steered.initial == 0.9
    assert steered.state.decisions == 2
    assert steered.state.monitor.saturated_in_a_row == 2
    decision = steered.decide(make_batch(2, level=0.88))
    assert decision.metrics["entropy/target"] == pytest.approx(0.9 - 0.18 * 2 / 30)
    assert 0.88 < decision.metrics["entropy/estimate"] < 0.9
    assert decision.metrics["entropy/gain_positive"] == pytest.approx(12.6, rel=0.2)
    assert steered.state_dict()["version"] == 3
    assert math.isfinite(decision.metrics["entropy/shortfall"])


def test_a_state_of_0_1_0_at_another_effect_level_says_so():
    steered = controller(effect="sampled")
    state = steered.state_dict()
    old = {
        "version": 2,
        "settings": "EntropyController(schedule=constant(0.5), effect='logit', seed=0)",
        "decisions": 3,
        "goal": {"initial": 0.5},
        "scale": 0.1,
        "feedback": {"saturated": False, "shortfall": 0.0},
        "observer": state["feedback"],
        "saturated_in_a_row": 0,
        "warned": [],
    }
    with pytest.warns(EntropyControlWarning) as seen:
        steered.load_state_dict(old)
    assert str(seen[0].message) == (
        "the checkpoint is of entrocraft 0.1.0; its state is read for one release; it was written "
        "at another effect level than 'sampled', whose scale and gains have another unit: give "
        "effect='...' (the default was 'logit')"
    )
