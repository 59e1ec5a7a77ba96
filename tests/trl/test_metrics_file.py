"""The callback that writes metrics.jsonl for any TRL run."""

import json
import subprocess
import sys
from itertools import pairwise

from entrocraft.trl import MetricsFile
from tests.trl.runs import make_trainer, rows


def train(output, steps, checkpoint=None, path=None, **settings):
    trainer = make_trainer(
        output_dir=str(output),
        entropy_control="linear(initial, 2.5, 8)",
        max_steps=steps,
        save_strategy="steps",
        save_steps=3,
        callbacks=[MetricsFile(path)],
        **settings,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_per_step_with_the_numbers_of_the_log(tmp_path):
    trainer = train(tmp_path / "run", 4)
    records = read(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2, 3]
    for record, row in zip(records, rows(trainer), strict=True):
        seconds = record.pop("seconds")
        assert 0 < seconds < 100
        assert record.pop("step") == row["step"] - 1
        assert record == {key: row[key] for key in record}
        assert record.keys() > {"reward", "entropy/target", "entropy/measured", "entropy/pressure"}


def test_a_killed_run_goes_on_without_duplicates(tmp_path):
    whole = train(tmp_path / "whole", 8)
    file = tmp_path / "run" / "metrics.jsonl"
    train(tmp_path / "run", 5)
    before = read(file)
    with file.open("a") as cut:
        cut.write('{"step": 5, "seconds": 1.0, "rew')
    train(tmp_path / "run", 8, str(tmp_path / "run" / "checkpoint-3"))
    records = read(file)
    assert [record["step"] for record in records] == list(range(8))
    assert records[:3] == before[:3]
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(records))
    assert [r["reward"] for r in records] == [row["reward"] for row in rows(whole)]


def test_a_new_run_starts_its_file_anew_and_averages_are_at_the_last_step(tmp_path):
    file = tmp_path / "elsewhere.jsonl"
    train(tmp_path / "run", 2, path=file)
    train(tmp_path / "run", 4, path=file, logging_steps=2)
    assert [record["step"] for record in read(file)] == [1, 3]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_lab_is_not_imported():
    code = (
        "import sys, entrocraft.trl; assert entrocraft.trl.MetricsFile; "
        "assert not [name for name in sys.modules if name.startswith('entrocraft.lab')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
