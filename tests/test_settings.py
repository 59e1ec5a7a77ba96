"""Settings as a section of a configuration: defaults, nested keys, and what is refused."""

import math
import re
from dataclasses import asdict

import pytest

from entrocraft import EntropyController, FeedbackSettings, SelectionSettings
from entrocraft.methods import METHODS, method_class, options_of
from entrocraft.settings import ControlSettings, settings_from_mapping


def test_the_defaults_are_the_controllers():
    built, bare = ControlSettings().build(0), EntropyController("linear(initial, 0.6*initial, 150)")
    assert isinstance(built, EntropyController)
    assert built.state_dict() == bare.state_dict()
    assert built.remeasure == bare.remeasure


@pytest.mark.parametrize("rule", ["tilt", "sign", "switch"])
def test_every_setting_reaches_the_controller(rule):
    feedback = FeedbackSettings(7, 3.0, 0.2)
    selection = SelectionSettings(floor=0.3 if rule == "tilt" else 0.0)
    settings = ControlSettings(rule, 0.4, {}, "logit", feedback, selection, 0.5)
    built = settings.build(9)
    assert isinstance(built, EntropyController)
    assert built.rule.name == rule
    assert built.target(3) == 0.4
    assert (built.effect, built.seed, built.remeasure) == ("logit", 9, 0.5)
    assert built.feedback_settings == feedback
    assert built.selection == selection


@pytest.mark.parametrize("rule", ["sign", "switch"])
def test_settings_of_tilt_are_refused_by_the_band_rules(rule):
    with pytest.raises(ValueError, match=f"floor needs rule='tilt', got '{rule}'"):
        ControlSettings(rule, 0.4, selection=SelectionSettings(floor=0.1)).build(0)
    with pytest.raises(
        ValueError, match=rf"feedback\.learning_rate needs rule='tilt', got '{rule}'"
    ):
        ControlSettings(rule, 0.4, feedback=FeedbackSettings(learning_rate=True)).build(0)


def test_rule_null_only_observes_and_needs_no_schedule():
    built = ControlSettings(rule=None, schedule=None).build(0)
    assert isinstance(built, EntropyController)
    assert built.rule is None
    assert built.schedule is None


@pytest.mark.parametrize("name", METHODS)
def test_a_baseline_by_its_name(name):
    built = ControlSettings(rule=name).build(5)
    assert isinstance(built, method_class(name))
    if "seed" in options_of(name):
        assert built.seed == 5
        assert ControlSettings(rule=name, options={"seed": 7}).build(5).seed == 7


def test_options_are_a_baselines_own():
    assert ControlSettings(rule="qae", options={"quantile": 0.7}).build(0).quantile == 0.7
    with pytest.raises(ValueError, match="a mapping from names"):
        ControlSettings(rule="qae", options={3: 0.1})
    for wrong in ("schedule", "name"):
        with pytest.raises(ValueError, match=f"the method 'qae' has no option {wrong!r}; it has"):
            ControlSettings(rule="qae", options={wrong: 0.1}).build(0)
    with pytest.raises(ValueError, match="the method 'qae' has no option 'ratio'; it has quantile"):
        ControlSettings(rule="qae", options={"ratio": 0.7}).build(0)
    for rule in ("tilt", None):
        with pytest.raises(ValueError, match="takes keys of control itself; options are for base"):
            ControlSettings(rule=rule, options={"quantile": 0.7}).build(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"effect": "logit"},
        {"feedback": FeedbackSettings(band=0.1)},
        {"selection": SelectionSettings(floor=0.1)},
        {"remeasure": 0.5},
    ],
    ids=str,
)
def test_what_a_baseline_does_not_have(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=rf"control\.{name} is .*'raft\+\+' does not have it"):
        ControlSettings(rule="raft++", **changes).build(0)


def test_an_unknown_rule_is_told_all_names():
    with pytest.raises(ValueError, match=r"unknown rule 'tild'; choose null or one of") as caught:
        ControlSettings(rule="tild").build(0)
    for name in ("tilt", "sign", "switch", *METHODS):
        assert name in str(caught.value)


# ---------------------------------------------------------------- nested keys


def test_keys_are_the_settings_of_python():
    keys = {
        "rule": "sign",
        "schedule": "linear(0.6, 0.3, 300)",
        "effect": "sampled",
        "feedback": {"band": [-0.1, 0.2]},
        "selection": {"floor": 0.1},
        "remeasure": 0.25,
    }
    expected = ControlSettings(
        "sign",
        "linear(0.6, 0.3, 300)",
        effect="sampled",
        feedback=FeedbackSettings(band=[-0.1, 0.2]),
        selection=SelectionSettings(floor=0.1),
        remeasure=0.25,
    )
    assert settings_from_mapping(keys) == expected
    assert keys["feedback"] == {"band": [-0.1, 0.2]}, "the keys are left as they are"


def test_settings_read_back_what_they_are():
    settings = ControlSettings(
        feedback=FeedbackSettings(horizon=2), selection=SelectionSettings(floor=0.1)
    )
    assert settings_from_mapping(asdict(settings)) == settings


def test_a_schedule_has_no_silent_default_in_keys():
    assert settings_from_mapping({}).schedule is None
    with pytest.raises(ValueError, match="a rule needs a schedule"):
        settings_from_mapping({}).build(0)
    assert settings_from_mapping({"schedule": 0.4}).build(0).target(9) == 0.4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"band": 0.1}, "control has no key 'band'; known are rule, schedule, options, effect, "),
        ({"feedback": {"gain": 1}}, "feedback has no key 'gain'; known are horizon, limit, band"),
        ({"selection": {"kappa": 1}}, "selection has no key 'kappa'; known are floor, constant"),
        ({"selection": {"correction": 0.5}}, "selection has no key 'correction'"),
        ({"selection": {"renormalize": "tokens"}}, "selection has no key 'renormalize'"),
        ({"feedback": 4}, "feedback is 4; it has keys: horizon, limit, band"),
        ({"feedback": None}, "feedback is None; it has keys: horizon, limit, band"),
        ({"selection": ["floor"]}, "selection is ['floor']; it has keys: floor, "),
        ({"feedback": {"horizon": 0}}, "horizon is 0; use 1 to 100000 optimizer steps"),
        ({"feedback": {"horizon": "4"}}, "feedback.horizon is '4'; it has to be a whole"),
        ({"feedback": {"limit": "8"}}, "feedback.limit is '8'"),
        ({"feedback": {"band": "0.1"}}, "band must be a half-width or a (low, high) pair"),
        ({"selection": {"floor": "0.1"}}, "selection.floor is '0.1'"),
        ({"selection": {"draw": False}}, "selection has no key 'draw'"),
        ({"selection": {"constant_reward_groups": "no"}}, "is 'no'; it has to be true or false"),
        ({"feedback": {"horizon": 4.5}}, "horizon"),
        ({"feedback": {"horizon": math.nan}}, "horizon"),
        ({"selection": {"effective_batch": 128}}, "selection has no key 'effective_batch'"),
    ],
    ids=str,
)
def test_wrong_keys_are_named(keys, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settings_from_mapping({"schedule": 0.4} | keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"effect": 3},
        {"rule": ["tilt"]},
        {"remeasure": "much"},
        {"schedule": [0.4]},
        {"schedule": {"linear": 1}},
        {"remeasure": [1]},
        {"rule": "qae", "options": None},
        {"rule": "qae", "options": [1]},
        {"rule": "qae", "options": "quantile"},
    ],
    ids=str,
)
def test_values_of_another_type_are_refused_when_the_method_is_made(keys):
    with pytest.raises(ValueError, match=r"."):
        settings_from_mapping({"schedule": 0.4} | keys).build(0)
