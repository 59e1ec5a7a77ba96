"""The controller: randomness, purity and memory."""

import json
import warnings
from dataclasses import replace

import pytest
import torch

from entrocraft import EntropyController, EntropyControlWarning, schedules
from entrocraft.feedback import Guard
from tests.batches import RULES, controller, make_batch, nearby, repeat

pytestmark = [
    pytest.mark.filterwarnings("error::entrocraft.EntropyControlWarning"),
    pytest.mark.filterwarnings("ignore:the schedule asks for:entrocraft.EntropyControlWarning"),
]


def test_the_global_generator_is_never_touched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    repeat(controller(0.6), make_batch(), 5)
    assert torch.equal(before, torch.get_rng_state())
    batch = make_batch()
    first = nearby(0.003, batch).decide(batch).weights
    torch.manual_seed(6)
    assert torch.equal(first, nearby(0.003, batch).decide(batch).weights)


def test_the_draw_depends_on_the_seed():
    def weights(seed):
        steered = controller(0.51, seed=seed)
        return torch.stack([steered.decide(make_batch(step)).weights for step in range(10)])

    assert torch.equal(weights(3), weights(3))
    assert len({tuple(weights(seed).flatten().tolist()) for seed in (-1, 0, 1, 2)}) == 4


def test_the_draw_depends_on_the_number_of_decisions():
    # only their number differs: the same batch, pressure and seed
    batch = make_batch(rows=128)
    steered, stats, place = nearby(0.004, batch), batch.stats(), batch.step_info()
    decisions = [
        steered.update(replace(steered.state, decisions=number), stats, place)[0]
        for number in range(10)
    ]
    assert all(torch.equal(d.probabilities, decisions[0].probabilities) for d in decisions)
    assert len({tuple(d.weights.tolist()) for d in decisions}) > 5


def test_the_draw_does_not_depend_on_the_step():
    batch = make_batch(rows=128)
    steered, stats, place = nearby(0.004, batch), batch.stats(), batch.step_info()
    one, two = (
        steered.update(steered.state, stats, replace(place, step=step))[0] for step in (0, 50)
    )
    assert torch.equal(one.weights, two.weights)


# ---------------------------------------------------------------- purity


@pytest.mark.parametrize("rule", [*RULES, None])
def test_an_update_changes_nothing(rule):
    steered = controller("linear(initial, 0.9*initial, 30)", rule)
    for step in range(5):
        stats, place = make_batch(step).stats(), make_batch(step).step_info()
        before, state = json.dumps(steered.state_dict()), steered.state
        (one, after), (two, again) = (steered.update(state, stats, place) for _ in range(2))
        assert steered.state is state
        assert json.dumps(steered.state_dict()) == before
        assert torch.equal(one.weights, two.weights)
        assert one.metrics == two.metrics
        decided = steered.decide(make_batch(step))
        assert torch.equal(decided.weights, one.weights)
        assert decided.metrics == one.metrics
        kept = json.dumps(steered.state_dict())
        for found in (after, again):
            steered.state = found
            assert json.dumps(steered.state_dict()) == kept
        assert after.decisions == step + 1


def test_an_old_state_can_be_used_again():
    """A trainer that goes back to an earlier step gets the decisions that it got there."""
    steered, states, decisions = controller("linear(initial, 0.9*initial, 30)"), [], []
    for step in range(8):
        states.append(steered.state)
        decisions.append(steered.decide(make_batch(step)))
    for step in (6, 2):
        again, _ = steered.update(
            states[step], make_batch(step).stats(), make_batch(step).step_info()
        )
        assert torch.equal(again.weights, decisions[step].weights)
        assert again.metrics == decisions[step].metrics


def test_a_first_choice_changes_nothing():
    steered, batch = controller("0.9*initial"), make_batch()
    before = json.dumps(steered.state_dict())
    steered.choose_pressure(steered.state, batch.stats(), batch.step_info())
    assert json.dumps(steered.state_dict()) == before


def test_measured_changes_reach_the_filter_with_their_kind():
    steered = controller("0.9*initial")
    steered.decide(make_batch())
    decided = steered.state
    for trained in (True, False):
        steered.state = decided
        steered.post_update(-0.002, 0.0005, trained)
        expected = decided.feedback.update_change(-0.002, 0.0005, trained)
        assert steered.state.feedback.state_dict() == expected.state_dict()
        assert expected.state_dict() != decided.feedback.state_dict()
    steered.state = decided
    steered.post_update(-0.002, 0.0005)
    expected = decided.feedback.update_change(-0.002, 0.0005, trained=True)
    assert steered.state.feedback.state_dict() == expected.state_dict()


def test_what_an_update_decides_the_batch_does_not_share():
    """Whoever writes into a decision changes neither the batch nor a later decision."""
    for rule in (*RULES, None):
        steered, batch = controller(0.5, rule), make_batch()
        stats, place = batch.stats(), batch.step_info()
        first, _ = steered.update(steered.state, stats, place)
        expected = first.advantages.clone(), first.weights.clone()
        for tensor in (first.advantages, first.weights, first.probabilities):
            tensor.fill_(7.0)
        again, _ = steered.update(steered.state, stats, place)
        assert torch.equal(again.advantages, expected[0])
        assert torch.equal(again.weights, expected[1])


# ---------------------------------------------------------------- memory


def make_steered(rule):
    return controller("linear(initial, 0.8*initial, 30)", rule, seed=4)


@pytest.mark.parametrize("rule", [*RULES, None])
@pytest.mark.parametrize("cut", [0, 1, 13, 29])
def test_a_resumed_run_decides_as_the_uninterrupted_one(rule, cut):
    batches = [make_batch(step, level=0.5 - 0.001 * step) for step in range(40)]

    def decide(steered, batch):
        decision = steered.decide(batch)
        steered.post_update(-0.001, 0.002, trained=batch.step % 2 == 0)
        return decision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EntropyControlWarning)
        whole = make_steered(rule)
        expected = [decide(whole, batch) for batch in batches]
        first = make_steered(rule)
        got = [decide(first, batch) for batch in batches[:cut]]
        second = make_steered(rule)
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        got += [decide(second, batch) for batch in batches[cut:]]
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a.weights, b.weights)
        assert torch.equal(a.probabilities, b.probabilities)
        assert torch.equal(a.advantages, b.advantages)
        assert a.metrics == b.metrics
    assert whole.state_dict() == second.state_dict()


def test_a_state_is_what_json_gives_back():
    steered = controller(3.0)
    with pytest.warns(EntropyControlWarning, match="at its limit"):
        repeat(steered, make_batch(), 25)
    state = steered.state_dict()
    assert json.loads(json.dumps(state)) == state
    gap = state["monitor"].pop("gap")
    assert gap == pytest.approx(make_batch().stats().mean_entropy() - 3.0)
    assert state["monitor"] == {"saturated_in_a_row": 25, "warned": ["saturated"]}


def test_a_loaded_state_brings_its_own_start():
    one, two = (controller("constant(initial)") for _ in range(2))
    one.decide(make_batch(level=0.5))
    two.decide(make_batch(level=0.9))
    two.load_state_dict(one.state_dict())
    measured = make_batch(level=0.5).stats().mean_entropy()
    assert two.initial == measured
    assert two.decide(make_batch(1)).metrics["entropy/target"] == pytest.approx(measured)
    two.load_state_dict(controller("constant(initial)").state_dict())
    fresh = make_batch(1, level=0.7)
    assert two.decide(fresh).metrics["entropy/target"] == pytest.approx(
        fresh.stats().mean_entropy()
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": 0.6}, r"constant\(0\.5\).* this one is .*0\.6"),
        ({"seed": 1}, "seed=0.* this one is .*seed=1"),
        ({"effect": "logit"}, "effect='sampled'.* this one is .*effect='logit'"),
        ({"floor": 0.1}, r"floor=0\.0.* this one is .*floor=0\.1"),
        ({"horizon": 2}, r"horizon=4.* this one is .*horizon=2"),
        ({"drop_rejected": True}, "drop_rejected=False.* this one is .*drop_rejected=True"),
        ({"extra_pass": True}, "extra_pass=False.* this one is .*extra_pass=True"),
        ({"guard": Guard(low=0.1)}, r"guard=None.* this one is .*guard=Guard\(low=0\.1"),
        ({"remeasure": 0.5}, r"remeasure=1\.0.* this one is .*remeasure=0\.5"),
    ],
)
def test_other_settings_are_told_about(changes, words):
    state = controller().state_dict()
    with pytest.warns(EntropyControlWarning, match=words):
        controller(**changes).load_state_dict(state)


def test_what_is_said_of_other_settings():
    sections = (
        "FeedbackSettings(horizon=4, limit=8.0, band=0.05, learning_rate=False), "
        "SelectionSettings(floor=0.0, constant_reward_groups=False), remeasure=1.0, "
        "extra_pass=False, drop_rejected=False, guard=None"
    )
    text = "EntropyController(schedule=constant(0.5), rule='tilt', effect='sampled', seed={})"
    with pytest.warns(EntropyControlWarning) as seen:
        controller(seed=1).load_state_dict(EntropyController(0.5).state_dict())
    assert [str(warning.message) for warning in seen] == [
        f"the checkpoint's controller was {text.format(0)} with {sections}, this one is "
        f"{text.format(1)} with {sections}; its state is used with the new settings"
    ]
    watcher = EntropyController(None, rule=None)
    assert repr(watcher) == (
        "EntropyController(schedule=None, rule=None, effect='sampled', seed=0)"
    )


def test_plain_functions_resume_without_a_false_alarm():
    def make():
        return controller(schedules.join([lambda step: 0.5, lambda step: 0.4], [10]))

    make().load_state_dict(make().state_dict())

    class Plan:
        def __call__(self, step):
            return 0.5

        def __repr__(self):
            return "<plan at 0x7F0aB9>"

    assert "schedule=<plan>, " in controller(Plan()).state_dict()["settings"]
