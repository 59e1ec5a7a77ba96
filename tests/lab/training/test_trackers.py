"""Probe and pass@k reach every tracker of a run; the console shows what is asked for."""

import json
from io import StringIO

import pytest
from rich.console import Console

from entrocraft.lab.parsing import config_from_mapping
from entrocraft.lab.records import read, read_records
from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.run import train
from tests.lab.training.runs import keys, make_home

MEASURED = ("entropy/probe", "entropy/probe_stderr", "eval/pass@1", "eval/pass@2_stderr")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"))


def run(home, output, verbose=False, **changes):
    text = StringIO()
    config = config_from_mapping(TrainConfig, keys(home, output, **changes))
    train(config, Console(file=text, width=500), verbose)
    return text.getvalue().splitlines()


def measured(records):
    return {r["step"]: {k: r[k] for k in MEASURED if k in r} for r in records if MEASURED[0] in r}


@pytest.fixture(scope="module")
def verbose_lines(home, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    return output, run(home, output, verbose=True)


def test_the_log_of_the_trainer_has_the_measurements(verbose_lines):
    output, _ = verbose_lines
    own = measured(read_records(output / "metrics.jsonl"))
    assert list(own) == [0, 2, 4]
    assert own[4].keys() == set(MEASURED)
    state = json.loads((output / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    logged = measured(state["log_history"])
    assert logged == {step: own[step] for step in (0, 2)}  # saved before the last ones
    assert [r["step"] for r in state["log_history"] if "loss" in r] == [1, 2, 3, 4]


def test_tensorboard_has_all_measurements(home, tmp_path):
    pytest.importorskip("tensorboard")
    run(home, tmp_path, trainer={"report_to": "tensorboard"})
    own = read_records(tmp_path / "metrics.jsonl")
    (tmp_path / "events").mkdir()
    for file in tmp_path.glob("checkpoints/runs/*/events*"):
        file.rename(tmp_path / "events" / file.name)
    assert len(list((tmp_path / "events").iterdir())) == 1  # the last ones came before its end
    found = measured(read(tmp_path / "events")[""])
    assert found.keys() == measured(own).keys()
    for step, values in measured(own).items():
        assert found[step] == pytest.approx(values, rel=1e-5)


def test_lines_of_a_run(home, tmp_path, verbose_lines):
    short = [line for line in run(home, tmp_path) if " step " in line]
    assert len(short) == 4
    for line in short:
        words = [w for w in line.removesuffix("  saturated").split() if w.isalpha()]
        assert words == ["tilt", "step", "entropy", "target", "reward", "kept"]
    long = [line for line in verbose_lines[1] if " step " in line]
    assert len(long) == 5  # the measurements at the end, too
    for key in ("entropy/pressure", "learning_rate", "seconds"):
        assert all(f"  {key} " in line for line in long[:4])
    assert "entropy/probe " in long[-1]
