"""Settings by their declared types, and values of batches that no decision can be made on."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from entrocraft import EntropyController, FeedbackSettings, SelectionSettings
from entrocraft.feedback import Guard, Target
from entrocraft.methods import METHODS, get_method
from entrocraft.rollouts import StepInfo
from entrocraft.settings import ControlSettings
from entrocraft.typed import check_type
from tests.batches import controller, make_batch

HUGE = 10**5000


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, [0, -3, np.int64(2)], [True, 1.0, "1", None, [1], HUGE]),
        (float, [0, 1.5, np.float32(2)], [True, math.nan, math.inf, "1", None, HUGE, 1j]),
        (bool, [True], [1, "true", "none", None]),
        (float | str | None, [0.5, "initial", None], [True, [0.5], {}]),
        (dict[str, float], [{}, {"a": 1}], [{5: 1}, {"a": "x"}, [], None]),
        (list[int], [[], [1, 2]], [[1.5], "12", 1, None]),
        (tuple[float, float], [(0, 1), [0.5, 1]], [(1,), (0, 1, 2), ("a", 1), 3]),
        (Path | None, [None, "x", Path("x")], [5, ["x"]]),
    ],
)
def test_values_fit_their_type_or_are_named(kind, good, bad):
    for value in good:
        check_type("key", value, kind)
    for value in bad:
        with pytest.raises(ValueError, match=r"^key is .*; it has to be "):
            check_type("key", value, kind)


@pytest.mark.parametrize(
    "make",
    [
        lambda v: FeedbackSettings(horizon=v),
        lambda v: FeedbackSettings(limit=v),
        lambda v: FeedbackSettings(band=v),
        lambda v: FeedbackSettings(learning_rate=v),
        lambda v: SelectionSettings(floor=v),
        lambda v: SelectionSettings(constant_reward_groups=v),
        lambda v: Guard(low=v),
        lambda v: Guard(low=0.1, batches=v),
        lambda v: Guard(low=0.1, action=v),
        lambda v: StepInfo(v),
        lambda v: StepInfo(0, v),
        lambda v: StepInfo(0, momentum=v),
        lambda v: ControlSettings(rule=v).build(0),
        lambda v: ControlSettings(feedback=v),
        lambda v: ControlSettings(options=v),
        lambda v: controller(remeasure=v),
        lambda v: controller(seed=v),
        lambda v: controller(extra_pass=v),
        lambda v: controller(guard=v),
        lambda v: controller(effect=v),
        lambda v: EntropyController(0.5, v),
        lambda v: EntropyController(0.5, feedback=v),
        lambda v: EntropyController(0.5, selection=v),
        lambda v: get_method("qae", quantile=v),
        lambda v: get_method("clip_cov", seed=v),
        lambda v: get_method("dppo", divergence=v),
    ],
)
def test_settings_of_a_wrong_type_are_value_errors(make):
    for value in ("none", b"x", [], [1, "x"], object(), -math.inf, HUGE, math.nan, 1j):
        with pytest.raises(ValueError, match=r"."):
            make(value)


BROKEN = {
    "inf reward": {"rewards": torch.full((32,), math.inf)},
    "huge reward": {"rewards": torch.full((32,), 1e300, dtype=torch.float64)},
    "huge advantage": {"advantages": torch.full((32,), 1e200, dtype=torch.float64)},
    "complex": {"advantages": torch.ones(32, dtype=torch.complex64)},
    "mask nan": {"mask": torch.full((32, 6), math.nan)},
    "mask -1": {"mask": torch.full((32, 6), -1)},
    "mask 0.5": {"mask": torch.full((32, 6), 0.5)},
    "huge entropy": {"entropies": torch.full((32, 6), 1e200, dtype=torch.float64)},
    "negative weight": {"token_weight": torch.full((32,), -1.0)},
    "text": {"logprobs": [["x"]]},
    "ragged": {"logprobs": [[1.0], [1.0, 2.0]]},
    "none": {"logprobs": None},
    "steps": {"optimizer_steps": 1e9},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_value_is_refused_by_every_method(name):
    batch = replace(make_batch(), **BROKEN[name])
    for method in (controller(), *map(get_method, METHODS)):
        before = method.state_dict()
        with pytest.raises(ValueError, match=r"."):
            method.decide(batch)
        assert method.state_dict() == before


def test_weights_of_nothing_are_refused_where_they_count():
    with pytest.raises(ValueError, match=r"token_weight sums to 0 .* must be above 0"):
        controller().decide(make_batch(token_weight=torch.zeros(32)))


def test_stats_are_checked_as_batches_are():
    stats = make_batch().stats()
    with pytest.raises(ValueError, match=r"rewards\[0\] is inf"):
        replace(stats, rewards=torch.full((32,), math.inf, dtype=torch.float64))


def test_rewards_whose_mean_vanishes_are_no_advantages():
    rewards = torch.tensor([1e38, -1e38, 1e-300, 0.0] * 8, dtype=torch.float64)
    method = get_method("maxrl")
    with pytest.raises(ValueError, match=r"'maxrl' makes advantages .* not finite; scale"):
        method.decide(make_batch(rewards=rewards))
    assert method.initial is None


@pytest.mark.parametrize("rule", ["tilt", "sign"])
def test_the_largest_advantages_are_controlled_like_small_ones(rule):
    batch = make_batch()
    one = controller(0.3, rule).decide(batch)
    vast = controller(0.3, rule).decide(replace(batch, advantages=batch.advantages * 1e37))
    assert torch.equal(one.weights, vast.weights)
    assert vast.metrics["entropy/pressure"] == pytest.approx(one.metrics["entropy/pressure"])


@pytest.mark.parametrize("convert", [torch.Tensor.tolist, torch.Tensor.numpy])
def test_lists_and_arrays_are_converted(convert):
    batch = make_batch()
    names = ("advantages", "mask", "logprobs", "entropies", "rewards", "group")
    converted = replace(batch, **{name: convert(getattr(batch, name)) for name in names})
    assert torch.equal(controller().decide(converted).weights, controller().decide(batch).weights)


def test_a_very_long_run_is_checked_in_no_time():
    target = Target("linear(0.6, 0.3, 1000000000)")
    target.prepare(vocabulary=100, steps=10**9)
    assert target.at(10**9, None) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="above log"):
        Target("linear(0.6, 9, 1000000000)").prepare(vocabulary=100, steps=10**9)
