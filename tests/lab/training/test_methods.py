"""Peers by name in a training's configuration."""

import pandas as pd
import pytest

from entrocraft import EntropyController
from entrocraft.lab.parsing import config_from_mapping
from entrocraft.lab.report.runs import Run
from entrocraft.lab.training.config import TrainConfig
from entrocraft.methods import METHODS, get_method, options_of
from entrocraft.settings import ControlSettings


@pytest.mark.parametrize("name", METHODS)
def test_a_peer_is_a_rule_with_options(name):
    config = config_from_mapping(
        TrainConfig, {"control": {"rule": name, "schedule": "0.4"}, "seed": 5}
    )
    method = config.control.build(config.seed)
    assert isinstance(method, type(get_method(name)))
    assert method.target(3) == 0.4
    assert config.title == name
    if "seed" in options_of(name):
        assert method.seed == 5
    assert config_from_mapping(TrainConfig, config.as_dict()).as_dict() == config.as_dict()


def test_options_reach_the_peer():
    control = ControlSettings(rule="qae", options={"quantile": 0.7})
    assert control.build(0).quantile == 0.7


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rule": "clip_cof"}, "unknown rule 'clip_cof'; choose null or one of tilt, sign"),
        (
            {"rule": "erc", "feedback": {"band": 0.1}},
            r"control.feedback is .*band=0\.1.*; the method 'erc' does not have it",
        ),
        ({"rule": "erc", "options": {"height": 1}}, "'erc' has no option 'height'; it has low"),
        ({"rule": "tilt", "options": {"low": 1}}, "options are for baselines"),
        ({"rule": None, "options": {"low": 1}}, "options are for baselines"),
    ],
)
def test_what_a_peer_does_not_have_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        config_from_mapping(TrainConfig, {"control": keys})


def test_bounds_of_aent_need_a_control_without_schedule():
    bounds = {"rule": "aent", "options": {"low": 0.2, "high": 0.3}}
    with pytest.raises(
        ValueError, match=r"low is 0\.2, and the schedule .* control\.schedule: null"
    ):
        ControlSettings(**bounds).build(0)
    method = ControlSettings(**bounds, schedule=None).build(0)
    assert (method.low, method.high) == (0.2, 0.3)
    published = ControlSettings(rule="aent", schedule=None).build(0)
    assert (published.low, published.high) == (0.1, 0.5)


def test_rules_stay_the_controllers():
    for rule in ("tilt", "sign", "switch", None):
        assert isinstance(ControlSettings(rule=rule).build(0), EntropyController)


def test_the_report_knows_which_peers_steer(tmp_path):
    def steered(rule):
        return Run(tmp_path, "x", {"control": {"rule": rule}}, pd.DataFrame()).controlled

    assert steered("entropic")
    assert steered("tilt")
    assert not steered("clip_higher")
    assert not steered(None)
