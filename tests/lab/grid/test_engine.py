"""The engine: mistakes told before the first run, cells kept one by one, trials, results."""

import io
import json
import shutil
from dataclasses import replace

import pytest
from filelock import FileLock
from rich.console import Console

from entrocraft import schedules
from entrocraft.lab.cli import main
from entrocraft.lab.grid import engine
from entrocraft.lab.grid.engine import compare
from entrocraft.lab.grid.results import Results
from entrocraft.lab.grid.study import Entry, Study, TuningConfig
from entrocraft.lab.training.directory import RunDirectory
from tests.lab.training.runs import config_file

STEPS = 40
BONUS = {
    "control": {"rule": "entropy_bonus"},
    "tune": {"control.options.bonus": [0.001, 0.01]},
}


class Runs:
    """Stands in for the processes: `asked` has the titles, `failing` those that do not finish."""

    def __init__(self):
        self.asked, self.failing, self.models, self.stop_at = [], set(), [], None

    def prepare(self, config, console):
        self.models.append(config.model)

    def run(self, cells, jobs, threads, console, keep):
        failed = []
        for cell in cells:
            if cell.title == self.stop_at:
                raise KeyboardInterrupt
            self.asked.append(cell.title)
            if cell.title in self.failing:
                failed.append(cell)
            else:
                finish(cell)
                keep(cell)
        return failed


def finish(cell):
    """Leave what a run leaves; the larger the bonus the nearer is entropy to its target."""
    target = schedules.anchor(schedules.from_string(str(cell.config.control.schedule or 0.4)), 0.4)
    bonus = cell.config.control.options.get("bonus", 0.0)
    cell.directory.mkdir(parents=True, exist_ok=True)
    directory = RunDirectory(cell.directory)
    directory.claim(cell.config)
    records = [
        {
            "step": step,
            "seconds": float(step),
            "reward": 0.5 - bonus,
            "entropy/target": target(step),
            "entropy/measured": 0.4,
            "entropy/probe": target(step) - 0.1 * (step > 0) * (1 - 10 * bonus),
        }
        for step in range(0, cell.config.steps + 1, 10)
    ]
    directory.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    (cell.directory / "report.html").write_text("")


@pytest.fixture
def runs(monkeypatch):
    found = Runs()
    monkeypatch.setattr(engine, "run_cells", found.run)
    monkeypatch.setattr("entrocraft.lab.training.run.prepare_model", found.prepare)
    return found


def quiet():
    return Console(file=io.StringIO(), width=200)


def settings(tmp_path, methods, base=None, **more):
    base = {"model": "nowhere", "steps": STEPS, "control": {"schedule": "0.4"}} | (base or {})
    return Study(output=tmp_path / "out", methods=methods, base=base, **more)


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
    with pytest.raises(ValueError, match=r"plain/0 .*learning_rate None -> 0.1; .*--fresh"):
        compare(settings(tmp_path, {"bonus": BONUS, "plain": {"learning_rate": 0.1}}), quiet())
    (tmp_path / "out" / "results.json").unlink()
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
        ({"steps": 20}, "steps is 20, probes count after 20; raise it"),
        ({"control": {"schedule": None}}, "control.schedule is null; set a schedule"),
    ],
)
def test_trials_that_could_not_be_judged_do_not_run(runs, tmp_path, base, message):
    methods = {"plain": {"control": {"rule": None}}, "bonus": BONUS}
    with pytest.raises(ValueError, match=message) as error:
        compare(settings(tmp_path, methods, base), quiet())
    assert "the method bonus 0.001: tuning.by is tracking_error" in str(error.value)
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
    assert list(results["cells"]) == ["plain/0", "bonus 0.001/1000"]
    assert results["missing"] == ["bonus/0"]
    found = results["tuning"]["bonus"]
    assert found["chosen"] is None
    assert found["tried"] == {"0.001": pytest.approx(0.099), "0.01": None}

    runs.asked, runs.failing = [], set()
    compare(config, quiet())
    assert runs.asked == ["bonus 0.01, seed 1000", "bonus, seed 0"]
    results = json.loads((config.output / "results.json").read_text())
    assert results["tuning"]["bonus"]["chosen"] == 0.01
    assert list(results["cells"])[:2] == ["plain/0", "bonus/0"]
    assert results["missing"] == []


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
    results = json.loads((config.output / "results.json").read_text())
    assert list(results["tuning"]["bonus"]["tried"]) == ["0.001", "0.01"]
    trial = results["cells"]["bonus 0.01/1000"]
    assert trial["tracking_error"] == results["tuning"]["bonus"]["tried"]["0.01"]
    numbers = [trial[key] for key in ("final_reward", "entropy_start", "entropy_end")]
    assert numbers == pytest.approx([0.49, 0.4, 0.31])


SCHEDULES = {"flat": "constant(initial)", "down": "linear(initial, 0.5*initial, 40)"}


def test_a_value_is_chosen_by_its_mean_over_the_schedules(runs, tmp_path):
    study = settings(tmp_path, {"bonus": BONUS}, schedules=SCHEDULES)
    compare(study, quiet())
    assert runs.asked[:2] == ["bonus 0.001-flat, seed 1000", "bonus 0.001-down, seed 1000"]
    assert runs.asked[4:] == ["bonus-flat, seed 0", "bonus-down, seed 0"]
    found = json.loads((study.output / "results.json").read_text())["tuning"]["bonus"]
    assert found["tried"] == {"0.001": pytest.approx(0.099), "0.01": pytest.approx(0.09)}


def two_by_two(tmp_path):
    methods = {"tilt": {}, "sign": {"control": {"rule": "sign"}}}
    return settings(tmp_path, methods, schedules=SCHEDULES, seeds=[0, 1])


def test_a_study_that_is_stopped_goes_on_cell_by_cell(runs, tmp_path):
    study, keys = two_by_two(tmp_path), [entry.key for entry in two_by_two(tmp_path).entries()]
    assert len(keys) == 8
    runs.stop_at = "sign-flat, seed 0"
    with pytest.raises(KeyboardInterrupt):
        compare(study, quiet())
    data = json.loads(study.results_file.read_text())
    assert list(data["cells"]) == keys[:2] == ["tilt/flat/0", "tilt/down/0"]
    assert data["missing"] == keys[2:]
    assert data["settings"]["schedules"] == SCHEDULES
    assert {"python", "torch", "trl", "transformers"} <= set(data["versions"][0])
    cell = data["cells"]["tilt/down/0"]
    assert cell["settings_hash"] == study.digest(Entry("tilt", "down", 0))
    assert [point[:3] for point in cell["probe"][::2]] == [
        [0, 0.4, 0.4],
        [20, 0.3, 0.2],
        [40, 0.2, 0.1],
    ]

    # the cell after that ended without being noted: its directory is enough
    finish(study.cell(study.entries()[2]))
    # and one of those noted has lost its directory: the file is enough
    shutil.rmtree(study.directory(study.entries()[0]))
    runs.asked, runs.stop_at = [], None
    compare(study, quiet())
    title = "{}-{}, seed {}".format
    assert runs.asked == [title(*key.split("/")) for key in keys[3:]]
    assert list(json.loads(study.results_file.read_text())["cells"]) == keys
    first = study.results_file.read_text()
    runs.asked = []
    compare(study, quiet())
    assert runs.asked == []
    assert study.results_file.read_text() == first


def test_seeds_and_fresh_choose_cells(runs, tmp_path):
    study = two_by_two(tmp_path)
    compare(study, quiet(), seeds=[1])
    assert [title[-1] for title in runs.asked] == ["1"] * 4
    runs.asked = []
    compare(study, quiet(), seeds=[1], fresh=True)
    assert len(runs.asked) == 4
    assert len(Results(study.results_file).cells) == 4


def test_a_run_that_follows_nothing_serves_every_schedule(runs, tmp_path):
    methods = {"GRPO": {"follows": False, "control": {"rule": None}}}
    study = settings(tmp_path, methods, {"control": {}}, schedules=SCHEDULES)
    compare(study, quiet())
    assert runs.asked == ["GRPO, seed 0"]
    results = Results(study.results_file)
    flat, down = (results.cells[f"GRPO/{name}/0"] for name in SCHEDULES)
    target = [0.4 - 0.2 * step / 40 for step in (0, 10, 20, 30, 40)]
    assert [point[1] for point in down["probe"]] == pytest.approx(target)
    assert [point[1] for point in flat["probe"]] == [0.4] * 5
    assert [point[2] for point in down["probe"]] == [point[2] for point in flat["probe"]]
    # the same run with another target; and a cell that was not noted
    moved = replace(study, schedules={"flat": "constant(0.9*initial)", "down": SCHEDULES["down"]})
    assert {p[1] for p in results.get(moved, Entry("GRPO", "flat", 0))["probe"]} == {0.36}
    del results.cells["GRPO/down/0"]
    assert results.get(study, Entry("GRPO", "down", 0)) == down


def test_two_processes_on_one_study_are_one_too_many(runs, tmp_path):
    study = two_by_two(tmp_path)
    study.output.mkdir()
    with (
        FileLock(study.output / ".lock"),
        pytest.raises(RuntimeError, match=r"another process runs the study in .*--output"),
    ):
        compare(study, quiet())
    assert runs.asked == []
    compare(study, quiet())


def test_a_file_without_cells_is_left_alone(runs, tmp_path):
    study = two_by_two(tmp_path)
    study.output.mkdir()
    study.results_file.write_text('{"runs": []}')
    with pytest.raises(ValueError, match=r"results\.json is no result file .*--results"):
        compare(study, quiet())
    assert study.results_file.read_text() == '{"runs": []}'


def test_the_command_lists_and_chooses(runs, tmp_path, capsys):
    study = two_by_two(tmp_path)
    settings = {"output": str(study.output), "base": study.base, "seeds": [0]}
    settings |= {"schedules": SCHEDULES, "methods": study.methods}
    settings["parts"] = {"one": {"methods": ["tilt"]}, "two": {"methods": ["sign"]}}
    file = config_file(tmp_path / "study.yaml", settings)
    assert main(["compare", file, "--only", "one", "--seeds", "0", "3", "--jobs", "1"]) == 0
    names = sorted(SCHEDULES)  # as YAML was written
    assert runs.asked == [f"tilt-{name}, seed {seed}" for seed in (0, 3) for name in names]
    assert f"report: {study.output / 'report.html'}" in capsys.readouterr().out
    data = json.loads(study.results_file.read_text())
    assert data["command"].split()[0] == "entrocraft"
    assert main(["compare", file, "--list", "--seeds", "[0, 1]"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 8 cells are there" in shown
    states = dict(line.split(None, 1) for line in shown.splitlines()[:-1])
    assert states["tilt/flat/0"] == "done, 0.1000 nats"
    assert states["sign/flat/0"] == "missing"
    other = str(tmp_path / "other.json")
    assert main(["compare", file, "--list", "--results", other]) == 0
    assert "0 of 4 cells are there" in capsys.readouterr().out
    assert main(["compare", file, "--only", "tow"]) == 1
    assert "no part 'tow'; choose from one, two" in capsys.readouterr().err
    assert main(["compare", file, "--seeds", "x"]) == 1
    assert "--seeds has 'x'" in capsys.readouterr().err
