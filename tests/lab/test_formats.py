"""One run in every format that the report reads: the same records from each."""

import json
import shutil
import sqlite3
import sys
from importlib.util import find_spec

import pandas as pd
import pytest

from entrocraft.lab.records import RunError, read, read_records
from entrocraft.lab.report import control_figure, entropy_figure, load_run, load_runs, reward_figure
from entrocraft.trl import MetricsFile
from tests.trl.runs import make_trainer

TRACKERS = [name for name in ("tensorboard", "trackio") if find_spec(name)]
STEPS = 9


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Output directory of a real TRL run, stopped after step 7 and resumed from step 6."""
    output = tmp_path_factory.mktemp("runs") / "mine"
    with pytest.MonkeyPatch.context() as patched:
        if "trackio" in TRACKERS:
            place = output.parent / "trackio"
            for module in [m for n, m in sys.modules.items() if n.startswith("trackio")]:
                if hasattr(module, "TRACKIO_DIR"):
                    patched.setattr(module, "TRACKIO_DIR", place)
        for steps, checkpoint in ((7, None), (STEPS, str(output / "checkpoint-6"))):
            trainer = make_trainer(
                output_dir=str(output),
                run_name="mine",
                project="tiny",
                entropy_control="linear(initial, 2.5, 8)",
                max_steps=steps,
                save_strategy="steps",
                save_steps=3,
                report_to=TRACKERS or "none",
                callbacks=[MetricsFile()],
            )
            trainer.train(resume_from_checkpoint=checkpoint)
    return output


def drawn(records):
    """What every format holds: entropy and reward, without the other numbers of our own file."""
    keys = ("step", "entropy", "reward")
    return [{k: v for k, v in r.items() if k.startswith(keys)} for r in records]


def expected(output):
    records = read_records(output / "metrics.jsonl", strict=True)
    assert [record["step"] for record in records] == list(range(STEPS))
    return drawn(records)


def assert_same(found, output):
    wanted = expected(output)
    assert [record["step"] for record in found] == [record["step"] for record in wanted]
    for one, other in zip(found, wanted, strict=True):
        common = {key: one[key] for key in other}
        assert common == pytest.approx(other, rel=1e-5)


def without(output, place, *patterns):
    """A copy of the output directory without some files."""
    shutil.copytree(output, place, ignore=shutil.ignore_patterns(*patterns))
    return place


def test_the_furthest_whole_trainer_state_is_read(runs, tmp_path):
    output = without(runs, tmp_path / "run", "metrics.jsonl")
    assert_same(read(output)[""], runs)
    # of a run at its end the trainer can leave the same file at the top
    (output / "checkpoint-9" / "trainer_state.json").rename(output / "trainer_state.json")
    assert_same(read(output)[""], runs)
    # cut by a kill: what the checkpoint before it knows
    (output / "trainer_state.json").write_text('{"global_step": 9, "log_hist')
    assert [record["step"] for record in read(output)[""]] == list(range(7))


@pytest.mark.skipif("tensorboard" not in TRACKERS, reason="needs tensorboard")
def test_tensorboard_has_the_same_numbers_of_a_run_that_was_resumed(runs, tmp_path):
    output = without(runs, tmp_path / "run", "metrics.jsonl", "checkpoint-*")
    assert len(list(output.glob("runs/*/events*"))) == 2
    assert_same(read(output)[""], runs)
    gathered = tmp_path / "gathered"
    gathered.mkdir()
    for file in output.glob("runs/*/events*"):
        shutil.copy(file, gathered)
    assert_same(read(gathered)[""], runs)


def test_without_tensorboard_its_logs_say_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "events.out.tfevents.1.host.1.0").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunError, match="pip install tensorboard"):
        read(tmp_path)


@pytest.mark.skipif("trackio" not in TRACKERS, reason="needs trackio")
def test_trackio_has_the_same_numbers(runs):
    assert_same(read(runs.parent / "trackio")["mine"], runs)


def trackio_rows(output, run):
    """Rows as transformers logs them: its own step beside trackio's count of calls."""
    for call, record in enumerate(expected(output)):
        done = record["step"] + 1
        metrics = {f"train/{key}": value for key, value in record.items() if key != "step"}
        yield run, call, metrics | {"train/global_step": done, "train/text": "NaN"}


def write_trackio(file, rows, with_ids=True):
    """The table `metrics` as trackio 0.43 makes it (sqlite_storage.py), or as before run ids."""
    identity = "run_id TEXT NOT NULL, " if with_ids else ""
    with sqlite3.connect(file) as database:
        database.execute(
            f"CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, {identity}"
            "timestamp TEXT NOT NULL, run_name TEXT NOT NULL, step INTEGER NOT NULL, "
            "metrics TEXT NOT NULL)"
        )
        for (name, identity), step, metrics in rows:
            values = {"timestamp": "2026-01-01", "run_name": name, "step": step}
            values |= {"metrics": json.dumps(metrics)} | ({"run_id": identity} if with_ids else {})
            marks = ", ".join("?" * len(values))
            statement = f"INSERT INTO metrics ({', '.join(values)}) VALUES ({marks})"
            database.execute(statement, list(values.values()))
    database.close()


@pytest.mark.parametrize("with_ids", [True, False])
def test_a_trackio_database_holds_several_runs(runs, tmp_path, with_ids):
    names = [("a", "11"), ("b", "12"), *([("b", "13")] if with_ids else [])]
    rows = [row for run in names for row in trackio_rows(runs, run)]
    write_trackio(tmp_path / "tiny.db", rows, with_ids)
    (tmp_path / "other.db").write_text("of another program")
    for place in (tmp_path, tmp_path / "tiny.db"):
        found = read(place)
        assert list(found) == (["a", "b (12)", "b (13)"] if with_ids else ["a", "b"])
        for records in found.values():
            assert_same(records, runs)
    with pytest.raises(RunError, match=r"holds .* runs: a, b"):
        load_run(tmp_path)
    assert [run.name for run in load_runs([tmp_path])] == list(found)


def test_trackio_parquet_files_without_their_database(runs, tmp_path):
    rows = enumerate(trackio_rows(runs, ("a", "11")))
    flat = [{"id": i, "run_name": run[0], "step": step, **m} for i, (run, step, m) in rows]
    pd.DataFrame([*flat[:3], {"id": 99, "run_name": "b", "step": 0}, *flat[3:]]).to_parquet(
        tmp_path / "tiny.parquet"
    )
    pd.DataFrame([{"id": 1, "run_name": "a", "lr": 0.1}]).to_parquet(tmp_path / "t_configs.parquet")
    assert list(read(tmp_path)) == ["a"]  # b logged nothing that is drawn
    assert_same(read(tmp_path)["a"], runs)


def test_pictures_of_a_run_without_a_probe(runs, tmp_path):
    run = load_run(without(runs, tmp_path / "tiny-seed3", "metrics.jsonl"))
    assert (run.name, run.group, run.controlled) == ("tiny-seed3", "tiny", True)
    texts = [text.get_text() for text in entropy_figure([run]).legends[0].get_texts()]
    assert texts == ["training batches", "controller's estimate", "target"]
    control = control_figure([run])
    assert len([axis for axis in control.axes if axis.lines]) == 4


def test_what_a_run_lacks_is_left_out(tmp_path):
    log = [{"step": s, "loss": 0.1, "entropy": 0.5, "epoch": 1.0} for s in (10, 20)]
    for name, history in (("a/out", log), ("b/out", log), ("sft", [{"step": 1, "loss": 2.0}])):
        (tmp_path / name).mkdir(parents=True)
        state = json.dumps({"global_step": 20, "log_history": history})
        (tmp_path / name / "trainer_state.json").write_text(state)
    run = load_run(tmp_path / "a" / "out")
    assert run.frame.index.tolist() == [9, 19]
    texts = [text.get_text() for text in entropy_figure([run]).legends[0].get_texts()]
    assert texts == ["as TRL logs it"]
    assert reward_figure([run]) is None
    assert control_figure([run]) is None
    groups = [run.group for run in load_runs([tmp_path / "a" / "out", tmp_path / "b" / "out"])]
    assert len(set(groups)) == 2  # of one name, but nothing says that they are seeds of a method
    with pytest.raises(RunError, match=r"no run with entropy or reward; looked for metrics\.jsonl"):
        load_run(tmp_path / "sft")
