"""The commands on tiny models: run directories, resume, kill, chat templates."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from entrocraft.lab.cli import main
from entrocraft.lab.models import WarmStartConfig
from entrocraft.lab.parsing import config_from_mapping
from entrocraft.lab.records import read_records
from entrocraft.lab.tasks import get_task
from entrocraft.lab.training.config import TaskConfig, TrainConfig
from entrocraft.lab.training.directory import RunDirectory
from entrocraft.lab.training.run import prepare_model
from entrocraft.lab.training.trainer import trainer_arguments
from tests.lab.training.runs import config_file, keys, make_home

WALL = ("seconds",)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One cache for the module, and two untrained models on disk: plain, and one that chats."""
    return make_home(tmp_path_factory.mktemp("home"))


def records(directory):
    rows = read_records(Path(directory) / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in WALL} for row in rows]


def test_train_writes_a_whole_run_directory(home, tmp_path, capsys):
    out = tmp_path / "run"
    file = config_file(tmp_path / "c.yaml", keys(home, out))
    assert main(["train", file, "--control.rule", "tilt", "--steps", "5"]) == 0
    assert "report.html" in capsys.readouterr().out
    for name in ("config.yaml", "metrics.jsonl", "report.html", "entropy.png", "checkpoints"):
        assert (out / name).exists(), name
    rows = records(out)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    for row in rows[:-1]:
        assert {"reward", "entropy/target", "entropy/measured", "entropy/pressure"} <= set(row)
        assert 0 <= row["entropy/kept_fraction"] <= 1
    assert [row["step"] for row in rows if "entropy/probe" in row] == [0, 2, 4, 5]
    assert {"eval/pass@1", "eval/pass@2", "entropy/target"} <= set(rows[-1])
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["steps"] == 5
    assert saved["name"] == "tilt"
    assert main(["report", str(out)]) == 0


def test_the_probe_is_the_same_number_for_the_same_weights(home, tmp_path):
    for rule in ("tilt", "sign"):
        values = keys(home, tmp_path / rule, control={"rule": rule}, steps=1)
        assert main(["train", config_file(tmp_path / f"{rule}.yaml", values)]) == 0
    first, second = (records(tmp_path / rule)[0] for rule in ("tilt", "sign"))
    for key in ("entropy/probe", "entropy/measured", "reward", "eval/pass@1"):
        assert first[key] == second[key], "same model, same seed: same prompts and rollouts"


@pytest.mark.parametrize(
    ("algorithm", "trainer"), [("grpo", {"loss_type": "dr_grpo"}), ("rloo", {})]
)
def test_algorithms_and_trl_options(home, tmp_path, algorithm, trainer):
    values = keys(home, tmp_path / "run", algorithm=algorithm, trainer=trainer, updates=2, steps=4)
    assert main(["train", config_file(tmp_path / "c.yaml", values)]) == 0
    rows = records(tmp_path / "run")
    assert [row["step"] for row in rows if "entropy/target" in row] == [0, 2, 4]


def test_a_chat_model_from_disk_takes_the_same_path(home, tmp_path, monkeypatch):
    from entrocraft.lab.training import run as module

    seen = []
    build = module.build_trainer

    def spy(*args):
        trainer = build(*args)
        seen.append(trainer.train_dataset[0]["prompt"])
        return trainer

    monkeypatch.setattr(module, "build_trainer", spy)
    values = keys(home, tmp_path / "run", model=str(home / "chat"), steps=2)
    assert main(["train", config_file(tmp_path / "c.yaml", values)]) == 0
    assert seen[0][0]["role"] == "user"
    assert "<answer>" in seen[0][0]["content"]
    assert "entropy/probe" in records(tmp_path / "run")[0]


def test_a_finished_run_is_reported_again_not_repeated(home, tmp_path):
    file = config_file(tmp_path / "c.yaml", keys(home, tmp_path / "run"))
    assert main(["train", file]) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "report.html").unlink()
    assert main(["train", file]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert (tmp_path / "run" / "report.html").exists()
    # killed in the final evaluation: the last record is missing, the last checkpoint is there
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(before.splitlines()[:-1]) + "\n")
    wanted = [
        {k: v for k, v in json.loads(x).items() if k not in WALL} for x in before.splitlines()
    ]
    assert main(["train", file]) == 0
    assert records(tmp_path / "run") == wanted


def test_kill_9_and_resume_give_the_uninterrupted_metrics(home, tmp_path):
    values = keys(home, tmp_path / "whole", steps=12, save_every=3)
    assert main(["train", config_file(tmp_path / "whole.yaml", values)]) == 0
    values["output"] = str(tmp_path / "killed")
    command = [
        sys.executable,
        "-m",
        "entrocraft",
        "train",
        config_file(tmp_path / "killed.yaml", values),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(read_records(metrics)) < 5:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = len(read_records(metrics))
    assert killed_at < 13
    with metrics.open("a") as file:
        file.write('{"step": 99, "rew')  # as a kill in the middle of a write leaves it
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert records(tmp_path / "killed") == records(tmp_path / "whole")


def test_bad_input_says_what_to_change_and_leaves_the_run_alone(home, tmp_path, capsys):
    file = config_file(tmp_path / "c.yaml", keys(home, tmp_path / "run", steps=1))
    assert main(["train", file]) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    cases = [
        (["--learning_rate", "1"], "choose another output"),
        (["--control.schedule", "linear(9, 9, 10)", "--output", str(tmp_path / "x")], "log(voc"),
        (["--control.rule", "nope"], "unknown rule 'nope'"),
        (["--control.schedule", "linear(0.5"], "not a schedule"),
        (["--trainer", "{lostype: dapo}", "--output", str(tmp_path / "y")], "no option"),
        (["--trainer", "{temperature: 0.5}", "--output", str(tmp_path / "t")], "own key: temper"),
        (["--updates", "3", "--output", str(tmp_path / "z")], "do not divide"),
        (["--model", str(tmp_path / "none"), "--output", str(tmp_path / "w")], "none"),
        (["--chat", "true", "--output", str(tmp_path / "v")], "chat template"),
        (["--task.name", "sudoku", "--output", str(tmp_path / "u")], "sudoku"),
        (
            ["--control.schedule", "0.4"],
            "with control.schedule='linear(initial, 0.6*initial, 150)'",
        ),
        (["--output", file], "cannot be made a directory (File exists); choose another one"),
    ]
    for flags, expected in cases:
        capsys.readouterr()
        assert main(["train", file, *flags]) == 1, flags
        assert expected in capsys.readouterr().err, flags
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"micro_batch": -2}, "micro_batch is -2; use at least 1"),
        ({"save_every": -5}, "save_every is -5; use at least 0"),
        ({"task": {"train_size": 0}}, "task.train_size is 0; use at least 1"),
        ({"task": {"train_size": 31}}, "task.train_size is 31, fewer than the 32 prompts"),
        ({"evaluation": {"samples": 0}}, "evaluation.samples is 0; use at least 1"),
        ({"evaluation": {"batch_size": 0}}, "evaluation.batch_size is 0; use at least 1"),
        ({"evaluation": {"probe_every": -1}}, "evaluation.probe_every is -1; use at least 0"),
    ],
)
def test_numbers_are_checked_by_their_keys(wrong, message):
    with pytest.raises(ValueError, match=message):
        config_from_mapping(TrainConfig, wrong)


def test_a_task_with_less_than_one_batch_of_problems_is_refused():
    from entrocraft.lab.training.trainer import build_trainer

    config = TrainConfig(task=TaskConfig("chain_sum"), prompts=4)
    few = get_task("chain_sum").problems("train", 3)
    with pytest.raises(ValueError, match="has only 3 train problems and a batch takes 4 prompts"):
        build_trainer(config, None, None, get_task("chain_sum"), few, False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--warm_start", "{stps: 3}"], "warm_start is {'stps': 3}: "),
        (["--warm_start", "{reasoner: {layer: 1}}"], "warm_start is {'reasoner': {'layer': 1}}: "),
        (["--warm_start", "{steps: 0}"], "steps=0; use at least 1"),
        (["--task.options", "{max_value: many}"], "the options {'max_value': 'many'} of task"),
    ],
)
def test_wrong_keys_of_warm_start_and_task_are_named(tmp_path, capsys, flags, message):
    places = ["--output", str(tmp_path), "--cache_dir", str(tmp_path)]
    assert main(["train", *flags, *places]) == 1
    assert message in capsys.readouterr().err


def test_a_part_of_the_warm_starts_shape_can_be_changed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "entrocraft.lab.training.run.warm_start", lambda *args: seen.append(args[0])
    )
    config = TrainConfig(warm_start={"reasoner": {"layers": 1}, "steps": 7})
    prepare_model(config)
    usual = WarmStartConfig.for_task("countdown")
    assert seen == [replace(usual, steps=7, reasoner=replace(usual.reasoner, layers=1))]


def test_a_run_goes_on_to_more_steps(home, tmp_path, capsys):
    values = keys(home, tmp_path / "run", steps=2)
    file = config_file(tmp_path / "c.yaml", values)
    assert main(["train", file]) == 0
    capsys.readouterr()
    assert main(["train", file, "--name", "renamed"]) == 0
    assert "nothing is trained. More steps go on from its end" in capsys.readouterr().out
    first = records(tmp_path / "run")
    assert main(["train", file, "--steps", "4"]) == 0
    assert [row["step"] for row in records(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert records(tmp_path / "run")[:2] == first[:2]
    assert main(["train", file, "--steps", "3"]) == 1
    assert "steps=4, now asked for steps=3" in capsys.readouterr().err


def test_a_damaged_directory_is_told_about(home, tmp_path, capsys):
    out = tmp_path / "run"
    file = config_file(tmp_path / "c.yaml", keys(home, out, steps=1))
    assert main(["train", file]) == 0
    with (out / "metrics.jsonl").open("a") as lines:
        lines.write('{"stp": 3}\n3\n')
    assert [row["step"] for row in records(out)] == [0, 1]
    for text in ("x: [", "- 1", None):
        if text is None:
            (out / "config.yaml").unlink()
        else:
            (out / "config.yaml").write_text(text)
        assert main(["train", file]) == 1
        error = capsys.readouterr().err
        assert str(out) in error
        assert "choose another output, or set resume=false" in error


def test_ctrl_c_says_where_the_run_goes_on(home, tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    file = config_file(tmp_path / "c.yaml", keys(home, tmp_path / "run", steps=3))
    monkeypatch.setattr("entrocraft.lab.training.run.train", stop)
    assert main(["train", file]) == 130
    assert "no checkpoint was written yet (save_every), the same" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["train", file]) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-3")
    monkeypatch.setattr("entrocraft.lab.training.run.train", stop)
    for flags, words in (
        ([], "the same command goes on from step 2"),
        (["--resume", "false"], "the same command without resume=false goes on from step 2"),
    ):
        assert main(["train", file, *flags]) == 130
        assert words in capsys.readouterr().err


def test_training_that_ends_early_is_an_error(home, tmp_path, capsys, monkeypatch):
    def nothing(self, *args, **kwargs):
        self.state.global_step = 1

    monkeypatch.setattr("entrocraft.trl.GRPOTrainer.train", nothing)
    file = config_file(tmp_path / "c.yaml", keys(home, tmp_path / "run", steps=3))
    assert main(["train", file]) == 1
    assert "training ended at step 1 of 3" in capsys.readouterr().err


def test_wrong_keys_are_named():
    for wrong in ({"stepps": 3}, {"steps": "many"}, {"control": {"rules": "tilt"}}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            config_from_mapping(TrainConfig, wrong)


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("train", "compare", "report"))
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert main(["nonsense"]) == 2


def test_a_wrong_first_attempt_does_not_block_the_directory(home, tmp_path, capsys):
    out = tmp_path / "run"
    file = config_file(tmp_path / "c.yaml", keys(home, out, steps=2))
    assert main(["train", file, "--trainer", "{nope: 1}"]) == 1
    assert main(["train", file, "--seed", "3"]) == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["seed"] == 3


def test_resume_false_starts_over_and_leaves_nothing_of_the_old_run(home, tmp_path):
    out = tmp_path / "run"
    file = config_file(tmp_path / "c.yaml", keys(home, out, steps=6))
    assert main(["train", file]) == 0
    assert main(["train", file, "--steps", "3", "--resume", "false"]) == 0
    assert [row["step"] for row in records(out)] == [0, 1, 2, 3]
    steps = {path.name for path in (out / "checkpoints").glob("checkpoint-*")}
    assert steps == {"checkpoint-2", "checkpoint-3"}
    kept = read_records(out / "previous" / "metrics.jsonl")
    assert [row["step"] for row in kept] == [0, 1, 2, 3, 4, 5, 6]
    # and the same command without the flag goes on with the new run, not with the old one
    assert main(["train", file, "--steps", "3"]) == 0
    assert [row["step"] for row in records(out)] == [0, 1, 2, 3]


def test_checkpoints_fall_on_whole_rollout_batches(home, tmp_path):
    config = config_from_mapping(
        TrainConfig, keys(home, tmp_path, updates=2, save_every=3, trainer={"num_iterations": 2})
    )
    assert trainer_arguments(config)["save_steps"] == 4
    whole = tmp_path / "whole"
    values = keys(home, whole, updates=2, save_every=3, steps=8)
    assert main(["train", config_file(tmp_path / "w.yaml", values)]) == 0
    half = tmp_path / "half"
    values["output"] = str(half)
    assert main(["train", config_file(tmp_path / "h.yaml", values)]) == 0
    shutil.rmtree(half / "checkpoints" / "checkpoint-8")
    assert main(["train", str(tmp_path / "h.yaml")]) == 0
    assert records(half) == records(whole)


def test_a_directory_has_one_writer(home, tmp_path, capsys):
    file = config_file(tmp_path / "c.yaml", keys(home, tmp_path / "run", steps=1))
    with RunDirectory(tmp_path / "run").locked():
        assert main(["train", file]) == 1
    assert "another process is training" in capsys.readouterr().err
    assert main(["train", file]) == 0


@pytest.mark.slow
def test_two_processes_train_and_resume(home, tmp_path):
    values = keys(home, tmp_path / "two", steps=4)
    file = config_file(tmp_path / "two.yaml", values)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, "-m", "entrocraft", "train", file]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report.html") == 1
    first = records(tmp_path / "two")
    assert [row["step"] for row in first] == [0, 1, 2, 3, 4]
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "checkpoint-4")
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    assert records(tmp_path / "two") == first


def test_a_sigterm_saves_and_the_same_command_goes_on(home, tmp_path, capsys, monkeypatch):
    """As batch systems preempt; here the signal comes at once."""
    from entrocraft.lab.training.checkpoints import StopOnSignal

    file = config_file(tmp_path / "c.yaml", keys(home, tmp_path / "run", save_every=0))
    listen = StopOnSignal.on_train_begin

    def preempted(self, *args, **kwargs):
        listen(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(StopOnSignal, "on_train_begin", preempted)
        assert main(["train", file]) == 130
    assert "the same command goes on from step 1" in capsys.readouterr().err
    assert main(["train", file]) == 0
    whole = config_file(tmp_path / "w.yaml", keys(home, tmp_path / "whole", save_every=0))
    assert main(["train", whole]) == 0
    assert records(tmp_path / "run") == records(tmp_path / "whole")
