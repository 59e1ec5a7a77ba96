"""Studies: how settings expand to cells, what hashes cover, and mistakes told with a remedy."""

import inspect
import json
from pathlib import Path

import pytest
import yaml

from entrocraft.lab.grid.study import Entry, Study, TuningConfig
from entrocraft.lab.parsing import config_from_mapping
from entrocraft.methods import METHODS, method_class

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
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


def titles(study, entries):
    return [study.cell(entry).title for entry in entries]


def test_cells_share_prompts_and_differ_in_method_and_seed():
    study = Study(seeds=[3, 4], base={"steps": 7, "control": {"schedule": "0.4"}})
    cells = [study.cell(entry) for entry in study.entries()]
    assert [cell.title for cell in cells[:3]] == ["GRPO, seed 3", "sign, seed 3", "tilt, seed 3"]
    assert {cell.config.steps for cell in cells} == {7}
    assert {cell.config.control.schedule for cell in cells} == {"0.4"}
    assert [cell.config.control.rule for cell in cells[:3]] == [None, "sign", "tilt"]
    with pytest.raises(ValueError, match="at least one"):
        Study(methods={})


def test_studies_of_the_repository_are_readable():
    for file in [*Path("configs").glob("*.yaml"), *BENCHMARKS.glob("*.yaml")]:
        study = config_from_mapping(Study, yaml.safe_load(file.read_text()))
        for entry in study.entries(seeds=study.seeds[:1]):
            # the others keep the words of the version that ran them, so that their hashes stay
            if file.stem in ("demo", "frontier", "peers"):
                study.cell(entry)


def test_a_method_without_changes_is_the_base():
    study = Study(methods={"same": None, "GRPO": {"control": {"rule": None}}})
    same, plain = (study.cell(entry) for entry in study.entries())
    assert same.config.control.rule == "tilt"
    assert plain.config.control.rule is None
    assert study.trials().entries(study.tuned()) == []


def test_methods_have_seeds_and_trials_of_their_own():
    study = Study(**COMPARISON)
    expected = ["GRPO, seed 0", "bonus, seed 0", "GRPO, seed 1", "bonus, seed 1", "GRPO, seed 2"]
    assert titles(study, study.entries()) == expected
    trials = study.trials()
    cells = [trials.cell(entry) for entry in trials.entries()]
    assert [cell.title for cell in cells] == ["bonus 0.001, seed 1000", "bonus 0.01, seed 1000"]
    for value, cell in zip((0.001, 0.01), cells, strict=True):
        assert cell.config.control.options == {"bonus": value}
        assert cell.directory == Path("runs/compare/tuning/cells") / f"bonus {value}-seed1000"
    chosen = study.choose({"bonus": 0.01})
    options = [chosen.cell(entry).config.control.options for entry in chosen.entries()]
    assert options == [{}, {"bonus": 0.01}, {}, {"bonus": 0.01}, {}]


def test_null_is_a_value_to_try():
    base = {"control": {"schedule": "0.4", "effect": "sign"}}
    study = Study(methods={"tilt": {"tune": {"control.effect": [None, "logit"]}}}, base=base)
    trials = study.trials()
    tried = [trials.cell(entry).config.control.effect for entry in trials.entries()]
    assert tried == [None, "logit"]
    chosen = study.choose({"tilt": None})
    assert chosen.cell(chosen.entries()[0]).config.control.effect is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "methods.bonus.seeds is \\[\\]"),
        ({"seeds": [1, 1]}, "methods.bonus.seeds is \\[1, 1\\]; list each once"),
        ({"seeds": 3}, "methods.bonus.seeds is 3; it has to be"),
        ({"seed": 3}, "methods.bonus.seed is 3; a comparison sets it itself"),
        ({"output": "x"}, "methods.bonus.output is 'x'; a comparison sets it itself"),
        ({"seeds": [1000]}, "tuning.seed is 1000, which bonus is compared on"),
        ({"tune": {"a": [1], "b": [2]}}, "give one key with the values to try"),
        ({"tune": {"a": 3}}, "give one key with the values to try"),
        ({"tune": {"a": []}}, "give one key with the values to try"),
        ({"tune": {"a": ["../x"]}}, "'bonus ../x' becomes a directory"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    methods = COMPARISON["methods"]
    with pytest.raises(ValueError, match=message):
        Study(methods=methods | {"bonus": methods["bonus"] | changes})


def test_a_wrong_key_is_told_with_its_method():
    study = Study(methods={"good": {}, "odd": {"control": {"rul": "tilt"}}})
    with pytest.raises(ValueError, match=r"the method odd: .*'rul'"):
        study.cell(Entry("odd", "", 0))
    with pytest.raises(ValueError, match="becomes a directory"):
        Study(methods={"a/b": {}})


@pytest.fixture
def settings():
    return {
        "base": {"steps": 60, "prompts": 4},
        "seeds": [0, 1, 2],
        "schedules": {
            "flat": "constant(initial)",
            "up": {"text": "linear(initial, 1.4*initial, 60)", "bound": 2},
        },
        "methods": {"tilt": {}, "GRPO": {"follows": False, "control": {"rule": None}}, "sign": {}},
        "parts": {
            "main": {"methods": ["tilt"]},
            "peers": {
                "methods": ["sign", "GRPO"],
                "schedules": ["flat", "up"],
                "reference": "tilt",
            },
        },
    }


def test_cells_expand_part_by_part_and_only_as_asked(settings):
    study = Study(**settings)
    assert len(study.entries()) == 3 * 2 + 3 * 2 * 2
    assert len(study.entries(["main"])) == 6
    entries = study.entries(["peers"], seeds=[1])
    assert [entry.key for entry in entries] == [
        f"{method}/{schedule}/1" for method in ("sign", "GRPO") for schedule in ("flat", "up")
    ]
    directories = [study.directory(entry) for entry in entries]
    assert directories[2] == directories[3], "one run serves both schedules"
    assert len(set(directories)) == 3
    assert len(study.with_seeds([7]).entries(seeds=[7])) == 6
    with pytest.raises(ValueError, match="no part 'mian'"):
        study.entries(["mian"])
    with pytest.raises(ValueError, match="seed 7"):
        study.entries(seeds=[7])
    for changes, message in (
        ({"reference": "tlit"}, "'tlit'"),
        ({"schedules": ["dwon"]}, "'dwon'"),
        ({"better_of": {"GRPO": ["GRPO"]}}, "needs a reference"),
        ({"titel": "x"}, "titel"),
    ):
        with pytest.raises(ValueError, match=f"part main: .*{message}"):
            Study(**settings | {"parts": {"main": changes}})


def test_the_hash_covers_what_the_run_depends_on(settings):
    entry, plain = Entry("tilt", "up", 0), Entry("GRPO", "up", 0)
    study, changed = Study(**settings), json.loads(json.dumps(settings))
    changed["seeds"] = [0]
    changed["parts"]["main"]["title"] = "x"
    assert Study(**changed).digest(entry) == study.digest(entry)
    changed["schedules"]["up"]["text"] = "linear(initial, 1.3*initial, 60)"
    assert Study(**changed).digest(entry) != study.digest(entry)
    assert Study(**changed).digest(plain) == study.digest(plain)
    changed["base"]["prompts"] = 8
    assert Study(**changed).digest(plain) != study.digest(plain)
    assert study.digest(Entry("tilt", "up", 1)) != study.digest(entry)


def test_the_tracking_study_is_complete_and_valid():
    study = Study(**yaml.safe_load((BENCHMARKS / "tracking.yaml").read_text()))
    assert [part.name for part in study.tables[:3]] == ["main", "main-4", "quarter"]
    entries = study.entries()
    assert len({entry.key for entry in entries}) == len(entries)
    assert [entry.seed for entry in entries[:7]] == [0] * 6 + [1], "seed by seed within a part"
    for entry in (e for e in entries if e.seed == 0):
        keys = study.keys(entry)
        rollouts = keys["prompts"] * keys["generations"] // keys.get("updates", 1)
        assert rollouts in (256, 384), entry
    step, down = (study.cell(Entry("tilt", name, 0)).config for name in ("step", "down"))
    assert step.evaluation.probe_every == 2
    assert step.evaluation.probe_prompts == 2048
    assert down.evaluation.probe_every == 10
    assert study.cell(Entry("tilt-4", "down", 0)).config.updates == 4
    up = study.cell(Entry("sign-0", "up", 0)).config.control
    assert up.schedule == "linear(initial, 1.4*initial, 150)"


def test_the_peers_study_gives_every_peer_the_best_of_three_and_us_the_defaults():
    settings = yaml.safe_load((BENCHMARKS / "peers.yaml").read_text())
    study = Study(**settings | {"tuning": TuningConfig(**settings["tuning"])})
    cells = [study.cell(entry) for entry in study.entries()]
    rules = {cell.config.control.rule for cell in cells}
    assert rules == {*METHODS, "tilt", "sign", "switch", None}
    for name, own in study.methods.items():
        rule = own["control"]["rule"]
        coefficient = rule in METHODS and method_class(rule).coefficient
        if coefficient:
            [(key, values)] = own["tune"].items()
            assert key == f"control.options.{coefficient}", name
            assert len(values) == 3
            parameters = inspect.signature(method_class(rule)).parameters
            assert parameters[coefficient].default in values, name
        elif rule == "tilt":
            assert own == {"control": {"rule": "tilt"}}
    assert sum("seeds" not in own for own in study.methods.values()) == 15
    assert {cell.config.steps for cell in cells} == {settings["base"]["steps"]}
    budget = {(c.config.prompts, c.config.generations, c.config.updates) for c in cells}
    assert len(budget) == 1
