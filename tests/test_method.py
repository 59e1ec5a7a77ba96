"""The base class of all methods: it observes and changes nothing, and keeps what it measured."""

import json
import math
import re
import warnings
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from entrocraft.method import Decision, Measurement, Method, checked
from entrocraft.rollouts import StepInfo
from tests.batches import make_batch


class Observer(Method):
    name = "observer"


class Halving(Method):
    """Halves the advantages and counts its batches; refuses to go beyond the second."""

    name = "halving"
    own_target = 0.4
    count = 0

    def advantages(self, stats, seen):
        self.count += 1
        if self.count > 2:
            raise ValueError("two batches are enough")
        return 0.5 * stats.advantages

    def settings(self, seen):
        return {"beta": seen.error}

    def report(self):
        return {"entropy/count": float(self.count)}


def test_what_an_adapter_may_need_has_a_default():
    method = Method()
    assert (method.name, method.follows, method.effect) == ("", False, None)
    assert (method.token_scope, method.uses_bonus, method.samples_more) == (None, False, False)
    assert (method.remeasure, method.seed, method.hosted) == (0.0, 0, False)
    assert (method.losses, method.coefficient, method.needs_updates) == (None, None, False)
    assert method.trainer_options == {}
    assert method.stepped(0.3) == {}
    assert method.post_update(0.1, 0.01) is None
    assert method.post_update(0.1, 0.01, trained=False) is None
    for hook in (method.reweigh, method.bonus_entropy):
        with pytest.raises(NotImplementedError):
            hook(None)


def test_a_method_as_it_stands_changes_nothing():
    batch, method = make_batch(5), Method("linear(initial, 0.2, 10)")
    decision = method.decide(batch)
    assert torch.equal(decision.advantages, batch.advantages)
    assert bool((decision.weights == 1).all())
    assert torch.equal(decision.probabilities, decision.weights)
    assert decision.useful == int((batch.advantages != 0).sum())
    assert (decision.settings, decision.extra, decision.warnings) == ({}, None, ())
    measured = batch.entropies[batch.mask].mean().item()
    assert method.initial == pytest.approx(measured)
    assert decision.metrics == {
        "entropy/measured": pytest.approx(measured),
        "entropy/measured_stderr": pytest.approx(batch.stats().entropy_stderr()),
        "entropy/target": pytest.approx(measured + 0.5 * (0.2 - measured)),
        "entropy/kept_fraction": 1.0,
        "entropy/empty": 0.0,
    }


def test_decisions_are_not_shared_with_the_batch():
    batch = make_batch()
    stats = batch.stats()
    Method().decide(stats, StepInfo(0)).advantages.fill_(7.0)
    assert torch.equal(stats.advantages, batch.advantages)


def test_without_a_target_there_is_none():
    method = Method()
    assert method.schedule is None
    assert method.target(3) is None
    assert "entropy/target" not in method.decide(make_batch()).metrics
    assert Halving().target(7) == 0.4
    assert Halving(0.3).target(7) == 0.3


def test_the_first_batch_is_the_start():
    method = Method("constant(initial)")
    assert method.target(0) is None
    method.decide(make_batch(level=0.5))
    start = method.initial
    method.decide(make_batch(1, level=0.9))
    assert method.initial == method.target(1) == start


def test_the_hooks_of_a_baseline_make_the_decision():
    batch, method = make_batch(), Halving()
    decision = method.decide(batch)
    assert torch.equal(decision.advantages, 0.5 * batch.advantages)
    measured = decision.metrics["entropy/measured"]
    assert decision.settings == {"beta": pytest.approx(measured - 0.4)}
    assert decision.metrics["entropy/count"] == 1


def test_what_has_no_advantage_left_is_rejected():
    class Successes(Method):
        def advantages(self, stats, seen):
            return stats.advantages.clamp(min=0)

    batch = make_batch()
    decision = Successes().decide(batch)
    active, kept = batch.advantages != 0, batch.advantages > 0
    assert torch.equal(decision.weights, (kept | ~active).double())
    assert decision.metrics["entropy/kept_fraction"] == pytest.approx(
        int(kept.sum()) / int(active.sum())
    )
    assert decision.useful == int(kept.sum())
    nothing = Successes().decide(replace(batch, advantages=-torch.ones(32)))
    assert nothing.metrics["entropy/empty"] == 1
    assert nothing.metrics["entropy/kept_fraction"] == 0
    silent = Successes().decide(replace(batch, advantages=torch.zeros(32)))
    assert silent.metrics["entropy/kept_fraction"] == 0


def test_a_decision_that_fails_leaves_no_trace():
    method = Halving("0.9*initial")
    with pytest.raises(ValueError, match=re.escape("advantages[0] is nan")):
        method.decide(make_batch(advantages=torch.full((32,), math.nan)))
    assert method.initial is None
    for step in range(2):
        method.decide(make_batch(step))
    before = json.dumps(method.state_dict())
    with pytest.raises(ValueError, match="two batches are enough"):
        method.decide(make_batch(2))
    assert method.count == 2
    assert json.dumps(method.state_dict()) == before


def test_stats_need_their_place_in_the_run():
    stats = make_batch().stats()
    with pytest.raises(ValueError, match=re.escape("give step=StepInfo(...)")):
        Method().decide(stats)
    method = Method("linear(0.6, 0.4, 10)")
    assert method.decide(stats, StepInfo(5)).metrics["entropy/target"] == pytest.approx(0.5)
    batch = make_batch(2)
    assert method.decide(batch).metrics["entropy/target"] == pytest.approx(0.56)
    other = method.decide(batch, StepInfo(10))
    assert other.metrics["entropy/target"] == pytest.approx(0.4), "a position that is given counts"


def test_targets_are_checked_before_any_update_or_with_the_first_batch():
    with pytest.raises(ValueError, match="above log"):
        Method(9.0).prepare(vocabulary=100)
    with pytest.raises(ValueError, match="at step 51; a target must be finite and at least 0"):
        Method(lambda step: 0.5 - 0.01 * step).prepare(steps=60)
    method = Method("linear(initial, initial - 1, 100)")
    method.prepare(vocabulary=100, steps=100)
    with pytest.raises(ValueError, match="a target must be finite and at least 0"):
        method.decide(make_batch())
    assert method.initial is None


def test_a_decision_is_frozen():
    decision = Decision(torch.ones(1), torch.ones(1), torch.ones(1))
    assert (decision.metrics, decision.useful, decision.settings) == ({}, 0, {})
    with pytest.raises(FrozenInstanceError):
        decision.useful = 3


def test_the_error_of_a_measurement_has_a_sign():
    assert Measurement(0, 0.5, 0.3).error == pytest.approx(0.2)
    assert Measurement(0, 0.3, 0.5).error == pytest.approx(-0.2)


# ---------------------------------------------------------------- state


def test_a_resumed_method_goes_on_from_the_same_start():
    one, two = (Observer("linear(initial, 0.5*initial, 10)") for _ in range(2))
    one.decide(make_batch())
    two.load_state_dict(json.loads(json.dumps(one.state_dict(), allow_nan=False)))
    assert two.state_dict() == one.state_dict()
    assert two.decide(make_batch(3)).metrics == one.decide(make_batch(3)).metrics
    two.load_state_dict(Observer().state_dict())
    assert two.initial is None


def test_the_state_of_the_first_version_is_read():
    method = Observer("0.5*initial")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.load_state_dict(
            {"version": 1, "method": "observer", "goal": {"initial": 0.8}, "memory": {}}
        )
    assert method.initial == 0.8
    assert method.target(5) == pytest.approx(0.4)


OWN = {"version": 1, "method": "observer"}


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        "state",
        {},
        {"version": 2, "method": "observer", "initial": None},
        {"version": 1, "method": "halving", "initial": None},
        {"version": 1, "initial": None},
        OWN,
        OWN | {"initial": "half"},
        OWN | {"initial": [0.5]},
        OWN | {"initial": {}},
        OWN | {"initial": 10**400},
        OWN | {"initial": math.nan},
        OWN | {"initial": math.inf},
        OWN | {"goal": None},
        OWN | {"goal": {}},
        OWN | {"goal": {"initial": 0.5}, "memory": [1]},
    ],
    ids=lambda state: str(state)[:70],
)
def test_what_is_no_state_is_refused_and_changes_nothing(state):
    method = Observer(0.5)
    method.decide(make_batch())
    before = method.state_dict()
    with pytest.raises(ValueError, match=r"."):
        method.load_state_dict(state)
    assert method.state_dict() == before


def test_numbers_named_in_memory_survive_a_resume_with_their_type():
    class Remembering(Observer):
        memory = ("count", "last")
        _count, _last = 0, None

    one, two = Remembering(), Remembering()
    one._count, one._last = 3, 0.5
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert (two._count, two._last) == (3, 0.5)
    assert isinstance(two._count, int)
    with pytest.raises(ValueError, match="last is nan; it has to be a number"):
        two.load_state_dict(one.state_dict() | {"count": 9, "last": math.nan})
    with pytest.raises(ValueError, match=r"count is 2\.7; it has to be a whole number"):
        two.load_state_dict(one.state_dict() | {"count": 2.7})
    assert two._count == 3


def test_the_errors_of_states_name_the_remedy():
    with pytest.raises(ValueError, match="by the method 'halving', not by 'observer'; resume with"):
        Observer().load_state_dict(Halving().state_dict())
    with pytest.raises(
        ValueError, match=r"not a state of the method 'observer'.*another method or"
    ):
        Observer().load_state_dict({"version": 3})


def test_a_start_that_makes_the_schedule_impossible_loads_nothing():
    first, second = Observer(), Observer("initial - 0.6")
    first.decide(make_batch(level=0.5))
    with pytest.raises(ValueError, match="a target must be finite and at least 0"):
        second.load_state_dict(first.state_dict())
    assert second.initial is None


# ---------------------------------------------------------------- numbers of a configuration


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (math.nan, {}, "observer: k is nan; use a finite number"),
        (math.inf, {}, "observer: k is inf; use a finite number"),
        ("1", {}, "observer: k is '1'; use a finite number"),
        (True, {}, "observer: k is True; use a finite number"),
        (None, {}, "observer: k is None; use a finite number"),
        (-0.1, {"low": 0.0}, "k is -0.1; use a finite number at least 0"),
        (1.1, {"low": 0.0, "high": 1.0}, "k is 1.1; use a finite number at least 0 and at most 1"),
        (0.0, {"above": 0.0}, "k is 0.0; use a finite number above 0"),
    ],
)
def test_numbers_out_of_range_are_named(value, bounds, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        checked(Observer(), "k", value, **bounds)


def test_numbers_in_range_are_returned():
    for value, bounds in ((0, {"low": 0}), (1.0, {"high": 1.0}), (1e-9, {"above": 0}), (-3, {})):
        assert checked(Observer(), "k", value, **bounds) == value
