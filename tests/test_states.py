"""States of the controller and of every baseline, each number broken in turn."""

import copy
import json
import math
import warnings

import pytest
import torch

from entrocraft.methods import METHODS, get_method
from tests.batches import RULES, controller, make_batch

HUGE = 10**400
NO_NUMBERS = [True, "x", "3", "nan", math.nan, math.inf, -math.inf, HUGE, -HUGE, b"x"]
VALUES = [None, *NO_NUMBERS, 1e308, -1, -1.5, 2.7, 10**18, [], {}, [1.0], {"a": 1}]
OTHERS = [name for name in METHODS if get_method(name).memory]


def in_parts():
    steered = controller(0.45, learning_rate=True)
    for step in range(3):
        stats, place = make_batch(step).stats(), make_batch(step).step_info()
        chosen = steered.begin(place)
        steered.finish(stats, place, chosen, steered.decide_part(stats, chosen, 0)[0])
    return steered


def after_batches(method):
    for step in range(3):
        method.decide(make_batch(step))
    return method


MAKERS = {
    "in parts": in_parts,
    **{rule: lambda rule=rule: after_batches(controller(0.45, rule)) for rule in RULES},
    **{name: lambda name=name: after_batches(get_method(name)) for name in ["psr", *OTHERS]},
}


def paths(state, above=()):
    for key, value in state.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


def changed(state, path, value):
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return state


@pytest.mark.filterwarnings("ignore::entrocraft.EntropyControlWarning")
@pytest.mark.parametrize("name", MAKERS)
def test_a_broken_state_is_refused_or_decides_as_defined(name):
    method = MAKERS[name]()
    state = json.loads(json.dumps(method.state_dict()))
    refused = 0
    for path in paths(state):
        old = state
        for key in path:
            old = old[key]
        for value in VALUES:
            try:
                method.load_state_dict(changed(state, path, value))
            except ValueError:
                assert json.loads(json.dumps(method.state_dict())) == state, (path, value)
                refused += 1
                continue
            is_number = isinstance(old, (int, float)) and path != ("version",)
            assert not (is_number and value in NO_NUMBERS), (path, value)
            decision = method.decide(make_batch(3))
            assert all(map(math.isfinite, decision.metrics.values())), (path, value)
            assert bool(torch.isfinite(decision.advantages).all()), (path, value)
            json.dumps(method.state_dict(), allow_nan=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                method.load_state_dict(state)
    assert refused > 20
