"""Peers by name in a training's configuration, and the values that a comparison tries first."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from entrocraft import EntropyController
from entrocraft.lab.cli import main
from entrocraft.lab.parsing import config_from_mapping
from entrocraft.lab.report.runs import Run
from entrocraft.lab.training.comparison import CompareConfig
from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.tuning import Tune, TuningConfig
from entrocraft.methods import METHODS, get_method, options_of
from entrocraft.settings import ControlConfig
from tests.lab.training.runs import config_file, keys, make_home


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
    control = ControlConfig(rule="qae", options={"quantile": 0.7})
    assert control.build(0).quantile == 0.7


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rule": "clip_cof"}, "unknown rule 'clip_cof'; choose null or one of tilt, sign"),
        ({"rule": "erc", "band": 0.1}, "control.band is 0.1; the method 'erc' does not have it"),
        ({"rule": "erc", "options": {"height": 1}}, "'erc' has no option 'height'; it has low"),
        ({"rule": "tilt", "options": {"low": 1}}, "options are for peers"),
        ({"rule": None, "options": {"low": 1}}, "options are for peers"),
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
        ControlConfig(**bounds).build(0)
    method = ControlConfig(**bounds, schedule=None).build(0)
    assert (method.low, method.high) == (0.2, 0.3)
    published = ControlConfig(rule="aent", schedule=None).build(0)
    assert (published.low, published.high) == (0.1, 0.5)


def test_rules_stay_the_controllers():
    for rule in ("tilt", "sign", "switch", None):
        assert isinstance(ControlConfig(rule=rule).build(0), EntropyController)


def test_the_report_knows_which_peers_steer(tmp_path):
    def steered(rule):
        return Run(tmp_path, "x", {"control": {"rule": rule}}, pd.DataFrame()).controlled

    assert steered("entropic")
    assert steered("tilt")
    assert not steered("clip_higher")
    assert not steered(None)


# ---------------------------------------------------------------- values tried first

COMPARISON = {
    "methods": {
        "GRPO": {"control": {"rule": None}},
        "bonus": {
            "control": {"rule": "entropy_bonus"},
            "seeds": [0, 1],
            "tune": {"control.options.bonus": [0.001, 0.01]},
        },
    },
    "seeds": [0, 1, 2],
}


def test_methods_have_seeds_and_trials_of_their_own():
    config = CompareConfig(**COMPARISON)
    titles = [cell.title for cell in config.cells()]
    assert titles == [
        "GRPO, seed 0",
        "bonus, seed 0",
        "GRPO, seed 1",
        "bonus, seed 1",
        "GRPO, seed 2",
    ]
    trials = config.trials()
    assert list(trials) == ["bonus"]
    assert list(trials["bonus"]) == [0.001, 0.01]
    for value, cell in trials["bonus"].items():
        assert cell.config.control.options == {"bonus": value}
        assert cell.config.seed == 1000
        assert cell.directory == Path("runs/compare/tuning") / f"bonus-{value}"
    chosen = {cell.title: cell.config.control.options for cell in config.cells({"bonus": 0.01})}
    assert chosen["bonus, seed 1"] == {"bonus": 0.01}
    assert chosen["GRPO, seed 1"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds of bonus are \\[\\]"),
        ({"seeds": [1, 1]}, "seeds of bonus are \\[1, 1\\]; name each once"),
        ({"seeds": 3}, "methods.bonus.seeds is 3; give a list"),
        ({"seed": 3}, "methods.bonus.seed is 3; a comparison sets it itself"),
        ({"output": "x"}, "methods.bonus.output is 'x'; a comparison sets it itself"),
        ({"seeds": [1000]}, "tuning.seed is 1000, which bonus is compared on"),
        ({"tune": {"a": [1], "b": [2]}}, "give one key with the values to try"),
        ({"tune": {"a": 3}}, "give one key with the values to try"),
        ({"tune": {"a": []}}, "give one key with the values to try"),
        ({"tune": {"a": ["../x"]}}, "'../x' of 'bonus' becomes a directory"),
    ],
)
def test_trials_that_make_no_sense_are_refused(changes, message):
    methods = COMPARISON["methods"]
    with pytest.raises(ValueError, match=message):
        CompareConfig(methods=methods | {"bonus": methods["bonus"] | changes})


def test_a_wrong_key_is_told_with_its_method():
    config = CompareConfig(methods={"good": {}, "odd": {"control": {"rul": "tilt"}}})
    with pytest.raises(ValueError, match=r"the method odd: .*'rul'"):
        config.cells()


def test_the_best_value_is_chosen():
    assert TuningConfig().best("x", {1: 0.3, 2: 0.1, 3: None}) == 2
    assert TuningConfig(by="final_reward").best("x", {1: 0.3, 2: 0.1, 3: None}) == 1
    with pytest.raises(RuntimeError, match="no trial run of x has a tracking_error"):
        TuningConfig().best("x", {1: None})
    tune = Tune("control.options.bonus", [1])
    assert tune.changes(1) == {"control": {"options": {"bonus": 1}}}


def test_the_peers_study_gives_every_peer_the_best_of_three_and_us_the_defaults():
    settings = yaml.safe_load(Path("benchmarks/peers.yaml").read_text())
    config = CompareConfig(**settings | {"tuning": TuningConfig(**settings["tuning"])})
    cells = config.cells()
    rules = {cell.config.control.rule for cell in cells}
    assert rules == {*METHODS, "tilt", "sign", "switch", None}
    for name, own in config.methods.items():
        rule = own["control"]["rule"]
        coefficient = rule in METHODS and type(get_method(rule)).coefficient
        if coefficient:
            [(key, values)] = own["tune"].items()
            assert key == f"control.options.{coefficient}", name
            assert len(values) == 3
            default = getattr(get_method(rule), coefficient)
            assert default in values, name
        elif rule == "tilt":
            assert own == {"control": {"rule": "tilt"}}
    five = [name for name, own in config.methods.items() if "seeds" not in own]
    assert len(five) == 15
    assert {cell.config.steps for cell in cells} == {settings["base"]["steps"]}
    budget = {(c.config.prompts, c.config.generations, c.config.updates) for c in cells}
    assert len(budget) == 1


@pytest.mark.slow
def test_a_comparison_with_trials_end_to_end(tmp_path, capsys):
    home = make_home(tmp_path)
    base = {k: v for k, v in keys(home, tmp_path).items() if k != "output"}
    settings = {
        "output": str(tmp_path / "both"),
        "methods": {
            "GRPO": {"control": {"rule": None}},
            "qae": {"control": {"rule": "qae"}, "tune": {"control.options.quantile": [0.2, 0.5]}},
        },
        "tuning": {"by": "final_reward"},
        "base": base | {"steps": 2},
    }
    assert main(["compare", config_file(tmp_path / "compare.yaml", settings)]) == 0
    assert "control.options.quantile=" in capsys.readouterr().out
    results = json.loads((tmp_path / "both" / "results.json").read_text())
    tuning = results["tuning"]["qae"]
    assert set(tuning["tried"]) == {"0.2", "0.5"}
    best = max(tuning["tried"], key=lambda value: tuning["tried"][value])
    assert str(tuning["chosen"]) == best
    cell = yaml.safe_load((tmp_path / "both" / "cells" / "qae-seed0" / "config.yaml").read_text())
    assert cell["control"]["options"] == {"quantile": tuning["chosen"]}
    assert [group["group"] for group in results["groups"]] == ["GRPO", "qae"]
