"""The contract that every baseline keeps, and the errors of the registry."""

import dataclasses
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from entrocraft import RolloutBatch
from entrocraft.methods import METHODS, follows_target, get_method, method_class, options_of
from entrocraft.methods.token_weights import TokenMethod
from entrocraft.rollouts import StepInfo
from tests.methods.batches import MEASURED, hand_made


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_contract(name):
    method = get_method(name)
    method.prepare(vocabulary=50, steps=100)
    decision = method.decide(hand_made(), step=StepInfo(0))
    assert decision.advantages.shape == decision.weights.shape == (16,)
    assert decision.metrics["entropy/measured"] == pytest.approx(MEASURED)
    # an unscored rollout, or one without tokens, never is what is trained on
    assert decision.advantages[15] == 0
    state = json.loads(json.dumps(method.state_dict()))
    fresh = get_method(name)
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    following, repeated = (m.decide(hand_made(), step=StepInfo(1)) for m in (method, fresh))
    assert torch.equal(following.advantages, repeated.advantages)
    assert method.state_dict() == fresh.state_dict()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_where_it_comes_from(name):
    text = inspect.getdoc(method_class(name))
    assert "Source:" in text
    options = options_of(name)
    for option in options:
        assert f"    {option}:" in text, option
    if method_class(name).coefficient is not None:
        assert method_class(name).coefficient in options
    if issubclass(method_class(name), TokenMethod):
        assert method_class(name).token_scope in ("update", "batch")


def test_methods_with_a_target_follow_a_schedule():
    followers = {name for name in METHODS if follows_target(name)}
    assert followers == {
        *("adaptive_bonus", "entropic", "entropic_fork", "aent", "aepo", "mai_clip", "repo_r")
    }
    for name in METHODS:
        method = get_method(name, "linear(initial, 0.5*initial, 10)")
        metrics = method.decide(hand_made(), step=StepInfo(0)).metrics
        assert metrics["entropy/target"] == pytest.approx(MEASURED)
        assert method.target(10) == pytest.approx(MEASURED / 2)


def test_a_batch_is_decided_on_like_its_sums():
    mask = torch.ones(4, 3, dtype=torch.bool)
    batch = RolloutBatch(
        step=7,
        advantages=torch.tensor([1.0, -1.0, 0.5, -0.5]),
        mask=mask,
        logprobs=-torch.ones(4, 3),
        rewards=torch.tensor([1.0, 0.0, 1.0, 0.0]),
        group=torch.tensor([0, 0, 1, 1]),
    )
    for name in METHODS:
        whole = get_method(name, "linear(2, 1, 10)").decide(batch)
        summed = get_method(name, "linear(2, 1, 10)").decide(batch.stats(), step=StepInfo(7))
        assert torch.equal(whole.advantages, summed.advantages)
        assert whole.metrics == summed.metrics
        assert whole.metrics["entropy/target"] == pytest.approx(1.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_method("clip-cov"), "unknown method 'clip-cov'; did you mean 'clip_cov'?"),
        (lambda: get_method("nsr", weight=1), "'nsr' has no option 'weight'; it has success"),
        (lambda: get_method("dr_grpo", a=1), "'dr_grpo' has no option 'a'; it has none"),
        (lambda: get_method("psr", success=math.inf), "success is inf; use a finite number"),
        (lambda: get_method("aent", low=0.6), "high is 0.5; use a finite number at least 0.6"),
        (lambda: get_method("aent", 0.4, low=0.2), "low is 0.2, and the schedule 0.4 takes its"),
        (lambda: get_method("aent", 0.4, high=0.5), "high is 0.5.*leave it out, or have no sched"),
        (lambda: get_method("qae", quantil=1), "has no option 'quantil'; it has quantile"),
        (lambda: get_method("qae", quantile=1.5), "quantile is 1.5; use a finite number above 0"),
        (lambda: get_method("clip_higher", high=-1), "high is -1; use a finite number at least 0"),
        (lambda: get_method("erc", low=1.3), "high is 1.2; use a finite number above 1.3"),
        (lambda: get_method("steer", mode="cubic"), "mode is 'cubic'; use 'linear'"),
        (lambda: get_method("dppo", divergence="js"), "divergence is 'js'; use 'tv' or 'kl'"),
        (
            lambda: get_method("repo_r", most=1e-5),
            "most is 1e-05; use a finite number at least 0.0",
        ),
        (lambda: get_method("entropic", kp=math.nan), "kp is nan; use a finite number"),
        (lambda: get_method("entropic", -0.1), "a target of -0.1 nats per token cannot be"),
        (lambda: get_method("aepo", 9.0).prepare(vocabulary=50), "above log"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        call()


def test_a_batch_that_lacks_what_a_method_needs():
    without_rewards = dataclasses.replace(hand_made(), rewards=None)
    without_groups = dataclasses.replace(hand_made(), group=None)
    with pytest.raises(ValueError, match="'raft\\+\\+' trains on raw rewards"):
        get_method("raft++").decide(without_rewards, step=StepInfo(0))
    with pytest.raises(ValueError, match="'qae' compares the rollouts of a prompt"):
        get_method("qae").decide(without_groups, step=StepInfo(0))
    empty = dataclasses.replace(hand_made(), tokens=torch.zeros(16, dtype=torch.float64))
    with pytest.raises(ValueError, match="no response token"):
        get_method("nsr").decide(empty, step=StepInfo(0))


def test_a_decision_that_fails_changes_nothing():
    method = get_method("entropic_fork", "linear(initial, 0.5*initial, 10)")
    before = method.state_dict()
    with pytest.raises(ValueError, match="raw rewards"):
        method.decide(dataclasses.replace(hand_made(), rewards=None), step=StepInfo(0))
    assert method.state_dict() == before


def test_states_of_other_methods_are_refused():
    method = get_method("entropic")
    with pytest.raises(ValueError, match="written by the method 'aent', not by 'entropic'"):
        method.load_state_dict(get_method("aent").state_dict())
    with pytest.raises(ValueError, match="not a state of the method 'entropic'"):
        method.load_state_dict({"version": 2, "settings": "EntropyController"})


def test_the_registry_has_each_method_under_its_own_name():
    assert {name: method_class(name).name for name in METHODS} == {n: n for n in METHODS}


def test_importing_the_registry_loads_no_baseline():
    code = (
        "import sys, entrocraft.methods as m\n"
        "print([n for n in sys.modules if n.startswith('entrocraft.methods.')])\n"
        "m.get_method('erc'); print('entrocraft.methods.erc' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"]


def test_a_state_of_the_first_version_is_read():
    method = get_method("entropic", "linear(initial, 0.5*initial, 10)")
    goal, memory = {"initial": 0.7}, {"sum": 0.25, "alpha": -0.5}
    method.load_state_dict({"version": 1, "method": "entropic", "goal": goal, "memory": memory})
    assert method.state_dict().items() >= {"initial": 0.7, **memory}.items()
    assert method.target(10) == pytest.approx(0.35)


def test_what_adapters_ask_for_is_declared():
    scopes = {name: method_class(name).token_scope for name in METHODS}
    assert {name for name in METHODS if scopes[name] == "batch"} == {"clip_b", "clip_v"}
    weighing = {"entropic", "clip_cov", "kl_cov", "erc", "steer", "ce_gppo", "dppo", "repo_r"}
    assert {name for name in METHODS if scopes[name] == "update"} == weighing
    assert [name for name in METHODS if method_class(name).uses_bonus] == ["aent"]
    assert [name for name in METHODS if method_class(name).samples_more] == ["aepo"]


def test_the_page_of_baselines_says_what_their_classes_say():
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    table = {row[0].strip("`"): row[1:] for row in rows if row and row[0].startswith("`")}
    assert tuple(table) == METHODS
    for name, (_, coefficient, updates, target, source) in table.items():
        found = method_class(name)
        assert (updates == "yes") == found.needs_updates
        assert bool(target) == found.follows
        assert (
            found.own_target in (None, f"constant({target})") or float(target) == found.own_target
        )
        assert source.split()[-1] in inspect.getsource(inspect.getmodule(found))
        option, _, value = coefficient.partition(" ")
        assert option.strip("`") == (found.coefficient or "")
        if option:
            assert inspect.signature(found).parameters[found.coefficient].default == float(value)
