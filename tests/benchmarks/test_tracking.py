"""The tracking study: cells, hashes, the result file, its tables and figure, and one tiny run."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats

from entrocraft.lab.models import ReasonerConfig, build_reasoner, build_tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHAPE = ReasonerConfig(hidden_size=32, layers=1, heads=2, intermediate_size=32, max_positions=512)

from benchmarks import tracking, tracking_study
from benchmarks import tracking_views as views


@pytest.fixture
def settings():
    return {
        "base": {"steps": 60, "prompts": 4, "evaluation": {"probe_every": 10}},
        "seeds": [0, 1, 2],
        "schedules": {
            "flat": "constant(initial)",
            "up": {"text": "linear(initial, 1.4*initial, 60)", "bound": 2},
            "step": {
                "text": "join([constant(initial), constant(initial - 0.1)], [30])",
                "step_at": 30,
                "base": {"evaluation": {"probe_every": 2}},
            },
        },
        "methods": {
            "tilt": {},
            "GRPO": {"follows": False, "control": {"rule": None}},
            "sign-0.05": {"control": {"rule": "sign", "band": 0.05}},
            "sign-0": {"control": {"rule": "sign", "band": 0.0}},
        },
        "parts": {
            "main": {"methods": ["tilt"], "schedules": ["flat", "up", "step"]},
            "peers": {
                "title": "others",
                "methods": ["sign-0.05", "sign-0", "GRPO"],
                "schedules": ["flat", "up"],
                "reference": "tilt",
                "better_of": {"sign": ["sign-0.05", "sign-0"], "GRPO": ["GRPO"]},
            },
        },
    }


def made_up(study, entry, gap, initial=0.4):
    """A cell whose probe is `gap` above the target at every probe."""
    keys = study.keys(entry)
    text = study.text(entry.schedule)
    target = tracking_study.schedules.anchor(tracking_study.schedules.from_string(text), initial)
    steps = range(0, 61, keys["evaluation"]["probe_every"])
    cell = {
        "settings_hash": study.digest(entry),
        "initial": initial,
        "final_reward": 0.3,
        "pass_at": {"pass@1": [0.1, 0.2], "pass@8": [0.3, 0.4]},
        "kept_fraction": 0.7,
        "saturated_share": None,
        "pressure": None,
        "seconds": 1.0,
        "probe": [[step, None, target(step) + gap, 0.002] for step in steps],
    }
    return tracking.aim(cell, study, entry.schedule)


def filled(path, settings, gaps, leave_out=()):
    """A result file with made-up cells; `gaps`: method -> distance by seed."""
    results = tracking.Results(path, settings)
    for entry in results.study.entries():
        if entry.key not in leave_out:
            gap = gaps[entry.method][entry.seed]
            results.add(entry, made_up(results.study, entry, gap))
    results.write()
    return results


GAPS = {
    "tilt": [0.004, 0.006, 0.009],
    "GRPO": [-0.1, -0.11, -0.12],
    "sign-0.05": [0.05, 0.06, 0.1],
    "sign-0": [-0.04, -0.05, -0.08],
}


def test_the_committed_settings_are_complete_and_valid(tmp_path):
    study = tracking.Study(yaml.safe_load(tracking.SETTINGS.read_text()))
    assert [part.name for part in study.parts[:3]] == ["main", "peers", "inner"]
    entries = study.entries()
    assert len({entry.key for entry in entries}) == len(entries)
    assert [entry.seed for entry in entries[:7]] == [0] * 6 + [1], "seed by seed within a part"
    configs = {}
    for entry in (e for e in entries if e.seed == 0):
        config = study.cell(entry, tmp_path).config
        configs[entry.method, entry.schedule] = config
        assert config.prompts * config.generations // config.updates in (256, 384), entry
    assert configs["tilt", "step"].evaluation.probe_every == 2
    assert configs["tilt", "step"].evaluation.probe_prompts == 2048
    assert configs["tilt", "down"].evaluation.probe_every == 10
    assert configs["tilt-4", "down"].updates == 4
    assert configs["sign-0", "up"].control.band == 0.0
    assert configs["sign-0", "up"].control.schedule == "linear(initial, 1.4*initial, 150)"
    for method in study.settings["methods"]:  # also those that no part runs
        study.cell(tracking.Entry(method, "down", 0), tmp_path)


def test_cells_expand_part_by_part_and_only_as_asked(settings, tmp_path):
    study = tracking.Study(settings)
    assert len(study.entries()) == 3 * 3 + 3 * 3 * 2
    assert len(study.entries(["main"])) == 9
    keys = [entry.key for entry in study.entries(["peers"], seeds=[1])]
    assert keys == [
        f"{method}/{schedule}/1"
        for method in ("sign-0.05", "sign-0", "GRPO")
        for schedule in ("flat", "up")
    ]
    cells = [study.cell(entry, tmp_path) for entry in study.entries(["peers"], [1])]
    assert cells[4].directory == cells[5].directory, "one run serves both schedules"
    assert len({cell.directory for cell in cells}) == 5
    with pytest.raises(ValueError, match="no part 'mian'"):
        study.entries(["mian"])
    with pytest.raises(ValueError, match="seed 7"):
        study.entries(seeds=[7])
    settings["parts"]["peers"]["reference"] = "tlit"
    with pytest.raises(ValueError, match="'tlit'"):
        tracking.Study(settings)
    settings["parts"] = {"main": {"methods": ["tilt"], "schedules": ["flat"]}}
    settings["base"]["stepz"] = 1
    with pytest.raises(ValueError, match=r"tilt/flat/0.*stepz"):
        tracking.Study(settings).cell(tracking.Entry("tilt", "flat", 0), tmp_path)


def test_the_hash_covers_what_the_run_depends_on(settings):
    entry = tracking.Entry("tilt", "up", 0)
    before = tracking.Study(settings).digest(entry)
    plain = tracking.Study(settings).digest(tracking.Entry("GRPO", "up", 0))
    changed = json.loads(json.dumps(settings))
    changed["seeds"] = [0]
    changed["parts"]["main"]["title"] = "x"
    assert tracking.Study(changed).digest(entry) == before
    changed["schedules"]["up"]["text"] = "linear(initial, 1.3*initial, 60)"
    assert tracking.Study(changed).digest(entry) != before
    assert tracking.Study(changed).digest(tracking.Entry("GRPO", "up", 0)) == plain
    changed["base"]["prompts"] = 8
    assert tracking.Study(changed).digest(tracking.Entry("GRPO", "up", 0)) != plain
    assert tracking.Study(settings).digest(tracking.Entry("tilt", "up", 1)) != before


def test_a_partial_file_is_whole_and_names_what_is_missing(settings, tmp_path):
    path = tmp_path / "tracking.json"
    filled(path, settings, GAPS, leave_out=("tilt/up/2", "sign-0/flat/0"))
    data = json.loads(path.read_text())
    assert data["missing"] == ["tilt/up/2", "sign-0/flat/0"]
    assert data["settings"] == settings
    assert {"python", "torch", "trl", "transformers"} <= set(data["versions"][0])
    cell = data["cells"]["tilt/flat/1"]
    assert cell["tracking_error"] == pytest.approx(0.006)
    assert cell["probe"][2] == [20, 0.4, 0.406, 0.002]
    assert tracking.Results(path).missing() == data["missing"], "without the settings file"


def test_a_run_that_follows_nothing_serves_every_schedule(settings, tmp_path):
    path = tmp_path / "tracking.json"
    results = filled(path, settings, GAPS, leave_out=("GRPO/up/0",))
    assert results.missing() == [], "known from the other schedule's cell"
    cell, other = results.get(tracking.Entry("GRPO", "up", 0)), results.cells["GRPO/flat/0"]
    steps = np.array([point[0] for point in other["probe"]])
    target = 0.4 + 0.16 * steps / 60
    gap = np.array([point[2] for point in other["probe"]]) - target
    assert [point[1] for point in cell["probe"]] == pytest.approx(target, abs=1e-5)
    assert cell["tracking_error"] == pytest.approx(np.abs(gap[steps > 20]).mean(), abs=2e-5)
    assert cell["tracking_bias"] == pytest.approx(gap[steps > 20].mean(), abs=2e-5)
    settings["schedules"]["flat"] = "constant(0.9*initial)"  # the same run, another target
    moved = tracking.Results(path, settings).get(tracking.Entry("GRPO", "flat", 0))
    assert {point[1] for point in moved["probe"]} == {0.36}


def test_what_is_in_the_file_is_not_trained_again(settings, tmp_path, monkeypatch):
    path = tmp_path / "tracking.json"
    filled(path, settings, GAPS, leave_out=("GRPO/up/0",))
    before = path.read_text()
    monkeypatch.setattr(tracking, "run_cells", None)  # would fail if it were called
    results = tracking.Results(path, settings)
    console = Console(quiet=True)
    entries = results.study.entries()
    assert tracking.run(results, entries, tmp_path / "runs", 1, console) == 0
    after = json.loads(path.read_text())
    assert set(after["cells"]) == set(json.loads(before)["cells"]) | {"GRPO/up/0"}


@pytest.fixture
def quick_cells(monkeypatch):
    """Cells that end at once, those of `sign-0` with a failure; measured as made up."""

    def start(cell, threads):
        code = int(cell.config.title.startswith("sign-0-"))
        cell.directory.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({code})"])

    def measure(study, entry, directory):
        return made_up(study, entry, GAPS[entry.method][entry.seed])

    monkeypatch.setattr(tracking.Cell, "start", start)
    monkeypatch.setattr(tracking, "measure", measure)
    monkeypatch.setattr("entrocraft.lab.training.run.prepare_model", lambda config, console: "")


def test_every_finished_cell_is_written_and_a_failed_one_is_not(
    settings, tmp_path, monkeypatch, quick_cells
):
    path, written = tmp_path / "tracking.json", []
    write = tracking.Results.write

    def spy(results):
        write(results)
        written.append(set(json.loads(path.read_text())["cells"]))

    monkeypatch.setattr(tracking.Results, "write", spy)
    results = tracking.Results(path, settings)
    entries = results.study.entries(["peers"], seeds=[0])
    assert tracking.run(results, entries, tmp_path / "runs", 2, Console(quiet=True)) == 2
    assert [len(cells) for cells in written] in ([0, 1, 2, 4], [0, 1, 3, 4], [0, 2, 3, 4])
    assert written[-1] == {"sign-0.05/flat/0", "sign-0.05/up/0", "GRPO/flat/0", "GRPO/up/0"}
    assert {"sign-0/flat/0", "sign-0/up/0"} <= set(json.loads(path.read_text())["missing"])


def test_fresh_drops_the_chosen_cells_and_their_runs_only(settings, tmp_path, quick_cells):
    path, runs = tmp_path / "tracking.json", tmp_path / "runs"
    results = filled(path, settings, GAPS)
    for cell in results.cells.values():
        cell["final_reward"] = -1.0
    results.write()
    results = tracking.Results(path, settings)
    entries = [tracking.Entry("GRPO", "flat", 0), tracking.Entry("tilt", "up", 1)]
    old = results.study.cell(entries[1], runs).directory / "metrics.jsonl"
    old.parent.mkdir(parents=True)
    old.write_text("")
    assert tracking.run(results, entries, runs, 1, Console(quiet=True), fresh=True) == 0
    assert not old.exists()
    results = tracking.Results(path)
    anew = [key for key, cell in results.valid().items() if cell["final_reward"] != -1.0]
    assert anew == ["tilt/up/1", "GRPO/flat/0", "GRPO/up/0"], "one run, both of its cells"


def test_changed_settings_are_an_error_that_names_cell_and_remedy(settings, tmp_path):
    path = tmp_path / "tracking.json"
    filled(path, settings, GAPS)
    settings["methods"]["sign-0"]["control"]["band"] = 0.01
    results = tracking.Results(path, settings)
    results.check(results.study.entries(["main"]))
    with pytest.raises(ValueError, match=r"sign-0/flat/0.*control\.band 0\.0 -> 0\.01.*--fresh"):
        results.check(results.study.entries())
    assert "sign-0/flat/0" in results.missing()
    assert "sign-0/flat/0" not in results.valid(), "no table mixes settings"


def test_list_and_errors_of_the_command(settings, tmp_path, capsys):
    path, file = tmp_path / "tracking.json", tmp_path / "tracking.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    words = ["--settings", str(file), "--results", str(path)]
    assert tracking.main([*words, "--table"]) == 2
    assert "does not exist" in capsys.readouterr().err
    filled(path, settings, GAPS, leave_out=("tilt/up/2",))
    assert tracking.main([*words, "--list", "--only", "main"]) == 0
    shown = capsys.readouterr().out
    assert "8 of 9 cells" in shown
    assert "missing" in next(line for line in shown.splitlines() if line.startswith("tilt/up/2"))
    assert tracking.main([*words, "--only", "other"]) == 2
    assert "main, peers" in capsys.readouterr().err


def test_step_response():
    curve = [[step, 0.4 if step < 30 else 0.3, 0.4, 0.002] for step in range(0, 101, 2)]
    for point in curve:
        since = point[0] - 30
        if since > 0:
            point[2] = max(0.4 - 0.01 * since, 0.28)
    answer = tracking_study.step_response(curve, 30)
    assert answer == {"arrival_steps": 8, "overshoot": 0.02}
    curve[-1][2] = 0.1  # later than 40 steps after the jump
    assert tracking_study.step_response(curve, 30)["overshoot"] == 0.02
    for point in curve:
        point[2] = 0.4
    assert tracking_study.step_response(curve, 30) == {"arrival_steps": None, "overshoot": 0.0}
    upward = [[step, 0.8 - target, 0.85 - target, None] for step, target, *_ in curve]
    assert tracking_study.step_response(upward, 30) == {"arrival_steps": None, "overshoot": 0.05}
    assert tracking_study.step_response(curve[:10], 30)["arrival_steps"] is None


def test_table_arithmetic(settings, tmp_path, capsys):
    path = tmp_path / "tracking.json"
    filled(path, settings, GAPS)
    assert tracking.main(["--results", str(path), "--table"]) == 0
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("|")
    ]
    errors = np.array(GAPS["tilt"])
    half = stats.t.ppf(0.975, 2) * errors.std(ddof=1) / math.sqrt(3)
    tilt = next(row for row in rows if row[:2] == ["tilt", "flat"])
    assert tilt[3] == f"{errors.mean():.4f} ± {half:.4f}"
    assert tilt[5:7] == ["0.0100", "the mean only"]
    assert tilt[8] == "0.100 -> 0.200 ± 0.000"
    up = next(row for row in rows if row[:2] == ["tilt", "up"])
    assert up[5:7] == ["0.0200", "yes"]
    worse = next(row for row in rows if row[:2] == ["sign-0", "flat"])
    assert worse[4].startswith("-0.0567 ±")
    assert worse[6] == "no"
    better = next(row for row in rows if row[:2] == ["sign", "flat"])
    assert better[2:4] == ["sign-0 of 2", "3"]
    ratio = np.mean(np.abs(GAPS["sign-0"])) / errors.mean()
    assert better[4].startswith(f"{ratio:.1f} (")
    arrivals = next(row for row in rows if row[:3] == ["tilt", "step", "30"])
    assert arrivals[3:5] == ["3/3", "0.0 ± 0.0"]


def test_pages_get_their_tables_between_the_marks(settings, tmp_path, monkeypatch):
    path, page, readme = tmp_path / "tracking.json", tmp_path / "page.md", tmp_path / "README.md"
    filled(path, settings, GAPS)
    for file in (page, readme):
        file.write_text("before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter\n")
    monkeypatch.setattr(tracking, "PAGE", page)
    monkeypatch.setattr(tracking, "README", readme)
    assert tracking.main(["--results", str(path), "--docs"]) == 0
    assert "### peers: others" in page.read_text()
    lines = [line for line in readme.read_text().splitlines() if line]
    assert (lines[0], lines[-1]) == ("before", "after")
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["**tilt**", "sign", "GRPO"]
    sign = np.abs(GAPS["sign-0"])
    assert rows[3][1:3] == ["3", views.interval(list(sign))]
    page.write_text("no marks")
    assert tracking.main(["--results", str(path), "--docs"]) == 2
    assert page.read_text() == "no marks"


def test_factors_and_bounds():
    ratio, low, high = views.factor([0.04, 0.05, 0.08], [0.004, 0.006, 0.009])
    assert ratio == pytest.approx(0.17 / 0.019)
    assert 0.05 / 0.006 <= low < ratio < high <= 0.04 / 0.004
    assert math.isnan(views.factor([0.1], [0.01])[1])
    assert views.holds([0.01], 0.01) == "yes (one seed)"
    assert views.holds([], 0.01) == "–"


@pytest.mark.parametrize("left_out", [(), ("tilt/flat/0", "tilt/flat/1", "tilt/flat/2")])
def test_the_figure_is_drawn_from_the_file_alone(settings, tmp_path, left_out):
    path, image = tmp_path / "tracking.json", tmp_path / "img" / "tracking.png"
    filled(path, settings, GAPS, leave_out=left_out)
    assert tracking.main(["--results", str(path), "--figure", str(image)]) == 0
    assert image.read_bytes().startswith(b"\x89PNG")


def test_a_real_cell_is_kept_without_its_directory(tmp_path, capsys, monkeypatch):
    tokenizer = build_tokenizer(SHAPE.max_positions)
    tokenizer.save_pretrained(tmp_path / "model")
    build_reasoner(SHAPE, tokenizer).save_pretrained(tmp_path / "model")
    settings = {
        "base": {
            "model": str(tmp_path / "model"),
            "cache_dir": str(tmp_path / "cache"),
            "steps": 24,
            "prompts": 4,
            "generations": 4,
            "max_completion_length": 4,
            "save_every": 0,
            "task": {"name": "countdown", "train_size": 40},
            "evaluation": {
                "probe_every": 4,
                "probe_prompts": 16,
                "every": 24,
                "prompts": 4,
                "samples": 2,
            },
        },
        "schedules": {"down": "linear(initial, 0.9*initial, 24)"},
        "methods": {"tilt": {}},
        "parts": {"main": {"methods": ["tilt"], "schedules": ["down"]}},
    }
    file, path, runs = (tmp_path / name for name in ("tracking.yaml", "tracking.json", "runs"))
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    words = ["--settings", str(file), "--results", str(path), "--jobs", "1"]
    assert tracking.main([*words, "--runs", str(runs)]) == 0
    assert "1 of 1 runs" in capsys.readouterr().out
    first = path.read_text()
    data = json.loads(first)
    assert data["missing"] == []
    cell = data["cells"]["tilt/down/0"]
    assert [point[0] for point in cell["probe"]] == [0, 4, 8, 12, 16, 20, 24]
    _, target, probe, _ = cell["probe"][-1]
    assert target == pytest.approx(0.9 * cell["initial"], abs=2e-5)
    assert cell["tracking_error"] == pytest.approx(abs(probe - target), abs=2e-5)
    assert set(cell["pass_at"]) == {"pass@1", "pass@2"}
    assert cell["pressure"] is not None
    # the run is found again in its directory, and without that in the file
    path.unlink()
    monkeypatch.setattr(tracking, "run_cells", None)
    assert tracking.main([*words, "--runs", str(runs)]) == 0
    assert path.read_text() == first
    assert tracking.main([*words, "--runs", str(tmp_path / "elsewhere")]) == 0
    assert path.read_text() == first
