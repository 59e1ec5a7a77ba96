"""Another schedule in the middle of a run: obeyed, refused, kept in the state."""

import json

import pytest
import torch

from entrocraft import EntropyController, EntropyControlWarning
from entrocraft.methods import get_method
from tests.batches import effects_of, make_batch


@pytest.mark.parametrize(
    "make",
    [lambda: EntropyController("constant(0.5)"), lambda: get_method("entropic", "constant(0.5)")],
)
def test_the_next_batch_follows_the_new_schedule_and_so_does_a_resumed_run(make):
    method = make()
    before = method.state_dict()
    assert "schedule" not in before
    method.decide(make_batch(step=0))
    method.replace_schedule("linear(0.8, 0.4, 40)")
    assert method.decide(make_batch(step=10)).metrics["entropy/target"] == pytest.approx(0.7)

    resumed = make()
    resumed.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert repr(resumed.schedule) == "linear(0.8, 0.4, 40)"
    assert resumed.state_dict() == method.state_dict()
    resumed.load_state_dict(before)  # a second run from the start
    assert resumed.target(10) == 0.5


def test_levels_stay_relative_to_the_first_batch_of_the_run():
    controller = EntropyController("constant(0.5)")
    controller.decide(make_batch(step=0))
    controller.replace_schedule("constant(0.5*initial)")
    assert controller.target(5) == pytest.approx(0.5 * controller.initial)


@pytest.mark.parametrize("bad", ["liner(0.8, 0.4, 40)", "constant(9)", "constant(0.1 - initial)"])
def test_a_bad_schedule_is_refused_and_changes_nothing(bad):
    controller = EntropyController("constant(0.5)")
    controller.prepare(vocabulary=100, steps=50)
    controller.decide(make_batch(step=0))
    before = controller.state_dict()
    with pytest.raises(ValueError, match="schedule"):
        controller.replace_schedule(bad)
    assert controller.state_dict() == before
    assert controller.target(7) == 0.5


def test_a_run_that_is_given_another_first_schedule_follows_that_and_says_so():
    controller = EntropyController("constant(0.5)")
    controller.decide(make_batch(step=0))
    controller.replace_schedule("constant(0.6)")
    other = EntropyController("constant(0.4)")
    with pytest.warns(EntropyControlWarning, match=r"replaced by constant\(0\.6\)"):
        other.load_state_dict(controller.state_dict())
    assert other.target(0) == 0.4


@pytest.mark.parametrize(
    "found", [7, {"first": "constant(0.5)"}, {"first": "constant(0.5)", "now": "x"}]
)
def test_a_broken_state_is_refused(found):
    controller = EntropyController("constant(0.5)")
    with pytest.raises(ValueError, match="does not fit"):
        controller.load_state_dict(controller.state_dict() | {"schedule": found})


def test_a_decision_predicts_the_effect_of_every_rollout():
    batch = make_batch()
    effects = EntropyController("constant(0.5)").decide(batch).effects
    torch.testing.assert_close(effects, effects_of(batch))
