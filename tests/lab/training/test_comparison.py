"""Comparisons: mistakes are told before the first run, failed trials, what the results keep."""

import io
import json

import pytest
import yaml
from rich.console import Console

from entrocraft.lab.cli import main
from entrocraft.lab.training import comparison
from entrocraft.lab.training.comparison import CompareConfig, compare
from entrocraft.lab.training.directory import RunDirectory
from entrocraft.lab.training.tuning import TuningConfig
from tests.lab.training.runs import config_file, keys, make_home

STEPS = 40
BONUS = {
    "control": {"rule": "entropy_bonus"},
    "tune": {"control.options.bonus": [0.001, 0.01]},
}


class Runs:
    """Stands in for the processes: `asked` has the titles, `failing` those that do not finish."""

    def __init__(self):
        self.asked, self.failing, self.models = [], set(), []

    def prepare(self, config, console):
        self.models.append(config.model)

    def run(self, cells, jobs, threads, console):
        self.asked += [cell.title for cell in cells]
        for cell in cells:
            if cell.title not in self.failing:
                finish(cell)
        return [cell for cell in cells if cell.title in self.failing]


def finish(cell):
    """Leave what a run leaves; the larger the bonus the nearer is entropy to its target."""
    bonus = cell.config.control.options.get("bonus", 0.0)
    cell.directory.mkdir(parents=True, exist_ok=True)
    directory = RunDirectory(cell.directory)
    directory.claim(cell.config)
    records = [
        {
            "step": step,
            "seconds": float(step),
            "reward": 0.5 - bonus,
            "entropy/target": 0.4,
            "entropy/probe": 0.4 - 0.1 * (step > 0) * (1 - 10 * bonus),
        }
        for step in range(0, cell.config.steps + 1, 10)
    ]
    directory.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    (cell.directory / "report.html").write_text("")


@pytest.fixture
def runs(monkeypatch):
    found = Runs()
    monkeypatch.setattr(comparison, "run_cells", found.run)
    monkeypatch.setattr("entrocraft.lab.training.run.prepare_model", found.prepare)
    return found


def quiet():
    return Console(file=io.StringIO(), width=200)


def settings(tmp_path, methods, base=None, **more):
    base = {"model": "nowhere", "steps": STEPS, "control": {"schedule": "0.4"}} | (base or {})
    return CompareConfig(output=tmp_path / "out", methods=methods, base=base, **more)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"control": {"rule": "tylt"}}, "the method odd: .*unknown rule 'tylt'"),
        ({"steps": 0}, "the method odd: steps is 0"),
        ({"trainer": {"loss_typ": "dapo"}}, "the method odd: .*did you mean 'loss_type'"),
        ({"prompts": 3, "generations": 3, "updates": 2}, "the method odd: 9 rollouts"),
        ({"task": {"name": "countup"}}, "the method odd: unknown task 'countup'"),
        ({"tune": {"control.rule": ["tilt", "tylt"]}}, "the method odd tylt: .*'tylt'"),
        ({"tune": {"trainer.epsilom": [0.1]}}, "the method odd 0.1: trainer.epsilom is no option"),
    ],
)
def test_a_mistake_in_any_method_is_told_before_the_first_run(runs, tmp_path, method, message):
    with pytest.raises(ValueError, match=message):
        compare(settings(tmp_path, {"bonus": BONUS, "odd": method}), quiet())
    assert runs.asked == runs.models == []


def test_a_directory_of_another_run_is_told_before_the_first_run(runs, tmp_path):
    compare(settings(tmp_path, {"plain": {}}), quiet())
    runs.asked.clear()
    with pytest.raises(ValueError, match="plain-seed0 holds a run with learning_rate"):
        compare(settings(tmp_path, {"bonus": BONUS, "plain": {"learning_rate": 0.1}}), quiet())
    assert runs.asked == []


def test_the_models_of_all_methods_are_made_before_the_first_run(runs, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "prepare", lambda config, console: asked.append(list(runs.asked)))
    monkeypatch.setattr("entrocraft.lab.training.run.prepare_model", runs.prepare)
    compare(settings(tmp_path, {"bonus": BONUS, "other": {"model": "elsewhere"}}), quiet())
    assert asked == [[], []]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"evaluation": {"probe_every": 0}}, "evaluation.probe_every is 0; probe, e.g. every 10"),
        ({"steps": 20}, "steps is 20, and probes count after step 20; raise steps"),
        ({"control": {"schedule": None}}, "control.schedule is null; set a schedule"),
    ],
)
def test_trials_that_could_not_be_judged_do_not_run(runs, tmp_path, base, message):
    methods = {"plain": {"control": {"rule": None}}, "bonus": BONUS}
    with pytest.raises(ValueError, match=message) as error:
        compare(settings(tmp_path, methods, base), quiet())
    assert "the trial bonus 0.001 will not have" in str(error.value)
    assert "or tuning.by to final_reward" in str(error.value)
    assert runs.asked == []
    compare(settings(tmp_path, methods, base, tuning=TuningConfig(by="final_reward")), quiet())
    assert "bonus, seed 0" in runs.asked


def test_a_target_of_the_methods_own_judges_its_trials(runs, tmp_path):
    tune = {"control.options.kp": [1.0, 3.0]}
    methods = {"entropic": {"control": {"rule": "entropic"}, "tune": tune}}
    compare(settings(tmp_path, methods, {"control": {"schedule": None}}), quiet())
    assert "entropic, seed 0" in runs.asked


def test_a_method_waits_for_its_failed_trials_and_the_same_command_goes_on(runs, tmp_path):
    config = settings(tmp_path, {"plain": {"control": {"rule": None}}, "bonus": BONUS})
    runs.failing = {"bonus 0.01, seed 1000"}
    with pytest.raises(RuntimeError, match="1 of the runs failed") as error:
        compare(config, quiet())
    assert "bonus 0.01, seed 1000: " in str(error.value)
    assert "not compared before their trials are there: bonus; take a value" in str(error.value)
    assert runs.asked == ["bonus 0.001, seed 1000", "bonus 0.01, seed 1000", "plain, seed 0"]
    results = json.loads((config.output / "results.json").read_text())
    assert [run["group"] for run in results["runs"]] == ["plain"]
    found = results["tuning"]["bonus"]
    assert found["chosen"] is None
    assert found["tried"] == {"0.001": pytest.approx(0.099), "0.01": None}
    assert found["trials"]["0.01"] is None

    runs.asked, runs.failing = [], set()
    compare(config, quiet())
    assert runs.asked == ["bonus 0.01, seed 1000", "bonus, seed 0"]
    results = json.loads((config.output / "results.json").read_text())
    assert results["tuning"]["bonus"]["chosen"] == 0.01
    assert [run["group"] for run in results["runs"]] == ["plain", "bonus"]


def test_without_one_good_trial_the_other_methods_are_still_compared(runs, tmp_path):
    config = settings(tmp_path, {"plain": {"control": {"rule": None}}, "bonus": BONUS})
    runs.failing = {"bonus 0.001, seed 1000", "bonus 0.01, seed 1000"}
    with pytest.raises(RuntimeError, match="2 of the runs failed"):
        compare(config, quiet())
    assert runs.asked[-1] == "plain, seed 0"
    assert (config.output / "report.html").exists()


def test_the_results_keep_what_every_trial_came_to(runs, tmp_path):
    config = settings(tmp_path, {"bonus": BONUS})
    compare(config, quiet())
    found = json.loads((config.output / "results.json").read_text())["tuning"]["bonus"]
    assert list(found["trials"]) == list(found["tried"]) == ["0.001", "0.01"]
    assert found["trials"]["0.01"] == {
        "tracking_error": found["tried"]["0.01"],
        "final_reward": pytest.approx(0.49),
        "entropy_start": pytest.approx(0.4),
        "entropy_end": pytest.approx(0.31),
    }


def test_a_method_without_changes_is_the_base(tmp_path):
    config = settings(tmp_path, {"same": None, "GRPO": {"control": {"rule": None}}})
    same, plain = config.cells()
    assert same.config.control.rule == "tilt"
    assert plain.config.control.rule is None
    assert config.trials() == {}


def test_null_is_a_value_to_try(tmp_path):
    methods = {"tilt": {"tune": {"control.feedback": [None, "pi"]}}}
    config = settings(tmp_path, methods, {"control": {"schedule": "0.4", "feedback": "plan"}})
    tried = config.trials()["tilt"]
    assert [cell.config.control.feedback for cell in tried.values()] == [None, "pi"]
    assert config.cells({"tilt": None})[0].config.control.feedback is None


@pytest.mark.slow
def test_a_value_that_cannot_run_leaves_the_other_methods_their_report(tmp_path, capsys):
    home = make_home(tmp_path)
    base = {k: v for k, v in keys(home, tmp_path).items() if k != "output"} | {"steps": 2}
    values = {
        "output": str(tmp_path / "both"),
        "methods": {
            "qae": {"control": {"rule": "qae"}, "tune": {"control.options.quantile": [0.2, 0.5]}},
            "loss": {"tune": {"trainer.loss_type": ["none such", "dapo"]}},
        },
        "tuning": {"by": "final_reward"},
        "base": base,
    }
    file = config_file(tmp_path / "compare.yaml", values)
    assert main(["compare", file]) == 1
    shown = capsys.readouterr()
    assert "loss waits for its trials of trainer.loss_type" in shown.out
    assert "loss none such, seed 1000" in shown.err
    results = json.loads((tmp_path / "both" / "results.json").read_text())
    assert [group["group"] for group in results["groups"]] == ["qae"]
    tuning = results["tuning"]["qae"]
    assert str(tuning["chosen"]) == max(tuning["tried"], key=lambda value: tuning["tried"][value])
    cell = yaml.safe_load((tmp_path / "both" / "cells" / "qae-seed0" / "config.yaml").read_text())
    assert cell["control"]["options"] == {"quantile": tuning["chosen"]}

    values["methods"]["loss"]["tune"] = {"trainer.loss_type": ["dapo"]}
    assert main(["compare", config_file(tmp_path / "compare.yaml", values)]) == 0
    results = json.loads((tmp_path / "both" / "results.json").read_text())
    assert [group["group"] for group in results["groups"]] == ["loss", "qae"]
