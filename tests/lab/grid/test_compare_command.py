"""`entrocraft compare` on tiny models: real processes, resumed, failed and terminated."""

import json
import subprocess
import sys
import time

import pytest
import yaml

from entrocraft.lab.cli import main
from entrocraft.lab.records import read_records
from entrocraft.lab.training.directory import RunDirectory
from tests.lab.training.runs import config_file, keys, make_home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One cache for the module, and untrained models on disk."""
    return make_home(tmp_path_factory.mktemp("home"))


def test_compare_runs_what_is_missing_and_reports_together(home, tmp_path, capsys):
    base = {k: v for k, v in keys(home, tmp_path).items() if k != "output"}
    values = {
        "output": str(tmp_path / "both"),
        "methods": {"GRPO": {"control": {"rule": None}}, "tilt": {}},
        "base": base | {"steps": 2},
    }
    file = config_file(tmp_path / "compare.yaml", values)
    assert main(["compare", file]) == 0
    results = json.loads((tmp_path / "both" / "results.json").read_text())
    assert list(results["cells"]) == ["GRPO/0", "tilt/0"]
    assert (tmp_path / "both" / "report.html").exists()
    first = tmp_path / "both" / "cells" / "GRPO-seed0"
    stamp = (first / "metrics.jsonl").stat().st_mtime_ns
    (tmp_path / "both" / "report.html").unlink()
    capsys.readouterr()
    assert main(["compare", file]) == 0
    assert "2 of 2 cells are there already" in capsys.readouterr().out
    assert (first / "metrics.jsonl").stat().st_mtime_ns == stamp
    assert (tmp_path / "both" / "report.html").exists()
    assert (tmp_path / "both" / "entropy.png").exists()


def test_a_failed_cell_is_named_and_the_others_are_kept(home, tmp_path, capsys):
    base = {k: v for k, v in keys(home, tmp_path).items() if k != "output"}
    values = {
        "output": str(tmp_path / "some"),
        "methods": {"good": {"steps": 1}, "bad": {"trainer": {"loss_type": "none such"}}},
        "base": base,
    }
    assert main(["compare", config_file(tmp_path / "compare.yaml", values)]) == 1
    error = capsys.readouterr().err
    assert "bad, seed 0" in error
    assert "log.txt" in error
    assert (tmp_path / "some" / "cells" / "good-seed0" / "report.html").exists()


def test_compare_refuses_cells_of_another_config(home, tmp_path, capsys):
    base = {k: v for k, v in keys(home, tmp_path).items() if k != "output"} | {"steps": 1}
    values = {"output": str(tmp_path / "c"), "methods": {"tilt": {}}, "base": base}
    assert main(["compare", config_file(tmp_path / "compare.yaml", values)]) == 0
    before = (tmp_path / "c" / "results.json").read_text()
    values["base"] = base | {"learning_rate": 0.01}
    capsys.readouterr()
    assert main(["compare", config_file(tmp_path / "compare.yaml", values)]) == 1
    error = capsys.readouterr().err
    assert "learning_rate" in error
    assert "--fresh" in error
    assert (tmp_path / "c" / "results.json").read_text() == before
    assert main(["compare", str(tmp_path / "compare.yaml"), "--fresh"]) == 0


@pytest.mark.slow
def test_a_comparison_that_is_terminated_takes_its_runs_along(home, tmp_path):
    base = {k: v for k, v in keys(home, tmp_path).items() if k != "output"} | {"steps": 500}
    values = {"output": str(tmp_path / "c"), "methods": {"tilt": {}}, "base": base}
    file = config_file(tmp_path / "compare.yaml", values)
    command = [sys.executable, "-m", "entrocraft", "compare", file]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cell = tmp_path / "c" / "cells" / "tilt-seed0"
    deadline = time.monotonic() + 120
    while not read_records(cell / "metrics.jsonl"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=60) == 143
    with RunDirectory(cell).locked():  # nobody trains there any more
        assert len(read_records(cell / "metrics.jsonl")) < 500


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
    assert list(results["cells"])[:2] == ["GRPO/0", "qae/0"]


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
    assert results["missing"] == ["loss/0"]
    tuning = results["tuning"]["qae"]
    assert str(tuning["chosen"]) == max(tuning["tried"], key=lambda value: tuning["tried"][value])
    cell = yaml.safe_load((tmp_path / "both" / "cells" / "qae-seed0" / "config.yaml").read_text())
    assert cell["control"]["options"] == {"quantile": tuning["chosen"]}

    values["methods"]["loss"]["tune"] = {"trainer.loss_type": ["dapo"]}
    assert main(["compare", config_file(tmp_path / "compare.yaml", values)]) == 0
    results = json.loads((tmp_path / "both" / "results.json").read_text())
    assert list(results["cells"])[:2] == ["loss/0", "qae/0"]
    assert results["missing"] == []
